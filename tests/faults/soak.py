"""One training for hours: its memory does not grow, its files are closed, and nothing temporary stays."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from memory_suite.runners.run.signals import EXIT_SAVED
from tests.faults import children
from tests.faults.harness import Child, Figure, leftovers

GROWTH = 0.02
"""of resident memory after warm-up, at most"""
WARM_UP = 0.3
"""share of the time in which the allocator, the memories and the queues find their size"""
SAMPLE_S = 1.0

WORDS = (
    *("--env", "corridor-long", "--algo", "ppo", "--track", "offline", "--tensorboard", "true"),
    *("--total-steps", "1000000000", "--stop.success", "none", "--checkpoint-every", "10"),
    *("--memory.max-span", "64", "--ppo.learning-rate", "1e-9"),
)
"""a real run that does not end by itself; checkpoints as often as tests wish. Memories stay few, and as many
as at first: with hundreds the process takes 590 to 695 MiB as the fullest row changes, and an agent that
learns to forget and unlearns it, which happens in millions of steps, needs less and then more"""


def soak(seconds: float, folder: Path) -> Iterator[Figure]:
    """Train so long, watch the process from outside, then ask it to save and leave."""
    run, temporary = folder / "soak", folder / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary), "HOME": str(folder)}
    child = Child(
        children.train_tracked,
        [*WORDS, "--run", str(run)],
        environment,
        {},
        str(folder / "no-pause"),
        log=folder / "soak.log",
    )
    assert child.runs_until((run / "metrics.jsonl").exists), child.said()
    began = time.monotonic()
    memory: list[float] = []
    files: list[int] = []
    while (now := time.monotonic() - began) < seconds:
        assert child.runs_for(SAMPLE_S), child.said()
        if now > WARM_UP * seconds:
            memory.append(_resident_mib(child.pid))
            files.append(len(os.listdir(f"/proc/{child.pid}/fd")))
    child.send(signal.SIGTERM)
    code = child.wait()
    minutes = f"{seconds / 60:g} minutes"
    updates = len((run / "metrics.jsonl").read_text().splitlines())
    tenth = max(1, len(memory) // 10)
    first, last = (statistics.median(part) for part in (memory[:tenth], memory[-tenth:]))
    yield Figure(
        what=f"soak: resident memory grows by at most {GROWTH:.0%} after warm-up",
        good=int(last <= (1.0 + GROWTH) * first),
        of=1,
        remarks=f"{minutes}, {updates:,} updates: {first:.0f} to {last:.0f} MiB ({last / first - 1.0:+.2%})",
    )
    # While a checkpoint or a row is written there is one more; so the fewest of a while are compared.
    thirds = [min(files[n * len(files) // 3 : (n + 1) * len(files) // 3]) for n in range(3)]
    yield Figure(
        what="soak: as many open files at the end as after warm-up",
        good=int(len(set(thirds)) == 1),
        of=1,
        remarks=f"{minutes}: {thirds[0]} to {thirds[-1]}, at most {max(files)}",
    )
    left = leftovers(run) + sorted(path.name for path in temporary.iterdir())
    yield Figure(
        what="soak: no temporary file is left, and the run is saved",
        good=int(not left and code == EXIT_SAVED),
        of=1,
        remarks=f"{minutes}, exit code {code}" + (f", left: {left}" if left else ""),
    )


def _resident_mib(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
