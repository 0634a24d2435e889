"""What runs in the forked processes; the fork server imports this module once, for all of them."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than a whole run

from configs import command_line
from runners import train_agent
from runners.run_folder import RunFolder


def train(words: Sequence[str]) -> int:
    """The command, with its exit code."""
    return command_line.run(lambda: train_agent.main(list(words)))


def nothing() -> int:
    """Begin and end."""
    return 0


def save_checkpoints(run: str, first_step: int, numbers: int) -> int:
    """Write checkpoints of so many float32 numbers, all equal to the step, without end."""
    folder = RunFolder.open(Path(run))
    for step in itertools.count(first_step):
        folder.save_checkpoint(step, {"x": torch.full((numbers,), float(step))}, {"step": step})
    return 0


def save_naively(file: str, numbers: int) -> int:
    """The same as most programs do it: `torch.save` onto the file itself."""
    for step in itertools.count():
        torch.save({"x": torch.full((numbers,), float(step)), "step": step}, file)
    return 0


def run(function: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    """Run `function` as a process of its own would: its words go to a file, its result is the exit code."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
