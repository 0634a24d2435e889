"""Train or resume one member of a sweep; agents of a Weights & Biases sweep call this script.

    python runners/sweeps/run_member.py --sweep runs/memory-corridor-long --member expire-span-64-seed0

Exit codes as train_agent.py's.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2] / "src")

import os
import signal
import threading
from dataclasses import dataclass
from typing import Literal

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.sweeps.folder import Sweep
from memory_suite.runners.sweeps.worker import train_member


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberCommand:
    """Train or resume one member of a sweep."""

    sweep: Path
    """folder of the sweep"""
    member: str
    """name of the member: a file in the sweep's folder `members`"""
    track: Literal["offline", "online", "disabled"] | None = None
    """Weights & Biases; none: as the sweep says"""
    leave_with_stdin: bool = False
    """save and exit when standard input closes, as it does when the parent process dies"""


def main(argv: list[str] | None = None) -> int:
    """Do the remaining work of a member."""
    command = command_line.parse(MemberCommand, argv)
    if command.leave_with_stdin:
        threading.Thread(target=_leave_with_stdin, daemon=True).start()
    words = [] if command.track is None else ["--track", command.track]
    return exit_on_error(lambda: train_member(Sweep(command.sweep.absolute()), command.member, words))


def _leave_with_stdin() -> None:
    while os.read(0, 1024):  # not through sys.stdin: the interpreter needs its lock to exit
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
