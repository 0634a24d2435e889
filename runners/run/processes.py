"""This process among others: the cores it may use, and its exit code as one of several ranks."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def usable_cores() -> list[int]:
    """Numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def exit_process(code: int) -> NoReturn:
    """Exit with a code; a rank of several exits at once (`agents.distributed.DistributedContext.exit`).

    A command that showed `--help` or refused its options has imported neither torch nor `agents.distributed`,
    and does not import them to exit.
    """
    distributed = sys.modules.get("memory_suite.agents.distributed")
    if distributed is not None:
        distributed.DistributedContext.exit(code)
    sys.exit(code)
