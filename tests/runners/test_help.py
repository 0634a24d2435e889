"""`--help` of every command explains the options of that command, and needs nothing else to be right."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from memory_suite.configs.command_line import EXIT_BROKEN_PIPE

RUNNERS = Path(__file__).resolve().parents[2] / "runners"
OWN_OPTIONS = {
    "analyse_sequence": "--text",
    "benchmark": "--parts",
    "evaluate_agent": "--episodes",
    "evaluate_sequence": "--split",
    "play": "--env",
    "probe_memory": "--episodes",
    "ray_ranks": "--ranks-per-node",
    "record_episode": "--out",
    "render_episode": "--out",
    "report": "--out",
    "sweep_length": "--train-lengths",
    "sweep_memory": "--sizes",
    "train_agent": "--total-steps",
    "train_sequence": "--total-updates",
    "view_episode": "--out",
}


def test_no_command_is_missing_here() -> None:
    assert set(OWN_OPTIONS) == {
        path.stem for path in RUNNERS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")
    }


@pytest.mark.parametrize("name", OWN_OPTIONS)
@pytest.mark.parametrize("words", [["--help"], ["--no-such-option", "3", "-h"]])
def test_help_names_the_options_of_the_command(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"memory_suite.runners.{name}").main()
    assert left.value.code == 0
    assert OWN_OPTIONS[name] in capsys.readouterr().out


def test_a_reader_who_leaves_early_sees_no_traceback() -> None:
    words = [sys.executable, str(RUNNERS / "train_agent.py"), "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate()[1] == b""
    assert process.returncode == EXIT_BROKEN_PIPE
