"""Whoever is killed while writing a checkpoint leaves the one before it."""

from __future__ import annotations

import random
from pathlib import Path

from tests.faults.checkpoint_write import kill_inside_writes


def test_a_kill_inside_a_large_write_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    kill_inside_writes(5, tmp_path, random.Random(0)).check()
