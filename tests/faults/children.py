"""What runs in the forked processes. Importing this module is what the fork server does once for all of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo  # the first optimizer imports it, which takes longer than a whole run

from configs import command_line
from runners import train_agent


def train(words: Sequence[str]) -> int:
    """The command, with its exit code."""
    return command_line.run(lambda: train_agent.main(list(words)))


def nothing() -> int:
    """Begin and end."""
    return 0


def run(function: Callable[..., int], arguments: tuple[Any, ...], log: str) -> None:
    """Run `function` as a process of its own would: its words go to a file, its result is the exit code."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
