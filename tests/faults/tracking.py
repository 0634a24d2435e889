"""Weights & Biases without an account, a server, a disk or its own process: training notices nothing."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from memory_suite.runners.run.metrics_file import STEP_KEY
from tests.faults import children
from tests.faults.environments import workers_of
from tests.faults.harness import Child, Figure, Reference, rows_of
from tests.faults.wandb_server import Mood, WandbServer

FINISH_S = 2.0
"""how long Weights & Biases may take to finish in these tests"""
CLOSE_S = 5.0
"""when it is given up on, if it hangs"""
SLACK_S = 30.0
"""for a training of a second and the start of W&B, which asks about an account for ten, on a busy machine"""
OUTAGE_S = 3.0

Inject = Callable[[WandbServer, int, Path], None]
"""Does a fault to the server, to the process of Weights & Biases or to the disk below the run folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What goes wrong, and what must be left."""

    says: str
    """what the user is told; empty: nothing but where the run is to be seen"""
    arrives: Literal["at once", "by sync", "nowhere"]
    """how each row must reach the server: `at once`, `by sync` or not (`nowhere`)"""
    account: bool = True
    mood: Mood | None = "answers"
    """of the server when training begins; None: it refuses connections"""
    inject: Inject | None = None
    """in the middle of training, when rows have arrived"""
    limits: dict[str, float] = field(default_factory=lambda: {"WANDB_FINISH_S": FINISH_S})


def _fall_silent(server: WandbServer, process: int, run: Path) -> None:
    server.mood = "silent"


def _slow_down(server: WandbServer, process: int, run: Path) -> None:
    server.delay_seconds = 2.0 * FINISH_S


def _leave(server: WandbServer, process: int, run: Path) -> None:
    server.refuse()


def _be_unavailable_for_a_while(server: WandbServer, process: int, run: Path) -> None:
    server.mood = "unavailable"

    def come_back() -> None:
        server.mood = "answers"

    threading.Timer(OUTAGE_S, come_back).start()


def _kill(server: WandbServer, process: int, run: Path) -> None:
    os.kill(process, signal.SIGKILL)


def _stop(server: WandbServer, process: int, run: Path) -> None:
    os.kill(process, signal.SIGSTOP)


def _fill_the_disk(server: WandbServer, process: int, run: Path) -> None:
    """No file of that process can grow: the kernel refuses to write, as on a full disk."""
    (file,) = run.glob("wandb/run-*/run-*.wandb")
    hard = resource.prlimit(process, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process, resource.RLIMIT_FSIZE, (file.stat().st_size, hard))


_OFFLINE = "Weights & Biases goes on offline"
_UNSENT = f"Weights & Biases was not done within {FINISH_S:g} s; what did not arrive is in"
_GIVEN_UP = f"Weights & Biases was given up on after {CLOSE_S:g} s"
_OFF = "Weights & Biases is switched off"

FAULTS: dict[str, Fault] = {
    "no key": Fault(account=False, says=f"{_OFFLINE}: there is no API key", arrives="by sync"),
    "wrong key": Fault(mood="forbids", says=_OFFLINE, arrives="by sync"),
    "connection refused": Fault(mood=None, says=_OFFLINE, arrives="by sync"),
    "503": Fault(mood="unavailable", says=_OFFLINE, arrives="by sync"),
    "no answer": Fault(mood="silent", says=_OFFLINE, arrives="by sync"),
    "503 for a while": Fault(
        inject=_be_unavailable_for_a_while, says="", arrives="at once", limits={"WANDB_FINISH_S": 30.0}
    ),
    "gone for good": Fault(inject=_leave, says=_UNSENT, arrives="by sync"),
    "no answer any more": Fault(inject=_fall_silent, says=_UNSENT, arrives="by sync"),
    "slow finish": Fault(inject=_slow_down, says=_UNSENT, arrives="by sync"),
    "process killed": Fault(inject=_kill, says=_OFF, arrives="nowhere"),
    "process hangs": Fault(
        inject=_stop, says=_GIVEN_UP, arrives="nowhere", limits={"CLOSE_TIMEOUT_S": CLOSE_S}
    ),
    "disk full": Fault(inject=_fill_the_disk, says="", arrives="nowhere"),
}


def track(reference: Reference, name: str, times: int, folder: Path) -> Figure:
    """Train as the reference did, but with Weights & Biases and one of its faults.

    Returns:
        Good: exit code 0 in time, weights, states and rows of the reference, the fault named once if it costs
        anything, all rows at the server where that was promised, and no process left.
    """
    good = 0
    problems: list[str] = []
    slowest = 0.0
    for number in range(times):
        run = folder / f"{name.replace(' ', '-')}-{number}"
        found, seconds = _track(reference, FAULTS[name], run)
        slowest = max(slowest, seconds)
        good += not found
        problems += [f"{run.name}: {found[:5]}"] if found else []
        shutil.rmtree(run, ignore_errors=True)
    return Figure(
        what=f"Weights & Biases, {name}: trained as without, {_PROMISES[FAULTS[name].arrives]}",
        good=good,
        of=times,
        remarks="; ".join(problems) or f"slowest {slowest:.1f} s",
    )


_PROMISES = {
    "at once": "all rows arrive",
    "by sync": "`wandb sync` sends all rows later",
    "nowhere": "metrics.jsonl has all rows",
}


def _track(reference: Reference, fault: Fault, run: Path) -> tuple[list[str], float]:
    """What is wrong, and the seconds from the fault to the end."""
    pause = run.with_suffix(".pause")
    words = [*reference.words, "--track", "online", "--run", str(run)]
    with WandbServer() as server:
        if fault.inject is not None:
            pause.touch()
        if fault.mood is None:
            server.refuse()
        else:
            server.mood = fault.mood
        began = time.monotonic()
        child = Child(
            children.train_tracked,
            words,
            _variables(server, run.parent, account=fault.account),
            fault.limits,
            str(pause),
            log=run.with_suffix(".log"),
        )
        processes: set[int] = set()
        try:
            if fault.inject is not None:
                enough = children.ROWS_BEFORE_PAUSE
                assert child.runs_until(lambda: len(server.rows) == enough), child.said()
                processes = workers_of(child.pid)
                (process,) = processes
                began = time.monotonic()
                fault.inject(server, process, run)
                pause.unlink()
            code = child.wait()
            seconds = time.monotonic() - began
            found = _judge(reference, fault, run, code, seconds, child.said())
            if fault.arrives == "at once":
                found += _missing(server, run)
            found += ["its process is left"] if _outlives(processes) else []
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
    if fault.arrives == "by sync":
        with WandbServer() as server:
            found += _sync(server, run)
    return found, seconds


def _variables(server: WandbServer, home: Path, *, account: bool = True) -> dict[str, str]:
    """The environment of a user with nothing but an account, who sends rows every second."""
    key = {"WANDB_API_KEY": "0" * 40} if account else {}
    often = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    return {"HOME": str(home), "WANDB_BASE_URL": server.url, **often, **key}


def _judge(reference: Reference, fault: Fault, run: Path, code: int, seconds: float, said: str) -> list[str]:
    found = [f"exit code {code}:\n{said}"] if code else reference.compare(run)
    if seconds > SLACK_S + fault.limits.get("WANDB_FINISH_S", 0.0) + fault.limits.get("CLOSE_TIMEOUT_S", 0.0):
        found.append(f"it took {seconds:.1f} s")
    complaints = sum(said.count(words) for words in (_OFFLINE, _UNSENT, _GIVEN_UP, _OFF))
    if fault.says not in said or complaints != bool(fault.says) or "Traceback" in said:
        found.append(f"it said: {said}")
    return found


def _missing(server: WandbServer, run: Path) -> list[str]:
    """Whether the server has other steps than metrics.jsonl, or in another order."""
    mine, theirs = ([row[STEP_KEY] for row in rows] for rows in (server.rows, rows_of(run)))
    return [] if mine == theirs else [f"rows at the server: {mine}"]


def _sync(server: WandbServer, run: Path) -> list[str]:
    """Do what the user was told, with an account and a server."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    result = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--include-online", *map(str, run.glob("wandb/*run-*"))],
        env={**environment, **_variables(server, run.parent)},
        cwd=run.parent,
        capture_output=True,
        text=True,
        timeout=60.0,
    )
    return [f"sync: {result.stderr}"] if result.returncode else _missing(server, run)


def _outlives(processes: set[int], seconds: float = 5.0) -> bool:
    """Whether one of them is still there after so long; one that waits to be buried is not."""
    deadline = time.monotonic() + seconds
    while any(_lives(process) for process in processes):
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False


def _lives(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
