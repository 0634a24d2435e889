"""Weights & Biases may lack, lose or break anything: training ends as it would without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import Reference
from tests.faults.tracking import track

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")

SHORT = ["no key", "connection refused", "gone for good", "process killed", "process hangs", "disk full"]
"""the others, of the same kinds, are in the full set"""


@pytest.mark.parametrize("name", SHORT)
def test_training_ends_as_without(name: str, references: dict[str, Reference], tmp_path: Path) -> None:
    track(references["a2c"], name, 1, tmp_path).check()
