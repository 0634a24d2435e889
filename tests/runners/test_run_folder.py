"""Run folders: never overwritten, never restarted silently, never without a good checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memory_suite.configs.agent_schema import TrainConfig, load
from memory_suite.runners.run.folder import RunFolder, RunFolderError, write_json_atomically


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(TrainConfig(run=tmp_path / "run", keep_checkpoints=2))


def save(folder: RunFolder, *steps: int, best: int | None = None) -> list[Path]:
    return [
        folder.save_checkpoint(step, {"x": torch.tensor(step)}, {"n": step}, is_best=step == best)
        for step in steps
    ]


def files(folder: RunFolder) -> list[str]:
    return sorted(path.name for path in folder.checkpoints.iterdir())


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_fresh_run_has_its_configuration(folder: RunFolder) -> None:
    assert load(["--config", str(folder.config_file)]) == TrainConfig(keep_checkpoints=2)
    assert folder.name == "run"


def test_default_names_say_what_the_run_is_and_never_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(TrainConfig(env="MemorySuite/Corridor-v0", seed=3)) for _ in range(3)]
    assert len({folder.path for folder in folders}) == 3
    assert all(folder.path.match("runs/MemorySuite-Corridor-v0-ppo-seed3-2*Z*") for folder in folders)


def test_an_empty_folder_may_be_used_and_a_used_one_may_not(tmp_path: Path) -> None:
    config = TrainConfig(run=tmp_path)
    RunFolder.create(config)
    with pytest.raises(RunFolderError, match=f"{tmp_path} is not empty.*--resume {tmp_path}"):
        RunFolder.create(config)
    with pytest.raises(RunFolderError, match="is a file"):
        RunFolder.create(TrainConfig(run=tmp_path / "config.yaml"))


def test_only_run_folders_can_be_opened(folder: RunFolder, tmp_path: Path) -> None:
    assert RunFolder.open(folder.path, keep_checkpoints=2) == folder
    with pytest.raises(RunFolderError, match=r"is not a run folder: it has no config\.yaml"):
        RunFolder.open(tmp_path)
    with pytest.raises(RunFolderError, match="there is no such folder"):
        RunFolder.open(tmp_path / "missing")


def test_the_last_and_the_best_are_kept(folder: RunFolder) -> None:
    save(folder, 100, 200, 300, 400, 500, best=200)
    assert files(folder) == [
        "best",
        "latest",
        "step_000000200.zip",
        "step_000000400.zip",
        "step_000000500.zip",
    ]
    latest, best = folder.latest_checkpoint(), folder.best_checkpoint()
    assert (latest.step, latest.data, latest.tensors["x"].item(), latest.notes) == (500, {"n": 500}, 500, [])
    assert (best.step, best.notes) == (200, [])


def test_a_new_best_lets_the_old_one_go(folder: RunFolder) -> None:
    save(folder, 100, best=100)
    save(folder, 200, 300, best=200)
    assert files(folder) == ["best", "latest", "step_000000200.zip", "step_000000300.zip"]


def test_a_damaged_checkpoint_is_passed_over_aloud(folder: RunFolder) -> None:
    _, *paths = save(folder, 100, 200, 300, best=100)
    damage(paths[1])
    checkpoint = folder.latest_checkpoint()
    assert checkpoint.step == 200
    assert len(checkpoint.notes) == 1
    assert str(paths[1]) in checkpoint.notes[0]
    assert f"using {paths[0]} instead" in checkpoint.notes[0]
    paths[0].write_bytes(b"")
    assert folder.latest_checkpoint().step == 100
    assert len(folder.latest_checkpoint().notes) == 2


def test_a_damaged_best_checkpoint_gives_way_to_the_last(folder: RunFolder) -> None:
    paths = save(folder, 100, 200, 300, best=100)
    damage(paths[0])
    checkpoint = folder.best_checkpoint()
    assert checkpoint.step == 300
    assert "step_000000100.zip" in checkpoint.notes[0]


def test_exchanged_checkpoints_are_passed_over_aloud(folder: RunFolder) -> None:
    paths = save(folder, 100, 200, 300, best=100)
    first = paths[0].read_bytes()
    paths[0].write_bytes(paths[2].read_bytes())
    paths[2].write_bytes(first)
    for checkpoint in (folder.latest_checkpoint(), folder.best_checkpoint()):
        assert checkpoint.step == 200
        assert "so it was renamed or exchanged" in checkpoint.notes[0]


def test_a_lost_checkpoint_is_named(folder: RunFolder) -> None:
    paths = save(folder, 100, 200)
    paths[1].unlink()
    checkpoint = folder.latest_checkpoint()
    assert checkpoint.step == 100
    assert f"{paths[1]} cannot be loaded: it is missing" in checkpoint.notes[0]
    paths[0].unlink()
    with pytest.raises(RunFolderError, match=r"step_000000200\.zip .*it is missing"):
        folder.latest_checkpoint()


def test_without_a_good_checkpoint_it_refuses_and_names_all(folder: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="has no checkpoint yet"):
        folder.latest_checkpoint()
    for path in save(folder, 100, 200):
        damage(path)
    for read in (folder.latest_checkpoint, folder.best_checkpoint):
        with pytest.raises(RunFolderError, match=r"step_000000200\.zip.*step_000000100\.zip"):
            read()


@pytest.mark.parametrize("pointer", [None, b"", b"../../config.yaml", b"step_999999999.zip", b"\xff\x00"])
def test_a_lost_or_wrong_pointer_does_not_matter(folder: RunFolder, pointer: bytes | None) -> None:
    save(folder, 100, 200)
    (folder.checkpoints / "latest").unlink()
    if pointer is not None:
        (folder.checkpoints / "latest").write_bytes(pointer)
        (folder.checkpoints / "best").write_bytes(pointer)
    assert folder.latest_checkpoint().step == 200
    assert folder.best_checkpoint().step == 200


def test_a_checkpoint_that_was_not_yet_pointed_to_is_not_the_latest(folder: RunFolder) -> None:
    """Killed between the two writes: the run goes on from what `latest` names."""
    save(folder, 100, 200)
    (folder.checkpoints / "latest").write_text("step_000000100.zip\n")
    assert folder.latest_checkpoint().step == 100


def test_going_on_from_an_earlier_checkpoint_abandons_the_later_ones(folder: RunFolder) -> None:
    paths = save(folder, 100, 200, 300, best=100)
    damage(paths[2])
    assert folder.latest_checkpoint().step == 200
    save(folder, 250)
    assert files(folder) == [
        "best",
        "latest",
        "step_000000100.zip",
        "step_000000200.zip",
        "step_000000250.zip",
    ]
    assert folder.latest_checkpoint().notes == []


def test_a_nan_does_not_replace_a_good_checkpoint(folder: RunFolder) -> None:
    save(folder, 100)
    with pytest.raises(ValueError, match="'x' holds NaN"):
        folder.save_checkpoint(200, {"x": torch.tensor(float("nan"))}, {})
    assert folder.latest_checkpoint().step == 100


def test_an_archive_that_is_no_checkpoint_is_passed_over(folder: RunFolder) -> None:
    from memory_suite.agents.serialization.archive import write_archive

    save(folder, 100)
    write_archive(folder.checkpoints / "step_000000200.zip", {}, {})
    (folder.checkpoints / "latest").write_text("step_000000200.zip\n")
    assert "it lacks 'step'" in folder.latest_checkpoint().notes[0]


def test_killed_before_the_first_checkpoint_was_pointed_to_it_is_still_the_best(folder: RunFolder) -> None:
    save(folder, 100, best=100)
    for pointer in ("best", "latest"):
        (folder.checkpoints / pointer).unlink()
    reopened = RunFolder.open(folder.path, keep_checkpoints=2)
    assert not (folder.checkpoints / "best").exists(), "it may be about to be written"
    reopened = RunFolder.open(folder.path, keep_checkpoints=2, to_resume=True)
    save(reopened, 200, 300, 400)
    assert reopened.best_checkpoint().step == 100


def test_leftovers_of_dead_processes_are_removed_to_resume_only(folder: RunFolder) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftovers = [
        folder.checkpoints / f"step_000000001.zip.tmp-{dead.pid}",
        folder.path / f"a.json.tmp-{os.getpid()}",
    ]
    living = folder.checkpoints / f"latest.tmp-{os.getppid()}"
    for path in (*leftovers, living):
        path.touch()
    RunFolder.open(folder.path)
    assert all(path.exists() for path in leftovers)
    RunFolder.open(folder.path, to_resume=True)
    assert not any(path.exists() for path in leftovers)
    assert living.exists()


def test_json_is_replaced_whole_or_not_at_all(folder: RunFolder) -> None:
    folder.write_evaluation({"success_rate": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(folder.evaluation_file, {"success_rate": float("nan")})
    assert json.loads(folder.evaluation_file.read_text()) == {"success_rate": 0.5}
