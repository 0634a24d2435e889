"""The full set of faults, and its figures into docs/reliability.md.

    python -m tests.faults --full

takes about two hours on one busy core. `--only kills damage` does a part, `--scale 0.1` a tenth of each; the
figures of other parts stay as they are. `--only soak` trains for two hours, or for so many `--soak-minutes`.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

import pytest
import torch

from memory_suite.envs.registration import REGISTRY
from tests.faults import (
    checkpoint_write,
    damage,
    disk_full,
    environments,
    equivalence,
    malicious,
    omission,
    signals,
    soak,
    tracking,
    worlds,
)
from tests.faults.harness import TRAINERS, Figure, Reference, kill_and_resume, repeat

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
HEADER = "| what | held | of | remarks | seconds |\n| --- | --- | --- | --- | --- |"


class FullSet:
    """Every part, in sizes that are scaled together."""

    def __init__(self, folder: Path, scale: float, soak_minutes: float) -> None:
        """Nothing is trained yet."""
        self.folder = folder
        self.scale = scale
        self.soak_minutes = soak_minutes

    @cached_property
    def references(self) -> dict[str, Reference]:
        """A run of each trainer that nobody disturbs."""
        return {
            name: Reference.make([*words, "--keep-checkpoints", "99"], self.folder / name)
            for name, words in TRAINERS.items()
        }

    def times(self, full: int) -> int:
        """A size, scaled."""
        return max(1, round(full * self.scale))

    def kills(self) -> Iterator[Figure]:
        for seed, reference in enumerate(self.references.values()):
            yield kill_and_resume(reference, self.times(200), self.folder, random.Random(seed))

    def writes(self) -> Iterator[Figure]:
        yield checkpoint_write.kill_inside_writes(self.times(100), self.folder, random.Random(0))
        yield checkpoint_write.kill_naive_writes(self.times(25), self.folder, random.Random(0))

    def damage(self) -> Iterator[Figure]:
        mine, other = self.references["ppo"].run, self.references["a2c"].run
        for kind, full in (
            (damage.flip_a_bit, 500),
            (damage.truncate, 200),
            (damage.exchange, 25),
            (damage.lose, 25),
            (damage.flip_a_bit_in_each, 25),
        ):
            yield damage.damage(mine, kind, self.times(full), self.folder, random.Random(0))
        yield damage.put_in_checkpoints_of_others(mine, other, self.folder)

    def omissions(self) -> Iterator[Figure]:
        for trainer in TRAINERS:
            reference = omission.reference_with_draws(trainer, self.folder / f"drawing-{trainer}")
            yield omission.leave_out_each_part(reference, trainer, self.folder)

    def signals(self) -> Iterator[Figure]:
        references = list(self.references.values())
        for seed, kind in enumerate(signals.KINDS):
            reference = references[seed % len(references)]
            yield signals.interrupt(reference, kind, self.times(25), self.folder, random.Random(seed))

    def disk(self) -> Iterator[Figure]:
        for where in ("checkpoint", "metrics"):
            yield disk_full.fill_the_disk(self.references["ppo"], where, self.times(10), self.folder)
        yield disk_full.fill_the_disk_with_a_video(self.references["a2c"], self.folder)

    def workers(self) -> Iterator[Figure]:
        with pytest.MonkeyPatch.context() as monkeypatch:
            yield environments.fail_in_workers(self.times(6), monkeypatch)

    def malicious(self) -> Iterator[Figure]:
        (self.folder / "malicious").mkdir()
        yield malicious.try_all(self.folder / "malicious")

    def tracking(self) -> Iterator[Figure]:
        for name in tracking.FAULTS:
            yield tracking.track(self.references["a2c"], name, self.times(10), self.folder)

    def equivalence(self) -> Iterator[Figure]:
        for seed, name in enumerate(REGISTRY):
            steps = self.times(1_000_000 // len(REGISTRY))
            yield equivalence.batched_against_reference(name, steps, seed)
        yield from equivalence.memory_against_reference(self.times(500), seed=0)
        yield equivalence.leaks(self.times(1_000), seed=0)
        yield equivalence.acting_against_learning(self.times(100_000), seed=0)
        yield equivalence.advantages_against_double_loop(self.times(1_000), seed=0)

    def worlds(self) -> Iterator[Figure]:
        for name in REGISTRY:
            sequences = self.times(300)
            worlds.do_anything(name, sequences)
            yield Figure(
                what=f"{name}: sequences of calls that separate no twins", good=sequences, of=sequences
            )
            yield worlds.oracle_solves(name, self.times(1_000))
            yield worlds.guessing(name, self.times(20_000))
            yield worlds.nothing_visible(name, self.times(1_000_000))

    def soak(self) -> Iterator[Figure]:
        yield from soak.soak(60.0 * self.soak_minutes, self.folder)

    def repeats(self) -> Iterator[Figure]:
        for reference in self.references.values():
            yield repeat(reference, self.times(15), self.folder)


PARTS: dict[str, Callable[[FullSet], Iterator[Figure]]] = {
    "kills": FullSet.kills,
    "writes": FullSet.writes,
    "damage": FullSet.damage,
    "omissions": FullSet.omissions,
    "signals": FullSet.signals,
    "disk": FullSet.disk,
    "workers": FullSet.workers,
    "malicious": FullSet.malicious,
    "repeats": FullSet.repeats,
    "tracking": FullSet.tracking,
    "equivalence": FullSet.equivalence,
    "worlds": FullSet.worlds,
    "soak": FullSet.soak,
}


def main() -> int:
    """Run the parts that were asked for; 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all parts but the soak")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="these parts")
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes but the soak's")
    parser.add_argument("--soak-minutes", type=float, default=120.0)
    chosen = parser.parse_args()
    if not chosen.full and not chosen.only:
        parser.error("say --full, or --only with some parts")
    parts = chosen.only or [name for name in PARTS if name != "soak"]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        full_set = FullSet(Path(folder), chosen.scale, chosen.soak_minutes)
        for name in parts:
            began = time.monotonic()
            for figure in PARTS[name](full_set):
                seconds, began = time.monotonic() - began, time.monotonic()
                sys.stdout.write(f"{figure.good:4} of {figure.of:4}  {figure.what}  {figure.remarks}\n")
                sys.stdout.flush()
                write_down(figure, seconds)
                failed |= figure.good < figure.of and "baseline" not in figure.what
    return int(failed)


def write_down(figure: Figure, seconds: float) -> None:
    """Put a figure into the table, in the place of the one it had."""
    text = DOCUMENT.read_text(encoding="utf-8")
    rows = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    remarks = " ".join(figure.remarks.split())
    row = f"| {figure.what} | {figure.good} | {figure.of} | {remarks} | {seconds:.0f} |"
    place = next((n for n, line in enumerate(rows) if line.startswith(f"| {figure.what} |")), len(rows))
    rows[place : place + 1] = [row]
    here = f"Python {platform.python_version()}, torch {torch.__version__}, one thread"
    for begin, end, content in (
        (BEGIN, END, "\n".join(["", HEADER, *rows, ""])),
        ("<!-- where -->", "<!-- /where -->", here),
    ):
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{content}{end}{rest.partition(end)[2]}"
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
