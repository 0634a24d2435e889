"""Checkpoints with flipped bits, cut short, exchanged or lost: none may be loaded silently."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from memory_suite.runners.run.folder import RunFolder, RunFolderError
from memory_suite.runners.training.trained_agent import TrainedAgent
from tests.faults.harness import Figure

Damage = Callable[[list[Path], random.Random], list[Path]]
"""Does something to some of these files, the last of which is the latest; says to which."""


def flip_a_bit(files: list[Path], generator: random.Random) -> list[Path]:
    """Of the latest checkpoint."""
    content = bytearray(files[-1].read_bytes())
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    files[-1].write_bytes(content)
    return [files[-1]]


def truncate(files: list[Path], generator: random.Random) -> list[Path]:
    """The latest checkpoint."""
    content = files[-1].read_bytes()
    files[-1].write_bytes(content[: generator.randrange(len(content))])
    return [files[-1]]


def exchange(files: list[Path], generator: random.Random) -> list[Path]:
    """The latest checkpoint and another one; both are whole."""
    other = generator.choice(files[:-1])
    mine, theirs = files[-1].read_bytes(), other.read_bytes()
    files[-1].write_bytes(theirs)
    other.write_bytes(mine)
    return [files[-1], other]


def lose(files: list[Path], generator: random.Random) -> list[Path]:
    """The latest checkpoint, and perhaps others."""
    gone = [files[-1], *generator.sample(files[:-1], generator.randrange(len(files) - 1))]
    for path in gone:
        path.unlink()
    return gone


def flip_a_bit_in_each(files: list[Path], generator: random.Random) -> list[Path]:
    """So that none is left."""
    return [path for file in files for path in flip_a_bit([file], generator)]


def damage(run: Path, kind: Damage, times: int, folder: Path, generator: random.Random) -> Figure:
    """Damage a copy of a run's checkpoints again and again, and ask for the last and for the best.

    Returns:
        Good: neither was one of the damaged files, and a note or a refusal named the file.
    """
    copy = folder / kind.__name__
    shutil.copytree(run, copy)
    run_folder = RunFolder.open(copy)
    files = sorted((copy / "checkpoints").glob("step_*.zip"))
    (copy / "checkpoints" / "best").write_text(f"{files[-1].name}\n")
    good = 0
    problems: list[str] = []
    for _ in range(times):
        damaged = kind(files, generator)
        for read in (run_folder.latest_checkpoint, run_folder.best_checkpoint):
            try:
                checkpoint = read()
                silent = checkpoint.path in damaged or not any(str(files[-1]) in n for n in checkpoint.notes)
            except RunFolderError as error:
                silent = len(damaged) < len(files) or not all(str(path) in str(error) for path in damaged)
            if silent:
                problems.append(f"{read.__name__} with {[path.name for path in damaged]}")
                break
        else:
            good += 1
        for path in damaged:
            shutil.copyfile(run / "checkpoints" / path.name, path)
    what = kind.__name__.replace("_", " ")
    return Figure(
        what=f"damaged checkpoints ({what}): not loaded silently",
        good=good,
        of=times,
        remarks="; ".join(problems[:3]),
    )


def put_in_checkpoints_of_others(run: Path, other: Path, folder: Path) -> Figure:
    """Whole files with the right name and step, of a run with another configuration."""
    good = tried = 0
    for source in sorted((other / "checkpoints").glob("step_*.zip")):
        tried += 1
        copy = folder / f"foreign-{source.stem}"
        shutil.copytree(run, copy)
        target = copy / "checkpoints" / source.name
        shutil.copyfile(source, target)
        (target.parent / "latest").write_text(f"{target.name}\n")
        try:
            TrainedAgent.open(copy, "latest")
        except RunFolderError as error:
            good += str(target) in str(error)
        shutil.rmtree(copy)
    return Figure(what="damaged checkpoints (those of another run): not loaded silently", good=good, of=tried)
