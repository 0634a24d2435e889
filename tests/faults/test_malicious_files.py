"""No file runs code, however it is made."""

from __future__ import annotations

import pickle
from pathlib import Path

from tests.faults.malicious import Exploit, try_all


def test_no_file_runs_code(tmp_path: Path) -> None:
    figure = try_all(tmp_path)
    figure.check()
    assert figure.of >= 30


def test_the_exploit_would_leave_its_mark(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()
