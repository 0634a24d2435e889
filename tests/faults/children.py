"""What runs in the forked processes; the fork server imports this module once, for all of them."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than a whole run

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.serialization.archive import read_archive
from memory_suite.agents.serialization.state_tree import flatten, unflatten
from memory_suite.configs import command_line
from memory_suite.envs.vec_env import GymnasiumVecEnv
from memory_suite.runners import train_agent, train_sequence
from memory_suite.runners.run import tracking, wandb_writer
from memory_suite.runners.run.folder import Checkpoint, RunFolder
from memory_suite.runners.run.metrics_file import MetricsFile, Row
from memory_suite.runners.training import callback as training_callback


def train(words: Sequence[str]) -> int:
    """The command that the words, or the run they continue, are for; its exit code."""
    main = train_sequence.main if _is_sequence(words) else train_agent.main
    return command_line.run(lambda: main(list(words)))


def _is_sequence(words: Sequence[str]) -> bool:
    if words[0] != "--resume":
        return "--task" in words
    return "\ntask:" in (Path(words[1]) / "config.yaml").read_text()


def train_with_draws(words: Sequence[str]) -> int:
    """The same on environments that use all there is.

    They draw from Python's and NumPy's global generators, as some do; rewards and cues come at any time.
    """
    step_wait = GymnasiumVecEnv.step_wait

    def noisy(self: GymnasiumVecEnv) -> Any:
        observation, rewards, dones, infos = step_wait(self)
        noise = 0.01 * (random.random() + np.random.random())  # noqa: NPY002
        self._returns[~dones] += noise
        for info in infos:
            info |= {"cue": int(random.random() < 0.1), "cue_done": int(random.random() < 0.1)}
        return observation, rewards + np.float32(noise), dones, infos

    GymnasiumVecEnv.step_wait = noisy  # type: ignore[method-assign]
    return train(words)


def resume_without(words: Sequence[str], part: str, stale: str) -> int:
    """Resume with one part of the checkpoint as it was in an older one: as if it were not saved."""
    latest = RunFolder.latest_checkpoint

    def latest_checkpoint(self: RunFolder) -> Checkpoint:
        checkpoint = latest(self)
        tree = unflatten(checkpoint.tensors, checkpoint.data)
        tensors, stored = read_archive(stale)
        *path, name = part.split("/")
        inner, older = tree, unflatten(tensors, stored["content"])
        for key in path:
            inner, older = (
                node[int(key)] if isinstance(node, list) else node[key] for node in (inner, older)
            )
        inner[name] = older[name]
        tensors, data = flatten(tree)
        return replace(checkpoint, tensors=tensors, data=data)

    RunFolder.latest_checkpoint = latest_checkpoint  # type: ignore[method-assign]
    return train_with_draws(words)


def train_on_full_disk(words: Sequence[str], where: str, call: int) -> int:
    """The disk is full during one call that writes a checkpoint, a row of metrics or a video."""
    owner, name = _WRITERS[where]
    write = getattr(owner, name)
    calls = itertools.count(1)

    @functools.wraps(write)
    def limited(*arguments: Any, **options: Any) -> Any:
        if next(calls) != call:
            return write(*arguments, **options)
        metrics = arguments[0].path if where == "metrics" else None
        with _no_space(0 if metrics is None else metrics.stat().st_size):
            return write(*arguments, **options)

    setattr(owner, name, limited)
    return train(words)


def train_with_nan(words: Sequence[str], where: str, step: int) -> int:
    """The loss or a gradient is NaN in one step of the optimizer."""
    optimize = MemoryOnPolicyAlgorithm.optimizer_step
    steps = itertools.count(1)

    def poisoned(self: MemoryOnPolicyAlgorithm, loss: torch.Tensor) -> None:
        if next(steps) != step:
            optimize(self, loss)
        elif where == "loss":
            optimize(self, loss * float("nan"))
        else:
            loss.register_hook(lambda gradient: gradient * float("nan"))  # type: ignore[no-untyped-call]
            optimize(self, loss)

    MemoryOnPolicyAlgorithm.optimizer_step = poisoned  # type: ignore[method-assign]
    return train(words)


def train_tracked(
    words: Sequence[str], environment: dict[str, str], limits: dict[str, float], pause: str
) -> int:
    """Train with Weights & Biases.

    Args:
        words: the command.
        environment: variables for W&B; there are no others of it.
        limits: for constants of the log writers.
        pause: a file; training waits after some rows for as long as it exists.
    """
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(environment)
    for name, seconds in limits.items():
        setattr(tracking if hasattr(tracking, name) else wandb_writer, name, seconds)
    write = MetricsFile.write
    rows = itertools.count()

    def patient(self: MetricsFile, key_values: Row, *arguments: Any) -> None:
        if next(rows) == ROWS_BEFORE_PAUSE:
            while Path(pause).exists():
                time.sleep(0.01)
        write(self, key_values, *arguments)

    MetricsFile.write = patient  # type: ignore[method-assign]
    code = train(words)
    atexit._run_exitfuncs()  # W&B's among them; a forked process would leave without
    return code


ROWS_BEFORE_PAUSE = 5
"""of a training that waits"""

_WRITERS: dict[str, tuple[Any, str]] = {
    "checkpoint": (RunFolder, "save_checkpoint"),
    "metrics": (MetricsFile, "write"),
    "video": (training_callback, "render"),
}
SPACE_BYTES = 512
"""so much can still be written"""


@contextlib.contextmanager
def _no_space(size: int) -> Iterator[None]:
    """Files cannot grow: the kernel stops a write in its middle, as on a full disk, with another number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + SPACE_BYTES, hard))
    try:
        yield
    except OSError as error:
        number = errno.ENOSPC if error.errno == errno.EFBIG else error.errno
        raise OSError(number, os.strerror(number or 0), error.filename) from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def nothing() -> int:
    """Begin and end."""
    return 0


ENOUGH = 100
"""so many files are written if nobody kills the process, because nobody is left to do so"""


def save_checkpoints(run: str, first_step: int, numbers: int) -> int:
    """Write checkpoints of so many float32 numbers, all equal to the step, for longer than anyone waits."""
    folder = RunFolder.open(Path(run))
    for step in range(first_step, first_step + ENOUGH):
        folder.save_checkpoint(step, {"x": torch.full((numbers,), float(step))}, {"step": step})
    return 0


def save_naively(file: str, numbers: int) -> int:
    """The same as most programs do it: `torch.save` onto the file itself."""
    for step in range(ENOUGH):
        torch.save({"x": torch.full((numbers,), float(step)), "step": step}, file)
    return 0


def run(function: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    """Run `function` as a process of its own would: its words go to a file, its result is the exit code."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
