"""Attempts on this machine: train a member from the start or from its last checkpoint."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from memory_suite.configs.agent_schema import load
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.sweeps.folder import Member, Sweep, SweepError, TestSetting
from memory_suite.runners.training import evaluate_run, run
from memory_suite.runners.training.evaluate_run import EvaluateCommand

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two sweeps out of one folder
    fcntl = None  # type: ignore[assignment]

LOCK_SECONDS = 60.0
"""how long an attempt waits for an earlier one that is still saving"""

_PRELOADED = ["torch", "stable_baselines3", "minigrid", "gymnasium"]
"""third-party packages only: the fork server might import another installed copy of this project"""


def train_member(sweep: Sweep, name: str, extra_words: Sequence[str] = ()) -> int:
    """Do the remaining training and evaluation of a member; handles signals like `train_agent.py`.

    Args:
        sweep: the folder.
        name: name of the member.
        extra_words: options of train_agent.py for this attempt only, such as `--track online`.

    Returns:
        The exit code of `train_agent.py`, 0 once everything is done.

    Raises:
        SweepError: there is no such member, or another process is training it.
    """
    member = sweep.member(name)
    with _only_one(sweep.lock_file(name)):
        if not sweep.has_trained(name):
            words = sweep.train_words(name)
            if words[0] != "--resume":
                # The folder has no checkpoint, so nothing is lost.
                shutil.rmtree(sweep.run_path(name), ignore_errors=True)
            code = run.train(load([*words, *extra_words]))
            if code != 0:
                return code
        for setting in sweep.tests_left(member):
            _evaluate(sweep, member, setting)
    return 0


@dataclass(frozen=True, slots=True)
class LocalAttempt:
    """A local process that trains a member and prints into its log."""

    sweep: Sweep
    name: str
    process: BaseProcess

    @classmethod
    def start(cls, sweep: Sweep, name: str) -> LocalAttempt:
        """Start an attempt; it saves and exits when the calling process ends."""
        sweep.log_file(name).parent.mkdir(parents=True, exist_ok=True)
        context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
        if os.name == "posix":
            context.set_forkserver_preload(_PRELOADED)  # import torch once, not once for every member
        process: BaseProcess = context.Process(target=_attempt, args=(sweep, name), name=name)  # type: ignore[attr-defined]
        process.start()
        return cls(sweep, name, process)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self.process.exitcode

    @property
    def reason(self) -> str:
        """How it ended, in words."""
        return why_it_ended(self.sweep, self.name, self.exit_code)

    def stop(self) -> None:
        """Ask it to save and leave."""
        self.process.terminate()


def why_it_ended(sweep: Sweep, name: str, exit_code: int | None) -> str:
    """Reason why an attempt ended, with the last line of its log."""
    if exit_code is not None and exit_code < 0:
        try:
            reason = f"killed by {signal.Signals(-exit_code).name}"
        except ValueError:
            reason = f"killed by signal {-exit_code}"
    else:
        reason = f"exit code {exit_code}"
    lines = sweep.log_file(name).read_text(errors="replace").splitlines() if exit_code in (1, 2) else []
    last = next((line.strip() for line in reversed(lines) if line.strip() and "--help" not in line), "")
    return f"{reason}: {last}" if last else reason


def print_into_log(sweep: Sweep, name: str) -> None:
    """Redirect this process's output, including that of C libraries, into the log of a member."""
    log = os.open(sweep.log_file(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _attempt(sweep: Sweep, name: str) -> None:
    """Main function of an attempt's process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the sweep, which signals members once; twice would skip saving
    print_into_log(sweep, name)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    sys.exit(exit_on_error(lambda: train_member(sweep, name)))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _evaluate(sweep: Sweep, member: Member, setting: TestSetting) -> None:
    chosen = member.config.evaluation
    torch.set_num_threads(member.config.threads)
    result, _ = evaluate_run.run(
        EvaluateCommand(
            run=sweep.run_path(member.name),
            episodes=chosen.episodes,
            seed=chosen.seed,
            deterministic=chosen.deterministic,
            env_args=setting.env_args,
            threads=member.config.threads,
            device=member.config.device,
        )
    )
    file = sweep.evaluation_file(member.name, setting)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomically(file, result.to_json())


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system releases it when the process ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    owner = lock.read_text(encoding="utf-8").strip()
                    raise SweepError(f"process {owner} is still training {lock.name}") from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
