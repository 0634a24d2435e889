"""The command that changes an agent's memory and compares its decisions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from memory_suite.runners import probe_memory, record_episode, train_agent
from memory_suite.runners.training.probing import TIMED_MEMORIES, announce_time


def ask(run: Path, tmp_path: Path, *words: str) -> Any:
    file = tmp_path / "answer.json"
    assert (
        probe_memory.main(["--run", str(run), "--out", str(tmp_path / "p.png"), "--json", str(file), *words])
        == 0
    )
    return json.loads(file.read_text())


def test_a_sweep_writes_a_picture_and_a_ranking(short_run: Path, tmp_path: Path) -> None:
    answer = ask(short_run, tmp_path, "--episode-seed", "4", "--sweep")
    changes = [effect["change"] for effect in answer["ranking"]]
    assert changes == sorted(changes, reverse=True) and len(changes) > 1
    with Image.open(tmp_path / "p.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    assert picture.shape[1] == 1280
    rows = len(changes[:10]) + (answer["all_cues"] is not None)
    assert picture.shape[0] > 66 * rows


def test_a_sweep_prints_its_size_and_the_time_left(
    short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = ask(short_run, tmp_path, "--episode-seed", "4")
    count = len(answer["ranking"])
    assert count > TIMED_MEMORIES
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"dropping {count} memories in turn")
    assert re.fullmatch(r"about \d+ s left", lines[1])


def test_the_time_left_is_printed_once() -> None:
    notes: list[str] = []
    times = iter([100.0, 106.0])
    display: Any = SimpleNamespace(note=notes.append)
    watch = announce_time(display, lambda: next(times))
    for answered in range(45):
        watch(answered, 44)
    assert notes[1:] == ["about 1 min 20 s left"]


def test_single_changes(short_run: Path, tmp_path: Path) -> None:
    seed = ["--episode-seed", "4", "--at", "3"]
    dropped = ask(short_run, tmp_path, *seed, "--drop", "0,2")
    assert dropped["births"] == [0, 2] and dropped["edited_at"] == 3
    cues = ask(short_run, tmp_path, *seed, "--drop", "cue")
    assert cues["is_cue"] and 0 in cues["births"]
    swapped = ask(short_run, tmp_path, *seed, "--swap", "0=2")
    assert swapped["births"] == [0, 2]
    foreign = ask(short_run, tmp_path, *seed, "--swap", "cue=seed5:cue")
    assert foreign["births"] == cues["births"]
    record = tmp_path / "other.npz"
    assert record_episode.main(["--run", str(short_run), "--seed", "5", "--out", str(record)]) == 0
    inserted = ask(short_run, tmp_path, *seed, "--inject", f"{record}:0", "--layer", "1")
    assert inserted["births"] == [0]
    same = ask(short_run, tmp_path, *seed, "--swap", f"cue={record}:cue")
    assert same["choice_after"] == pytest.approx(foreign["choice_after"], abs=1e-6)


def test_a_survey_counts(short_run: Path, tmp_path: Path) -> None:
    answer = ask(short_run, tmp_path, "--episodes", "4")
    assert len(answer["rows"]) == 4
    assert answer["cue_first"] == np.mean([row["cue_first"] for row in answer["rows"]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "--drop", "1"], "exclude each other"),
        (["--drop", "first"], "such as 3 or 0,1"),
        (["--drop", "17", "--at", "3"], "not retained at step 3"),
        (["--swap", "3"], "STEP=STEP"),
        (["--inject", "3"], "RECORD:STEP"),
        (["--inject", "nothing.npz:3"], "no file nothing.npz"),
        (["--episodes", "1"], "at least 2"),
    ],
)
def test_invalid_options_are_refused(
    words: list[str], message: str, short_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        probe_memory.main(["--run", str(short_run), "--out", str(tmp_path / "p.png"), *words])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.learning
def test_decisions_in_a_solved_corridor_depend_on_the_cue(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "--env",
        "corridor-short",
        "--run",
        str(run),
        "--track",
        "disabled",
        "--evaluation.episodes",
        "100",
        "--stop.success",  # while several memories of the ball are left, exchanging one turns fewer decisions
        "none",
        "--total-steps",
        "250000",
    ]
    assert train_agent.main(words) == 0
    answer = ask(run, tmp_path, "--episodes", "40")
    assert answer["cue_first"] >= 0.9
    assert answer["turned"] >= 0.9
