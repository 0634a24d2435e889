"""SIGKILL while a checkpoint is being written; the same done to a plain `torch.save` for comparison."""

from __future__ import annotations

import contextlib
import functools
import pickle
import random
import signal
import time
import zipfile
from pathlib import Path

import torch

from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.run.folder import RunFolder
from tests.faults import children
from tests.faults.harness import Child, Figure, leftovers

NUMBERS = 10_000_000
"""a checkpoint of 40 MB"""


def kill_inside_writes(kills: int, folder: Path, generator: random.Random) -> Figure:
    """Kill between the first byte of a checkpoint and the last; what is there afterwards must be whole.

    Returns:
        Good: kills after which the last checkpoint was read without a note, held what belongs to its step,
        and opening the folder to resume removed what was half written.
    """
    run = folder / "run"
    run_folder = RunFolder.create(TrainConfig(run=run))
    size = run_folder.save_checkpoint(0, {"x": torch.zeros(NUMBERS)}, {"step": 0}).stat().st_size
    good = inside = step = 0
    problems: list[str] = []
    while inside < kills:
        child = Child(children.save_checkpoints, str(run), step + 1, NUMBERS, log=folder / "log")
        written = functools.partial(_is_written, run_folder.checkpoints, generator.randrange(size))
        assert child.runs_until(written), child.said()
        child.send(signal.SIGKILL)
        child.wait()
        if not any(".zip.tmp-" in name for name in leftovers(run)):
            continue  # this one had just been finished
        inside += 1
        checkpoint = RunFolder.open(run, to_resume=True).latest_checkpoint()
        whole = bool((checkpoint.tensors["x"] == float(checkpoint.step)).all())
        if whole and checkpoint.data == {"step": checkpoint.step} and not (checkpoint.notes + leftovers(run)):
            good += 1
        else:
            problems.append(f"step {checkpoint.step}: {checkpoint.notes} {leftovers(run)}")
        step = checkpoint.step
    return Figure(
        what="SIGKILL inside a 40 MB checkpoint write: a whole checkpoint is left",
        good=good,
        of=inside,
        remarks="; ".join(problems),
    )


def kill_naive_writes(kills: int, folder: Path, generator: random.Random) -> Figure:
    """The baseline: how many kills leave a readable file if it is written in place."""
    file = folder / "naive.pt"
    torch.save({"x": torch.zeros(NUMBERS)}, file)
    began = time.monotonic()
    torch.save({"x": torch.zeros(NUMBERS)}, file)
    seconds = time.monotonic() - began
    readable = 0
    for _ in range(kills):
        time.sleep(0.02)  # the clock of the file system has moved on
        before = time.time()
        child = Child(children.save_naively, str(file), NUMBERS, log=folder / "log")
        assert child.runs_until(functools.partial(_is_written_after, file, before)), child.said()
        time.sleep(generator.uniform(0.0, 2.0 * seconds))
        child.send(signal.SIGKILL)
        child.wait()
        try:
            torch.load(file)
            readable += 1
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
            torch.save({"x": torch.zeros(NUMBERS)}, file)
    return Figure(
        what="the same with a plain `torch.save`: a readable file is left (baseline, not ours)",
        good=readable,
        of=kills,
    )


def _is_written(checkpoints: Path, size: int) -> bool:
    """Whether so many bytes of an unfinished checkpoint are there."""
    for path in checkpoints.glob("*.zip.tmp-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been renamed
            return path.stat().st_size > size
    return False


def _is_written_after(file: Path, moment: float) -> bool:
    return file.stat().st_mtime > moment
