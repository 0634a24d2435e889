"""Starts the processes of a run as `torchrun` does, but keeps each one's exit code and output."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(
    count: int, *words: str, script: Path = ROOT / "runners" / "train_agent.py"
) -> list[subprocess.Popen[str]]:
    """Start so many ranks of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    return [
        subprocess.Popen(
            [sys.executable, str(script), *words],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(count)
    ]


def finished(processes: list[subprocess.Popen[str]], seconds: float = 120.0) -> list[tuple[int, str]]:
    """Exit code and output of each process; kills all if they are not done in time."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


def wait_for(path: Path, processes: list[subprocess.Popen[str]], seconds: float = 120.0) -> None:
    """Until a file is there; fails if a process ends before that."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert all(process.poll() is None for process in processes), "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)
