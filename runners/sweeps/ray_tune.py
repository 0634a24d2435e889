"""Members as trials of Ray Tune (https://docs.ray.io/en/latest/tune), on one machine or a cluster.

On a cluster the sweep's folder and the checkout must be on a file system that all nodes share. If a process
or a node dies, Tune reruns the trial on any free node, and it resumes from its last checkpoint.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from pathlib import Path
from typing import Any

from memory_suite.runners import IMPORT_PATH
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.sweeps.folder import Sweep, SweepError
from memory_suite.runners.sweeps.trial import run_trial
from memory_suite.runners.sweeps.watch import RUNNING, Watch


def connect(address: str | None, cores: int | None, *, show_output: bool = False) -> None:
    """Join a cluster, or start one on this machine.

    Args:
        address: address of the cluster; None: start one on this machine.
        cores: number of cores that a new cluster may use; None: all.
        show_output: show what tasks print.

    Raises:
        SweepError: Ray Tune is missing, or the cluster cannot be used.
    """
    if importlib.util.find_spec("ray") is None:
        raise SweepError('backend ray needs Ray Tune: pip install -c constraints.txt -e ".[ray]"')
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new output prints its own tables
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the members' files hold the same data
    import ray

    try:
        ray.init(
            address=address or "local",
            num_cpus=None if address is not None else cores,
            include_dashboard=None if address is not None else False,
            runtime_env={"env_vars": {"PYTHONPATH": str(IMPORT_PATH)}},
            log_to_driver=show_output,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise SweepError(f"address: the Ray cluster cannot be used: {error}") from error


def run_trials(
    sweep: Sweep,
    watch: Watch,
    stop: GracefulStop,
    *,
    threads: int,
    workers: int | None,
    retries: int,
) -> None:
    """Run every member as a trial, then leave the cluster.

    Args:
        sweep: the folder.
        watch: receives events and knows which members are unfinished.
        stop: when requested, Tune ends, and members save and exit.
        threads: number of cores of a trial.
        workers: number of trials at a time; None: as many as fit.
        retries: number of times that a failed trial is rerun.
    """
    import ray
    from ray import tune

    class TellWatch(tune.Callback):
        """Forwards Tune's events to the watch."""

        def __reduce__(self) -> tuple[type[Any], tuple[()]]:
            return tune.Callback, ()  # Tune pickles its callbacks; a stored one needs no watch

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop.stop_requested:
                signal.raise_signal(signal.SIGINT)  # Tune ends on SIGINT

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.started(trial.config["member"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.finished(trial.config["member"])

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watch.failed(trial.config["member"], _last_line(trial.error_file))

    left = [member.name for member in watch.left()]
    sweep.log_file("any").parent.mkdir(parents=True, exist_ok=True)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": threads}),
        param_space={
            "sweep": str(sweep.path),
            "member": tune.grid_search(left),
            "log": tune.sample_from(lambda spec: str(sweep.log_file(spec.config.member))),
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=workers),
        run_config=tune.RunConfig(
            storage_path=str(sweep.path / "ray"),
            failure_config=tune.FailureConfig(max_failures=retries),
            callbacks=[TellWatch()],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        ray.shutdown()
    for name in left:
        if watch.states[name] == RUNNING:
            watch.stopped(name)


def _last_line(file: str | None) -> str:
    """Last line of a traceback: the exception."""
    if file is None or not Path(file).is_file():
        return "its trial failed"
    lines = Path(file).read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "its trial failed"
