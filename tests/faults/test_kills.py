"""Killed at any moment and resumed, a run ends as if nothing had happened."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.harness import TRAINERS, Reference, differences, kill_and_resume, result_of

KILLS = int(os.environ.get("FAULT_KILLS", "6"))
"""resumes after a kill that are checked for each trainer"""


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_killed_run_is_resumed_bit_for_bit(
    trainer: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    kill_and_resume(references[trainer], KILLS, tmp_path, random.Random(0)).check()


def test_the_comparison_sees_one_bit(references: dict[str, Reference]) -> None:
    """And the reference is no run in which nothing happens."""
    mine, theirs = (result_of(references["ppo"].run) for _ in range(2))
    assert differences(mine, theirs) == []
    name = "/agent/policy/encoder.layers.0.weight"
    name = name if name in mine.tensors else next(iter(sorted(mine.tensors)))
    changed = bytearray(mine.tensors[name])
    changed[-1] ^= 1
    mine.tensors[name] = bytes(changed)
    mine.rows[3]["train/loss"] += 1e-16
    del mine.rows[-1]
    assert differences(mine, theirs) == ["11 rows instead of 12", "row 3: train/loss", name]
