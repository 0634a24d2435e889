"""The same command gives the same numbers as when they were recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.golden import (
    COMMAND,
    ELSEWHERE_UPDATES,
    RUNS,
    TOLERANCE,
    measure,
    processor,
    recorded,
    versions,
)


@pytest.mark.parametrize("name", RUNS)
def test_a_golden_run_is_repeated(name: str, tmp_path: Path) -> None:
    """To the last digit on the processor it was recorded on, elsewhere to within rounding."""
    golden = recorded(name)
    if golden["versions"] != versions():
        pytest.skip(f"recorded with {golden['versions']}, this is {versions()}")
    found = measure(name, tmp_path)
    exact = golden["processor"] == processor()
    assert len(found["rows"]) == len(golden["rows"])
    compared = len(golden["rows"]) if exact else ELSEWHERE_UPDATES.get(name, len(golden["rows"]))
    for number in range(compared):
        row, other = found["rows"][number], golden["rows"][number]
        assert row == (other if exact else pytest.approx(other, **TOLERANCE)), (
            f"update {number} differs; if that is meant: {COMMAND}, and say why in CHANGELOG.md"
        )
    if exact:
        assert found["weights"] == golden["weights"]
