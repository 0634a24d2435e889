"""Nothing that a resume needs could be left out of a checkpoint without these tests failing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import TRAINERS, Reference
from tests.faults.omission import (
    DERIVED,
    constant,
    leave_out_each_part,
    omissions,
    reference_with_draws,
    resume,
)


@pytest.fixture(scope="module", params=TRAINERS)
def drawing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    trainer: str = request.param
    return reference_with_draws(trainer, tmp_path_factory.mktemp("drawing") / trainer)


def test_what_a_checkpoint_holds_is_known(drawing: Reference) -> None:
    """A new part belongs to one of the lists, or must be noticed."""
    found = omissions(drawing.run)
    assert {name for name, pairs in found.items() if not pairs} == constant(drawing.run.name)
    if drawing.run.name != "text":
        assert found.keys() >= DERIVED.keys()


def test_with_everything_nothing_is_noticed(drawing: Reference, tmp_path: Path) -> None:
    checkpoints = sorted((drawing.run / "checkpoints").glob("step_*.zip"))
    for resumed in checkpoints[1::4]:
        assert resume(drawing, resumed, None, tmp_path) == []


PREFIXES = {"ppo": ("",), "text": ("",), "a2c": ("agent/policy", "agent/optimizer", "agent/forgetting")}
"""PPO and text: everything; A2C: where it differs, the full set has the rest too"""


def test_each_part_that_is_left_out_is_noticed(drawing: Reference, tmp_path: Path) -> None:
    trainer = drawing.run.name
    leave_out_each_part(drawing, trainer, tmp_path, PREFIXES[trainer]).check()
