"""Whatever happened to the files of a run, what is loaded is what was saved, or the user is told."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from memory_suite.runners import train_agent
from tests.faults import children, damage
from tests.faults.harness import Child, Reference


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (damage.flip_a_bit, 150),
        (damage.truncate, 60),
        (damage.exchange, 10),
        (damage.lose, 10),
        (damage.flip_a_bit_in_each, 10),
    ],
)
def test_damage_is_never_silent(
    kind: damage.Damage, times: int, references: dict[str, Reference], tmp_path: Path
) -> None:
    damage.damage(references["ppo"].run, kind, times, tmp_path, random.Random(0)).check()


def test_checkpoints_of_another_run_are_refused(references: dict[str, Reference], tmp_path: Path) -> None:
    damage.put_in_checkpoints_of_others(references["ppo"].run, references["a2c"].run, tmp_path).check()


def test_a_resumed_training_says_what_it_passed_over(
    references: dict[str, Reference], tmp_path: Path
) -> None:
    reference = references["ppo"]
    run = tmp_path / "run"
    shutil.copytree(reference.run, run)
    files = sorted((run / "checkpoints").glob("step_*.zip"))
    damage.flip_a_bit(files, random.Random(1))
    child = Child(children.train, ["--resume", str(run)], log=tmp_path / "log")
    assert child.wait() == 0
    assert f"{files[-1].name} cannot be loaded" in " ".join(child.said().split())
    assert reference.compare(run) == []


def test_the_evaluation_says_what_it_passed_over(
    references: dict[str, Reference], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(references["ppo"].run, run)
    best = run / "checkpoints" / "step_000000128.zip"
    (run / "checkpoints" / "best").write_text(f"{best.name}\n")
    best.unlink()
    assert train_agent.main(["--resume", str(run)]) == 0
    assert "it is missing, although" in " ".join(capsys.readouterr().out.split())


def test_a_folder_of_another_run_is_refused_with_the_option(
    references: dict[str, Reference], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(references["ppo"].run, run)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(references["a2c"].run / "checkpoints", run / "checkpoints")
    with pytest.raises(SystemExit) as stopped:
        train_agent.main(["--resume", str(run)])
    assert stopped.value.code == 2
    assert "step_000000768.zip is of another run: algo was a2c there" in capsys.readouterr().err
