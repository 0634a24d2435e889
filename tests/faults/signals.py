"""Signals to a training at any moment: it saves and leaves, or saves and goes on, or leaves at once."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.signals import EXIT_SAVED
from tests.faults import children
from tests.faults.harness import Child, Figure, Reference

WITHIN_S = 3.0
"""from the signal to the end of the process"""

BETWEEN_S = 0.01
"""between two signals; the system makes one of two that come closer"""

KINDS: dict[str, tuple[list[signal.Signals], tuple[int, ...]]] = {
    "SIGTERM": ([signal.SIGTERM], (EXIT_SAVED,)),
    "SIGINT": ([signal.SIGINT], (EXIT_SAVED,)),
    "double SIGINT": ([signal.SIGINT, signal.SIGINT], (128 + signal.SIGINT, EXIT_SAVED)),
    "SIGUSR1": ([signal.SIGUSR1], (0,)),
}
"""what is sent, and the exit codes that may follow; it may have saved before it is asked a second time"""


def interrupt(reference: Reference, kind: str, times: int, folder: Path, generator: random.Random) -> Figure:
    """Send signals to a training between its first checkpoint and its end, then resume it.

    Returns:
        Good: it left with the right exit code in time (after SIGUSR1: went on, with a checkpoint of that
        moment) and, resumed, ended with the weights, states and rows of the reference. Which checkpoint is
        the best one may differ: there was one more to choose from.
    """
    numbers, expected = KINDS[kind]
    good = done = 0
    slowest = 0.0
    problems: list[str] = []
    while done < times:
        run = folder / f"{kind.replace(' ', '-')}-{done}"
        log = run.with_suffix(".log")
        child = Child(children.train, [*reference.words, "--run", str(run)], log=log)
        assert child.runs_until(RunFolder(run).checkpoints.joinpath("latest").exists), child.said()
        reached = child.runs_for(generator.uniform(0.0, 0.5 * reference.seconds))
        saved_before = RunFolder(run).latest_checkpoint().step
        sent = time.monotonic()
        for count, number in enumerate(numbers if reached else []):
            time.sleep(BETWEEN_S if count else 0.0)
            child.send(number)
        code = child.wait()
        took = time.monotonic() - sent
        if not reached or (code == 0 and kind != "SIGUSR1"):
            shutil.rmtree(run)
            continue  # it had ended, or was past the last moment to listen
        done += 1
        found: list[str] = []
        if code not in expected:
            found.append(f"exit code {code}, not in {expected}")
        if kind == "SIGUSR1":
            took = 0.0
        else:
            if RunFolder.open(run).latest_checkpoint().step < saved_before:
                found.append("a checkpoint is gone")
            again = Child(children.train, ["--resume", str(run)], log=log)
            found += [f"resumed: exit code {code}\n{again.said()}" for code in [again.wait()] if code]
        found += [name for name in reference.compare(run) if name not in _BEST]
        slowest = max(slowest, took)
        if took > WITHIN_S:
            found.append(f"it took {took:.1f} s")
        good += not found
        problems += [f"{run.name}: {found[:5]}"] if found else []
        shutil.rmtree(run)
    remarks = "" if kind == "SIGUSR1" else f"slowest {slowest:.2f} s"
    return Figure(
        what=f"{kind}: left as promised, resumed bit for bit",
        good=good,
        of=done,
        remarks="; ".join(problems) or remarks,
    )


_BEST = ("best", "evaluation", *(f"data/runner/best_score/{index}" for index in range(5)))


def save_on_request(reference: Reference, folder: Path) -> list[int]:
    """The steps of the checkpoints of a run that makes none by itself, but is sent SIGUSR1 once."""
    run = folder / "asked"
    words = [*reference.words, "--checkpoint-every", "99", "--run", str(run)]
    child = Child(children.train, words, log=folder / "asked.log")
    metrics = RunFolder(run).metrics_file
    assert child.runs_until(lambda: metrics.exists() and metrics.stat().st_size > 0), child.said()
    child.send(signal.SIGUSR1)
    assert child.wait() == 0, child.said()
    assert not [name for name in reference.compare(run) if name not in _BEST]
    return sorted(int(path.stem[5:]) for path in (run / "checkpoints").glob("step_*.zip"))
