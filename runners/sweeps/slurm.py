"""Members as Slurm jobs, through submitit (https://github.com/facebookincubator/submitit).

The sweep's folder, the checkout and its Python must be on a file system that all nodes share. A job that
reaches its time limit or is preempted saves and ends; it is then submitted again and goes on.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memory_suite.configs.command_line import Scalar
from memory_suite.runners import IMPORT_PATH
from memory_suite.runners.sweeps.folder import Sweep, SweepError
from memory_suite.runners.sweeps.worker import print_into_log, train_member, why_it_ended

POLL_SECONDS = {"slurm": 5.0, "local": 0.2}
_DEFAULTS: dict[str, Scalar] = {"timeout_min": 24 * 60, "cpus_per_task": 1}
"""defaults; the time limit of submitit is 5 minutes"""


def make_start(
    sweep: Sweep, executor: Literal["slurm", "local"], arguments: Mapping[str, Scalar]
) -> Callable[[Sweep, str], SlurmAttempt]:
    """A function that submits an attempt at a member.

    Args:
        sweep: the folder.
        executor: executor of submitit.
        arguments: parameters of submitit's executor.

    Raises:
        SweepError: submitit or Slurm is missing, or a parameter is unknown.
    """
    if importlib.util.find_spec("submitit") is None:
        raise SweepError('backend slurm needs submitit: pip install -c constraints.txt -e ".[sweep]"')
    import submitit

    # Jobs unpickle a function of this checkout, which need not be installed.
    paths = [str(IMPORT_PATH), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        chosen = submitit.AutoExecutor(folder=str(sweep.path / "slurm"), cluster=executor)
        chosen.update_parameters(**{**_DEFAULTS, "name": sweep.path.name, **arguments})
    except (RuntimeError, TypeError, ValueError, NameError) as error:
        raise SweepError(f"slurm: {str(error).splitlines()[0]}") from error
    return functools.partial(_submit, chosen)


def _submit(executor: Any, sweep: Sweep, name: str) -> SlurmAttempt:
    sweep.log_file(name).parent.mkdir(parents=True, exist_ok=True)
    return SlurmAttempt(sweep, name, executor.submit(_attempt, sweep, name))


@dataclass(frozen=True, slots=True)
class SlurmAttempt:
    """A job that trains a member."""

    sweep: Sweep
    name: str
    job: Any

    @property
    def exit_code(self) -> int | None:
        """None while it waits or runs; 1 if the job was lost."""
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except Exception:  # submitit has several for jobs without a result
            return 1

    @property
    def reason(self) -> str:
        """The job's number and state, and the last line of its log."""
        ended = why_it_ended(self.sweep, self.name, self.exit_code)
        return f"job {self.job.job_id} {self.job.state}, {ended}"

    def stop(self) -> None:
        """Cancel the job; it saves and exits."""
        self.job.cancel(check=False)


def _attempt(sweep: Sweep, name: str) -> int:
    """Main function of a job."""
    # Slurm announces the time limit with SIGUSR2; training saves and exits on SIGTERM.
    signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    print_into_log(sweep, name)
    try:
        return train_member(sweep, name)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
