"""A trial of Ray Tune. It does not import torch: only the process that it starts needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEMBER_SCRIPT = Path(__file__).resolve().with_name("run_member.py")


def run_trial(settings: dict[str, str]) -> None:
    """Run one attempt at a member in a child process, which handles signals and ends with this process.

    Raises:
        RuntimeError: the process was killed or failed.
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
