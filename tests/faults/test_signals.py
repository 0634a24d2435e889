"""Whoever asks a training to stop gets a checkpoint, and the run as it would have been."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.harness import Reference
from tests.faults.signals import KINDS, interrupt, save_on_request


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trainer", ["ppo", "a2c"])
def test_a_signal_is_obeyed(
    kind: str, trainer: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    interrupt(references[trainer], kind, 1, tmp_path, random.Random(0)).check()


def test_a_checkpoint_is_written_on_request(references: dict[str, Reference], tmp_path: Path) -> None:
    first, last = save_on_request(references["ppo"], tmp_path)
    assert 0 < first < last == 768
