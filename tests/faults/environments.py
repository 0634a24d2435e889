"""Environments that fail, in this process and in worker processes."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memory_suite.envs import vec_env
from memory_suite.envs.errors import EnvFailedError
from memory_suite.envs.make import Vectorization, make_vec_env
from memory_suite.envs.vec_env import GymnasiumVecEnv
from tests.faults.faulty_env import ENV_NAME, WORKER_FAULTS
from tests.faults.harness import Figure

NUM_ENVS = 2
TIMEOUT_S = 2.0
"""how long a worker may take in these tests"""


def step_until_fault(env: GymnasiumVecEnv, steps: int = 40) -> tuple[str | None, float]:
    """What the fault says (None: there was none), and how long the last step took."""
    env.reset()
    began = time.monotonic()
    try:
        for _ in range(steps):
            began = time.monotonic()
            env.step(np.ones(env.num_envs, dtype=np.int64))
    except EnvFailedError as fault:
        return str(fault), time.monotonic() - began
    return None, 0.0


def faulty(
    fault: str, vectorization: Vectorization, index: int, step: int = 20, *, integers: bool = False
) -> GymnasiumVecEnv:
    """Environments of which one, seeded 10 + index, misbehaves at a step."""
    arguments = {"fault": fault, "faulty_seed": 10 + index, "fault_step": step, "integers": integers}
    return make_vec_env(ENV_NAME, NUM_ENVS, 10, arguments, vectorization=vectorization)


def names_it(message: str | None, index: int, step: int) -> bool:
    """Whether a message says in which environment, with which seed and at which step."""
    where = rf"in environment {index} of {NUM_ENVS}, seed {10 + index} at step {step} .*action 1"
    return message is not None and re.search(where, message) is not None


def tells_where_it_was_raised(message: str | None) -> bool:
    """Whether the message of an environment that raised has the traceback of its worker process."""
    return message is not None and bool(
        re.search(
            r"in its worker process:\nTraceback .*faulty_env\.py\", line \d+, in step", message, re.DOTALL
        )
    )


def fail_in_workers(times: int, monkeypatch: pytest.MonkeyPatch) -> Figure:
    """Let a worker process raise, exit, die or hang, so often for each of these.

    Returns:
        Good: named with environment, seed and step (and traceback, where there is one), within the time limit
        and one second, and no worker process is left.
    """
    monkeypatch.setattr(vec_env, "WORKER_TIMEOUT_S", TIMEOUT_S)
    good = tried = 0
    slowest = 0.0
    problems: list[str] = []
    for fault in WORKER_FAULTS:
        for number in range(times):
            index, step = number % NUM_ENVS, 3 + number
            env = faulty(fault, "async", index, step)
            workers: list[Any] = env.env.processes  # type: ignore[attr-defined]
            message, seconds = step_until_fault(env)
            env.close()
            orphans = [process for process in workers if process.is_alive()]
            tried += 1
            slowest = max(slowest, seconds)
            named = names_it(message, index, step) and (
                fault != "raise" or tells_where_it_was_raised(message)
            )
            if named and seconds < TIMEOUT_S + 1.0 and not orphans:
                good += 1
            else:
                problems.append(f"{fault}: {seconds:.1f} s, {len(orphans)} orphans, {message}")
    return Figure(
        what=f"worker processes ({'; '.join(WORKER_FAULTS)}): named in time, no orphans",
        good=good,
        of=tried,
        remarks="; ".join(problems) or f"time limit {TIMEOUT_S:g} s, slowest {slowest:.1f} s",
    )


def workers_of(process: int) -> set[int]:
    """Children of a process, by /proc."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            if parent == process:
                found.add(int(entry.name))
    return found
