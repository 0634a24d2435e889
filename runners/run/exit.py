"""The end of a process that may be one of several ranks."""

from __future__ import annotations

import sys
from typing import NoReturn


def exit_process(code: int) -> NoReturn:
    """Exit with a code; a rank of several exits at once (`agents.distributed.DistributedContext.exit`).

    A command that showed `--help` or refused its options has imported neither torch nor `agents.distributed`,
    and does not import them to exit.
    """
    distributed = sys.modules.get("memory_suite.agents.distributed")
    if distributed is not None:
        distributed.DistributedContext.exit(code)
    sys.exit(code)
