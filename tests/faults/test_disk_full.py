"""A full disk costs what could not be written, and nothing that was."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.disk_full import fill_the_disk, fill_the_disk_with_a_video
from tests.faults.harness import Reference


@pytest.mark.parametrize("where", ["checkpoint", "metrics"])
def test_a_full_disk_stops_training_with_a_message(
    where: str, references: dict[str, Reference], tmp_path: Path
) -> None:
    fill_the_disk(references["a2c"], where, 3, tmp_path).check()


def test_no_space_for_a_video_does_not_stop_training(
    references: dict[str, Reference], tmp_path: Path
) -> None:
    fill_the_disk_with_a_video(references["a2c"], tmp_path).check()
