"""Tracking: metrics.jsonl is exact, and no fault of a mirror stops or slows training."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Figure, KVWriter

from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.run.background_writer import BackgroundWriter
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import STEP_KEY, MetricsFile, read_metrics
from memory_suite.runners.run.tracking import RunLogger, make_logger

ROOT = Path(__file__).resolve().parents[2]


def write_rows(metrics: MetricsFile, *numbers: int) -> None:
    for number in numbers:
        metrics.write({"n": number}, {}, number)


def test_rows_are_plain_json_and_on_disk_at_once(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    row = {
        "int": 3,
        "numpy_int": np.int64(4),
        "float": 0.5,
        "nan": float("nan"),
        "numpy_inf": np.float32("inf"),
        "flag": True,
        "text": "a\nb",
        "scalar_array": np.array([2]),
        "scalar_tensor": torch.tensor(1.5),
        "array": np.array([[1.0, np.nan], [2.0, 3.0]]),
        "tensor": torch.tensor([1, 2]),
        "many": np.arange(100.0),
        "figure": Figure(None, close=False),  # type: ignore[arg-type]
        "excluded": 1,
    }
    metrics.write(row, {"excluded": ("json",), "int": ("tensorboard",)}, 7)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line)
    histogram = found.pop("many")
    assert found == {
        "int": 3,
        "numpy_int": 4,
        "float": 0.5,
        "nan": None,
        "numpy_inf": None,
        "flag": True,
        "text": "a\nb",
        "scalar_array": 2,
        "scalar_tensor": 1.5,
        "array": [1.0, None, 2.0, 3.0],
        "tensor": [1, 2],
    }
    assert isinstance(found["numpy_int"], int)
    assert sum(histogram["counts"]) == 100
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    metrics.close()


def test_truncate_forgets_exactly_the_rows_after_the_offset(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    write_rows(metrics, 1, 2)
    offset = metrics.offset
    write_rows(metrics, 3, 4)
    metrics.close()
    metrics = MetricsFile(path)
    metrics.truncate(offset)
    assert metrics.offset == offset
    write_rows(metrics, 5)
    assert [row["n"] for row in read_metrics(path)] == [1, 2, 5]
    with pytest.warns(RuntimeWarning, match="shorter than when the checkpoint was written"):
        metrics.truncate(metrics.offset + 10)
    write_rows(metrics, 6)
    assert [row["n"] for row in read_metrics(path)] == [1, 2, 5, 6]
    metrics.close()


def test_a_line_cut_short_by_a_crash_is_ignored_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\n{"n"')
    assert [row["n"] for row in read_metrics(path)] == [1, 2]
    metrics = MetricsFile(path)
    write_rows(metrics, 3)
    metrics.close()
    assert [row["n"] for row in read_metrics(path)] == [1, 2, 3]
    assert read_metrics(tmp_path / "missing") == []


class Recorder(KVWriter):
    """Keeps what it is given; can be told to fail, to wait, or to hang."""

    def __init__(
        self, *, fail_at: int | None = None, seconds: float = 0.0, fail_closing: bool = False
    ) -> None:
        self.rows: list[Any] = []
        self.fail_at = fail_at
        self.seconds = seconds
        self.fail_closing = fail_closing
        self.closed = False

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        time.sleep(self.seconds)
        if step == self.fail_at:
            raise SystemExit("broken")
        self.rows.append((step, key_values))

    def close(self) -> None:
        self.closed = True
        if self.fail_closing:
            raise OSError("cannot close")


def run_mirror(recorder: Recorder, rows: int, **options: Any) -> tuple[BackgroundWriter, list[str]]:
    said: list[str] = []
    mirror = BackgroundWriter(lambda: recorder, "Mirror", notify=said.append, **options)
    for step in range(rows):
        mirror.write({"n": step}, {"n": ()}, step)
    mirror.close()
    return mirror, said


def test_a_mirror_passes_everything_on() -> None:
    recorder = Recorder()
    mirror, said = run_mirror(recorder, 500)
    assert [step for step, _ in recorder.rows] == list(range(500))
    assert recorder.closed
    assert (said, mirror.rows_dropped, mirror.is_off) == ([], 0, False)
    mirror.close()
    mirror.write({}, {}, 0)


def test_a_mirror_sees_the_values_of_its_moment() -> None:
    recorder = Recorder(seconds=0.05)
    mirror = BackgroundWriter(lambda: recorder, "Mirror")
    array, tensor, row = np.zeros(3), torch.zeros(3), {"array": None, "tensor": None}
    mirror.write({**row, "array": array, "tensor": tensor}, {}, 0)
    array += 1
    tensor += 1
    mirror.close()
    assert recorder.rows[0][1]["array"].tolist() == recorder.rows[0][1]["tensor"].tolist() == [0, 0, 0]


def test_a_mirror_that_fails_is_switched_off_with_one_message() -> None:
    recorder = Recorder(fail_at=3, fail_closing=True)
    mirror, said = run_mirror(recorder, 100)
    assert len(recorder.rows) == 3
    assert mirror.is_off
    assert said == [
        "Mirror is switched off (SystemExit: broken); training goes on and metrics.jsonl has every row"
    ]


def test_a_mirror_that_cannot_be_made_is_switched_off() -> None:
    said: list[str] = []

    def fail() -> KVWriter:
        raise ImportError("no such package")

    mirror = BackgroundWriter(fail, "Mirror", notify=said.append)
    for step in range(10):
        mirror.write({}, {}, step)
    mirror.close()
    assert len(said) == 1
    assert "ImportError: no such package" in said[0]


def test_a_mirror_whose_listener_fails_is_still_harmless() -> None:
    def fail(message: str) -> None:
        raise ValueError(message)

    mirror = BackgroundWriter(lambda: Recorder(fail_at=0), "Mirror", notify=fail)
    mirror.write({}, {}, 0)
    mirror.close()
    assert mirror.is_off


def test_a_slow_mirror_loses_rows_and_says_so_without_slowing_the_caller() -> None:
    recorder = Recorder(seconds=0.01)
    said: list[str] = []
    mirror = BackgroundWriter(lambda: recorder, "Mirror", notify=said.append, queue_rows=10)
    start = time.monotonic()
    for step in range(1000):
        mirror.write({"n": step}, {}, step)
    assert time.monotonic() - start < 1.0
    mirror.close()
    assert mirror.rows_dropped + len(recorder.rows) == 1000
    assert said == [f"Mirror was too slow and lost {mirror.rows_dropped} rows; metrics.jsonl has them all"]


def test_a_hanging_mirror_is_given_up_on() -> None:
    release = threading.Event()

    class Hanging(Recorder):
        def write(self, *arguments: Any, **options: Any) -> None:
            release.wait()

    start = time.monotonic()
    mirror, said = run_mirror(
        Hanging(fail_closing=True), 20, queue_rows=5, close_timeout_seconds=0.3, give_up=release.set
    )
    assert time.monotonic() - start < 2.0
    assert release.is_set()
    assert mirror.is_off
    assert "given up on after 0.3 s with about 5 rows unwritten" in said[0]
    assert "switched off" not in " ".join(said), "what it says after its end is of no interest"


def logger_for(folder: RunFolder, resume_offset: int | None = None, **options: Any) -> RunLogger:
    config = TrainConfig(track="disabled", **options)
    return make_logger(folder, config, resume_offset=resume_offset)


def dump(logger: RunLogger, *steps: int) -> None:
    for step in steps:
        logger.record("a/value", step * 2)
        logger.record("a/histogram", np.arange(50.0))
        logger.record(STEP_KEY, step, exclude="tensorboard")
        logger.dump(step)


def test_tensorboard_and_csv_mirror_metrics_and_csv_survives_a_resume(tmp_path: Path) -> None:
    folder = RunFolder.create(TrainConfig(run=tmp_path / "run"))
    logger = logger_for(folder, csv=True, tensorboard=True)
    dump(logger, 1, 2)
    offset = logger.metrics.offset
    dump(logger, 3)
    logger.close()
    logger = logger_for(folder, resume_offset=offset, csv=True)
    dump(logger, 13)
    logger.close()
    assert not any(mirror.is_off for mirror in logger.mirrors)
    with folder.csv_file.open() as file:
        rows = [(int(row[STEP_KEY]), int(row["a/value"])) for row in csv.DictReader(file)]
    assert rows == [(1, 2), (2, 4), (13, 26)]
    assert [row[STEP_KEY] for row in read_metrics(folder.metrics_file)] == [1, 2, 13]
    assert next(folder.tensorboard.glob("events*")).stat().st_size > 500


WANDB_PROGRAM = """
    import os, signal, sys, time
    from pathlib import Path
    import numpy as np
    from memory_suite.configs.agent_schema import TrainConfig
    from memory_suite.runners.run.folder import RunFolder
    from memory_suite.runners.run.metrics_file import STEP_KEY
    from memory_suite.runners.run.tracking import make_logger

    def dump(logger, count):
        slowest = 0.0
        for step in range(count):
            start = time.monotonic()
            logger.record("check/value", step)
            logger.record("check/nan", float("nan"))
            logger.record("check/histogram", np.arange(50.0))
            logger.record(STEP_KEY, step)
            logger.dump(step)
            slowest = max(slowest, time.monotonic() - start)
        return slowest

    def children():
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                if int(fields[1]) == os.getpid():
                    found.append(int(entry.name))
        return found

    track, name = sys.argv[1:]
    config = TrainConfig(run=Path(name), track=track)
    folder = RunFolder.create(config)
    logger = make_logger(folder, config)
    dump(logger, 100)
    if track == "offline":
        logger.close()
        print("first", logger.mirrors[0].is_off, logger.mirrors[0].rows_dropped)
        logger = make_logger(folder, config)  # as after a resume, in the same process
    while len(list(folder.wandb.glob("offline-run-*/run-*.wandb"))) < (2 if track == "offline" else 1):
        time.sleep(0.05)
    while len(cores := children()) > 1:  # the first logger's process is still leaving
        time.sleep(0.05)
    for process in cores:
        os.kill(process, signal.SIGKILL)
    print("killed", len(cores))
    slowest = dump(logger, 200)
    start = time.monotonic()
    logger.close()
    print("slow", slowest > 0.5, "closing", time.monotonic() - start > 5.0, "off", logger.mirrors[0].is_off)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the process of Weights & Biases in /proc")
@pytest.mark.parametrize("track", ["offline", "online"])
def test_killing_weights_and_biases_does_not_reach_training(track: str, tmp_path: Path) -> None:
    """Online without an account goes on offline; then, in both modes, W&B's own process is killed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment.update(HOME=str(tmp_path), PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WANDB_PROGRAM), track, str(tmp_path / "run")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "killed 1\nslow False closing False off True" in result.stdout
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Weights & Biases is switched off") == 1
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 300
    assert rows[-1]["check/value"] == 199
    if track == "offline":
        assert "first False 0" in result.stdout
        stored = min((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime)
        assert stored.read_bytes().count(b"check/value") >= 100
        assert len(result.stderr.strip().splitlines()) == 1
    else:
        assert "goes on offline: there is no API key" in result.stderr
