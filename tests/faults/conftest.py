"""Runs that the fault tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import TRAINERS, Reference


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reference]:
    """An undisturbed run of each trainer, with every checkpoint kept."""
    folder: Path = tmp_path_factory.mktemp("references")
    return {
        name: Reference.make([*words, "--keep-checkpoints", "99"], folder / name)
        for name, words in TRAINERS.items()
    }
