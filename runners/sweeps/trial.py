"""What a trial of Ray Tune does, without importing torch: only the process that it starts needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEMBER_SCRIPT = Path(__file__).resolve().with_name("run_member.py")


def run_trial(settings: dict[str, str]) -> None:
    """One attempt at a member, in a process of its own, which may take signals and ends with this one.

    Raises:
        RuntimeError: the process has died or failed.
    """
    command = [
        sys.executable,
        str(MEMBER_SCRIPT),
        "--sweep",
        settings["sweep"],
        "--member",
        settings["member"],
    ]
    with Path(settings["log"]).open("ab") as log:
        process = subprocess.Popen(
            [*command, "--leave-with-stdin"], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
        code = process.wait()
    if code != 0:
        raise RuntimeError(f"killed by signal {-code}" if code < 0 else f"exit code {code}")
