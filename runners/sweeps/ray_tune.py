"""Members as trials of Ray Tune (https://docs.ray.io/en/latest/tune), on one machine or a cluster.

On a cluster the sweep's folder must lie where every node sees it, and so must the checkout. If a process or
a node dies, Tune runs the trial again, wherever there is room, and it goes on from its last checkpoint.
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
        address: of the cluster; None: a fresh one on this machine.
        cores: that a fresh one may use; None: all.
        show_output: show what tasks print.

    Raises:
        SweepError: there is no Ray Tune, or the cluster cannot be used.
    """
    if importlib.util.find_spec("ray") is None:
        raise SweepError('backend ray needs Ray Tune: pip install -c constraints.txt -e ".[ray]"')
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other one prints tables of its own
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # the members' own files say it all
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
    """Bring every member to its end, or as far as it can be brought; leaves the cluster.

    Args:
        sweep: the folder.
        watch: is told what happens, and knows what is left.
        stop: once it is requested, Tune ends; members save and leave.
        threads: cores that a trial takes.
        workers: trials at a time; None: as many as there is room for.
        retries: a trial that fails is run again so many times.
    """
    import ray
    from ray import tune

    class TellWatch(tune.Callback):
        """Passes on what Tune knows."""

        def __reduce__(self) -> tuple[type[Any], tuple[()]]:
            return tune.Callback, ()  # Tune stores its callbacks, and a stored one has nobody to tell

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop.stop_requested:
                signal.raise_signal(signal.SIGINT)  # how Tune is asked to end

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
    """The end of a traceback: what was raised."""
    if file is None or not Path(file).is_file():
        return "its trial failed"
    lines = Path(file).read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "its trial failed"
