"""A test of the test: each part of a checkpoint is left out on resume, and the comparison must see it.

Left out means: as it was in an earlier checkpoint of the same run. That has the right form whatever the part
is, and is what a program resumes with that forgets to save it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memory_suite.agents.serialization.archive import read_archive
from memory_suite.agents.serialization.state_tree import flatten, unflatten
from tests.faults import children
from tests.faults.harness import TRAINERS, Child, Figure, Reference, bits

OPENED = (
    "agent",
    "agent/counters",
    "agent/optimizer",
    "agent/forgetting",
    "agent/training",
    "agent/training/env",
    "agent/training/memory_statistics",
    "agent/training/random",
    "runner",
    "trainer",
    "trainer/shards",
    "trainer/shards/0",
    "trainer/shards/0/random",
)
"""nodes of the tree whose entries are parts of their own"""

CONSTANT = {
    "agents": {
        *("agent/algorithm", "agent/settings", "agent/observation_space", "agent/action_space"),
        *("agent/n_envs", "agent/counters/_episode_num", "agent/counters/_total_timesteps"),
        *("runner/threads", "runner/solved_by", "runner/stage", "runner/config", "runner/evaluating"),
        *("runner/evaluated_at", "agent/forgetting/total", "agent/forgetting/squares"),
    },
    "sequences": {
        *("trainer/shards/0/random/python", "trainer/shards/0/random/numpy"),
        *("runner/threads", "runner/config"),
    },
}
"""the same in every checkpoint of these runs; other tests resume runs in which they are not"""

DERIVED = {
    "agent/counters/_current_progress_remaining": "computed from the steps before it is used",
    "agent/optimizer/param_groups": "its learning rate is computed from the steps before it is used",
    "agent/training/shortening": "drawn anew",
    "runner/step": "without it the checkpoint is written a second time, with the same content",
}
"""parts that a resumed run does not need, and why"""


def reference_with_draws(trainer: str, run: Path) -> Reference:
    """An undisturbed run that uses every random generator, with all its checkpoints."""
    words = [*TRAINERS[trainer], "--checkpoint-every", "1", "--keep-checkpoints", "99"]
    return Reference.make(words, run, children.train_with_draws)


def constant(trainer: str) -> set[str]:
    """Parts of this trainer's checkpoints that are always the same."""
    return CONSTANT["sequences" if trainer == "text" else "agents"]


def parts_of(tree: dict[str, Any] | list[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of a checkpoint's tree by its path."""
    for key, value in enumerate(tree) if isinstance(tree, list) else tree.items():
        path = f"{prefix}{key}"
        if path in OPENED:
            yield from parts_of(value, f"{path}/")
        else:
            yield path, value


def omissions(run: Path) -> dict[str, list[tuple[Path, Path]]]:
    """For each part, the checkpoints to resume from, with the oldest one in which the part was different.

    Those in the middle come first: something has happened before them, and something will.
    """
    parts = {path: _parts_in(path) for path in sorted((run / "checkpoints").glob("step_*.zip"))}
    paths = list(parts)
    middle = sorted(paths[1:-1], key=lambda path: abs(paths.index(path) - len(paths) // 2))
    found: dict[str, list[tuple[Path, Path]]] = {name: [] for name in parts[paths[0]]}
    for name, pairs in found.items():
        for resumed in middle:
            older = paths[: paths.index(resumed)]
            stale = next((path for path in older if parts[path][name] != parts[resumed][name]), None)
            if stale is not None:
                pairs.append((resumed, stale))
    return found


def _parts_in(path: Path) -> dict[str, tuple[dict[str, bytes], Any]]:
    tensors, stored = read_archive(path)
    parts: dict[str, tuple[dict[str, bytes], Any]] = {}
    for name, value in parts_of(unflatten(tensors, stored["content"])):
        inner, data = flatten({"part": value})
        parts[name] = ({key: bits(tensor) for key, tensor in inner.items()}, data)
    return parts


def resume(reference: Reference, resumed: Path, without: tuple[str, Path] | None, folder: Path) -> list[str]:
    """What the comparison sees in a run resumed from one of the reference's checkpoints.

    Args:
        reference: the run that nobody disturbed.
        resumed: the checkpoint; those after it are gone.
        without: a part to leave out, and the checkpoint to take it from; None: nothing.
        folder: for the run.
    """
    run = folder / "resumed"
    shutil.copytree(reference.run, run)
    for path in (run / "checkpoints").glob("step_*.zip"):
        if path.name > resumed.name:
            path.unlink()
    (run / "checkpoints" / "latest").write_text(f"{resumed.name}\n")
    best = reference.run / "checkpoints" / "best"
    if best.read_text().strip() > resumed.name:
        (run / "checkpoints" / "best").unlink()
    (run / "evaluation.json").unlink()
    words, log = ["--resume", str(run)], run.with_suffix(".log")
    if without is None:
        child = Child(children.train_with_draws, words, log=log)
    else:
        child = Child(children.resume_without, words, without[0], str(without[1]), log=log)
    code = child.wait()
    found = [f"exit code {code}"] if code else reference.compare(run)
    shutil.rmtree(run)
    return found


def leave_out_each_part(
    reference: Reference, trainer: str, folder: Path, prefixes: tuple[str, ...] = ("",)
) -> Figure:
    """Good: parts whose absence the comparison noticed in one of the places where they matter."""
    needed = {
        name: pairs
        for name, pairs in omissions(reference.run).items()
        if name not in constant(trainer) and name not in DERIVED and name.startswith(prefixes)
    }
    missed = [
        name
        for name, pairs in needed.items()
        if not any(resume(reference, resumed, (name, stale), folder) for resumed, stale in pairs)
    ]
    return Figure(
        what=f"state omission, {trainer}: dropped parts that are noticed",
        good=len(needed) - len(missed),
        of=len(needed),
        remarks=f"missed: {', '.join(missed)}" if missed else "",
    )
