"""Trainings in forked processes, and the comparison of one that was disturbed with one that was not.

The fork server is multiprocessing's: a process that has imported everything and trained nothing, so that a
child begins within milliseconds and inherits no thread.
"""

from __future__ import annotations

import contextlib
import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from memory_suite.envs.instruction import grammar
from memory_suite.runners.run.folder import Checkpoint, RunFolder
from tests.faults import children

PATIENCE_S = 120.0
"""no child of these tests takes longer, however busy the machine is"""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.faults.children"])

SMALL = (
    *("--env", "corridor-short", "--num-envs", "8", "--track", "disabled", "--checkpoint-every", "2"),
    *("--policy.width", "16", "--policy.num-layers", "2", "--policy.num-heads", "2"),
    *("--ppo.n-steps", "8", "--ppo.batch-size", "32"),
    *("--a2c.n-steps", "8", "--total-steps", "768", "--evaluation.episodes", "4", "--stop.success", "none"),
    *("--stop.min-episodes", "1", "--env-arg", "max_length=4"),
    *("--memory.max-span", "64", "--memory.ramp", "4", "--memory.initial-span-fraction", "0.2"),
    *("--memory.random-shortening", "true"),
)
"""Twelve updates in which everything that a checkpoint holds takes part."""

SMALL_TEXT = (
    *("--task", "text", "--data", grammar.__file__, "--num-rows", "4", "--block-size", "16"),
    *("--total-updates", "12", "--optimizer.warmup-updates", "3", "--accumulation", "2"),
    *("--model.width", "16", "--model.num-heads", "2", "--model.dropout", "0.1", "--model.layer-drop", "0.2"),
    *("--memory.max-span", "64", "--memory.ramp", "4", "--memory.random-shortening", "true"),
    *("--held-out.every", "1", "--held-out.tokens", "256", "--held-out.final-tokens", "1024"),
    *("--optimizer.learning-rate", "0.1", "--optimizer.schedule", "constant"),
    *("--track", "disabled", "--checkpoint-every", "2"),
)
"""The same for a byte-level language model; any file will do as its text. So fast a learner is not always at
its best at the end."""

TRAINERS = {
    "ppo": (*SMALL, "--algo", "ppo"),
    "a2c": (*SMALL, "--algo", "a2c"),
    "text": SMALL_TEXT,
}
"""command lines without a run folder"""

_CLOCK = ("time/fps", "time/time_elapsed", "time/iterations", "time/bookkeeping_share")
"""metrics of the process, not of the run"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """How often something held."""

    what: str
    good: int
    of: int
    remarks: str = ""

    def check(self) -> None:
        """Raise AssertionError unless it always held."""
        assert self.good == self.of > 0, f"{self.what}: {self.good} of {self.of}. {self.remarks}"


class Child:
    """A function of `tests.faults.children` (or any other that pickles) in a process of its own."""

    def __init__(self, function: Callable[..., int], *arguments: Any, log: Path) -> None:
        """Start it; `log` gets what it prints."""
        self.log = log
        self._process = _CONTEXT.Process(target=children.run, args=(function, arguments, str(log)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def runs_for(self, seconds: float) -> bool:
        """Wait so long; whether it is still running then."""
        self._process.join(seconds)
        return self._process.exitcode is None

    def runs_until(self, condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
        """Look every millisecond; whether the condition came true before the child ended."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.wait(0.0)
            if not self.runs_for(0.001):
                return condition()
        return True

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has just ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Its exit code; minus the signal's number if a signal ended it.

        Raises:
            TimeoutError: it has not ended by then; it is killed.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {seconds:g} s:\n{self.said()}")
        return self._process.exitcode

    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """All that a run leaves which may not depend on how often it was disturbed."""

    rows: list[dict[str, Any]]
    tensors: dict[str, bytes]
    """of the last checkpoint: weights, optimizer, random generators, memory, environments..."""
    data: dict[str, Any]
    """the rest of that checkpoint"""
    best: str
    evaluation: dict[str, Any]


def result_of(run: Path) -> Result:
    """What a finished run left."""
    checkpoint = RunFolder.open(run).latest_checkpoint()
    assert not checkpoint.notes, checkpoint.notes
    evaluation = json.loads((run / "evaluation.json").read_text())
    return Result(
        rows=rows_of(run),
        tensors={name: bits(tensor) for name, tensor in checkpoint.tensors.items()},
        data=_without_clocks(checkpoint),
        best=(run / "checkpoints" / "best").read_text(),
        evaluation=_without_seconds(evaluation),
    )


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl without what the clock decides."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in _CLOCK} for line in lines]


def bits(tensor: Tensor) -> bytes:
    """Type, shape and every bit: 0.0 is not -0.0 here."""
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + tensor.contiguous().numpy().tobytes()


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(entry) for key, entry in value.items() if "second" not in key}
    return [_without_seconds(entry) for entry in value] if isinstance(value, list) else value


def _without_clocks(checkpoint: Checkpoint) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(checkpoint.data)
    del data["runner"]["metrics_offset"]  # rows are as long as the numbers of the clock in them
    for episode in data["agent"]["training"]["episodes"] if "agent" in data else []:
        del episode["t"]
    return data


def differences(mine: Result, theirs: Result) -> list[str]:
    """Names of what is not bit for bit the same."""
    found: list[str] = []
    if len(mine.rows) != len(theirs.rows):
        found.append(f"{len(mine.rows)} rows instead of {len(theirs.rows)}")
    for number, (row, other) in enumerate(zip(mine.rows, theirs.rows, strict=False)):
        found += [f"row {number}: {key}" for key in row.keys() | other.keys() if _differ(row, other, key)]
    names = sorted(mine.tensors.keys() | theirs.tensors.keys())
    found += [name for name in names if _differ(mine.tensors, theirs.tensors, name)]
    found += [f"data{path}" for path in _unequal(mine.data, theirs.data)]
    if mine.best != theirs.best:
        found.append("best")
    if mine.evaluation != theirs.evaluation:
        found.append("evaluation")
    return found


def _differ(mine: dict[str, Any], theirs: dict[str, Any], key: str) -> bool:
    return key not in mine or key not in theirs or bool(mine[key] != theirs[key])


def _unequal(mine: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Paths at which two trees of plain types differ."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted(mine.keys() | theirs.keys()):
            yield from _unequal(mine.get(key), theirs.get(key), f"{path}/{key}")
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            yield from _unequal(*pair, f"{path}/{index}")
    elif mine != theirs:
        yield path


def leftovers(run: Path) -> list[str]:
    """Temporary files that nobody removed."""
    return sorted(path.name for path in run.rglob("*.tmp-*"))


@dataclass(frozen=True, slots=True)
class Reference:
    """A run that nobody disturbed."""

    words: tuple[str, ...]
    run: Path
    result: Result
    seconds: float

    @classmethod
    def make(cls, words: Sequence[str], run: Path, train: Callable[..., int] = children.train) -> Reference:
        """Train it, in a process of its own as all others."""
        Child(
            children.nothing, log=run.with_suffix(".log")
        ).wait()  # the fork server has begun when this ends
        began = time.monotonic()
        child = Child(train, [*words, "--run", str(run)], log=run.with_suffix(".log"))
        code = child.wait()
        assert code == 0, f"exit code {code}:\n{child.said()}"
        return cls(tuple(words), run, result_of(run), time.monotonic() - began)

    def compare(self, run: Path) -> list[str]:
        """What differs in a run that was disturbed; empty: nothing."""
        try:
            found = differences(result_of(run), self.result)
        except (OSError, ValueError) as error:
            return [f"{type(error).__name__}: {error}"]
        return found + leftovers(run)


def words_to_go_on(reference: Reference, run: Path) -> list[str]:
    """What continues a run, or begins it anew if it was killed before its first checkpoint."""
    if RunFolder(run).has_checkpoint:
        return ["--resume", str(run)]
    shutil.rmtree(run, ignore_errors=True)
    return [*reference.words, "--run", str(run)]


def repeat(reference: Reference, times: int, folder: Path) -> Figure:
    """The same command again. Good: runs that left the same as the reference."""
    good = 0
    for number in range(times):
        again = Reference.make(reference.words, folder / f"{reference.run.name}-again-{number}")
        good += not reference.compare(again.run)
        shutil.rmtree(again.run)
    return Figure(
        what=f"the same seed again, {reference.run.name}: the same weights, states, rows and evaluation",
        good=good,
        of=times,
    )


KILLS_PER_RUN = 4
"""so few that a wrong resume is not lost among many"""


def kill_and_resume(reference: Reference, resumes: int, folder: Path, generator: random.Random) -> Figure:
    """SIGKILL trainings at any moment and resume them, until so many resumes have been checked.

    Args:
        reference: the run that nobody disturbed.
        resumes: wanted; a kill before the first checkpoint leaves nothing to resume and does not count.
        folder: for the runs.
        generator: chooses the moments.

    Returns:
        Good: resumes of runs that ended as the reference did, bit for bit, with every row once.
    """
    good = done = kills = 0
    problems: list[str] = []
    for number in range(10 * resumes):
        if done >= resumes:
            break
        run = folder / f"{reference.run.name}-{number}"
        log = run.with_suffix(".log")
        resumed = 0
        code: int | None = None
        for attempt in range(KILLS_PER_RUN + 1):
            words = words_to_go_on(reference, run)
            resumed += words[0] == "--resume"
            child = Child(children.train, words, log=log)
            if attempt < KILLS_PER_RUN and child.runs_for(generator.uniform(0.0, reference.seconds)):
                child.send(signal.SIGKILL)
                code = child.wait()
                kills += code == -signal.SIGKILL
            else:
                code = child.wait()
            if code != -signal.SIGKILL:
                break
        found = [f"exit code {code}:\n{child.said()}"] if code else reference.compare(run)
        done += resumed
        good += 0 if found else resumed
        if found:
            problems.append(f"{run.name} after {resumed} resumes: {found[:5]}")
        else:
            shutil.rmtree(run)
    return Figure(
        what=f"SIGKILL at random moments, {reference.run.name}: resumes bit for bit",
        good=good,
        of=done,
        remarks="; ".join(problems) or f"{kills} kills",
    )
