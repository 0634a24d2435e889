"""The same command gives the same numbers as when they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.golden import COMMAND, RUNS, here, measure, recorded


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_is_repeated_to_the_last_digit(name: str, tmp_path: Path) -> None:
    golden = recorded(name)
    if golden["here"] != here():
        pytest.skip(f"recorded with {golden['here']}, this is {here()}")
    found = measure(name, tmp_path)
    for number, (row, other) in enumerate(zip(found["rows"], golden["rows"], strict=True)):
        assert row == other, (
            f"update {number} differs; if that is meant: {COMMAND}, and say why in CHANGELOG.md"
        )
    assert found["weights"] == golden["weights"]
