"""Sweeps: no member is lost, tables equal what the members found, and mistakes show before training."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from rich.console import Console

from memory_suite.configs import command_line
from memory_suite.configs.command_line import EXIT_USAGE
from memory_suite.envs.corridor.rules import CorridorRules
from memory_suite.runners import sweep_length, sweep_memory
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import STEP_KEY, read_metrics
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.sweeps import run_member
from memory_suite.runners.sweeps.attempts import run_attempts
from memory_suite.runners.sweeps.folder import Sweep, SweepError
from memory_suite.runners.sweeps.results import MEASURES, read_table
from memory_suite.runners.sweeps.watch import FAILED, FINISHED, RUNNING, STOPPED, Watch

ROOT = Path(__file__).resolve().parents[2]
SHORT = "--env corridor-short --num-envs 8 --total-steps 768 --policy.width 16 --policy.num-heads 2"
SHORT += (
    " --ppo.n-steps 16 --ppo.batch-size 64 --evaluation.episodes 10 --checkpoint-every 1 --stop.success none"
)
RUN_SIZES = ["--memory", "expire-span", "none", "--sizes", "16", "--seeds", "2"]


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """A test that fails leaves no process behind, which would be held against the next one."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def start_process(script: str, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "runners" / script), *SHORT.split(), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
    )
    STARTED.append(process)
    return process


def wait_for(condition: Callable[[], object], what: str, seconds: float = 300.0) -> None:
    """Ray alone takes a minute to start on a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def kill_member(sweep: Sweep, name: str) -> int:
    """SIGKILL the process of a member that has saved something; gives the step it had saved."""
    wait_for(lambda: sweep.checkpoint_step(name), f"a checkpoint of {name}")
    step = sweep.checkpoint_step(name)
    os.kill(int(sweep.lock_file(name).read_text().split()[0]), signal.SIGKILL)
    assert not sweep.has_trained(name)
    assert step is not None
    return step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of which a member was killed, and later the sweep itself; then it was called again."""
    sweep = Sweep(tmp_path_factory.mktemp("sweep") / "killed")
    words = [*RUN_SIZES, "--run", str(sweep.path), "--workers", "2"]
    first = start_process("sweep_memory.py", *words)
    step = kill_member(sweep, "expire-span-16-seed0")
    wait_for(lambda: sweep.has_trained("none-seed0"), "the other member")
    kill_member(sweep, "expire-span-16-seed1")
    first.kill()
    printed, _ = first.communicate()
    assert "expire-span-16-seed0: killed by SIGKILL; it will be tried again" in printed
    assert sweep_memory.main([*SHORT.split(), *words]) == 0
    assert step > 0
    return sweep


def test_no_member_is_lost(finished: Sweep) -> None:
    names = ["expire-span-16-seed0", "expire-span-16-seed1", "none-seed0", "none-seed1"]
    assert sorted(member.name for member in finished.members()) == names
    assert all(finished.is_finished(member) for member in finished.members())


def test_a_killed_member_goes_on_where_it_had_saved(finished: Sweep) -> None:
    """Every update is there, once, and none was trained by a member that began anew."""
    for name in ("expire-span-16-seed0", "expire-span-16-seed1"):
        rows = read_metrics(RunFolder(finished.run_path(name)).metrics_file)
        assert [row[STEP_KEY] for row in rows] == [128 * update for update in range(1, 7)]
        assert [row["time/iterations"] for row in rows].count(1) == 2  # two processes
        assert finished.training_seconds(name) > rows[-1]["time/time_elapsed"]


def test_the_table_equals_what_the_members_found(finished: Sweep) -> None:
    rows = read_table(finished.path / "table.csv")
    assert [row["run"] for row in rows] == [member.name for member in finished.members()]
    for row in rows:
        result = json.loads((finished.path / "runs" / str(row["run"]) / "evaluation.json").read_bytes())
        assert row["success"] == result["success_rate"]
        assert [row["success_low"], row["success_high"]] == result["success_ci95"]
        assert row["rows_held"] == sum(result["retained_mean"])
        assert row["bytes_held"] == result["bytes_held_mean"]
        assert row["episodes"] == result["episodes"] == 10
        assert row["steps"] == 768
        assert row["size"] == (None if row["memory"] == "none" else 16)


def test_parquet_and_csv_hold_the_same(finished: Sweep) -> None:
    for name in ("table", "summary"):
        with (finished.path / f"{name}.csv").open() as file:
            as_text = list(csv.DictReader(file))
        columns = pyarrow.parquet.read_table(finished.path / f"{name}.parquet").to_pylist()
        assert [
            {key: "" if value is None else str(value) for key, value in row.items()} for row in columns
        ] == as_text


def test_the_summary_has_a_row_for_every_kind(finished: Sweep) -> None:
    rows = pyarrow.parquet.read_table(finished.path / "summary.parquet").to_pylist()
    table = read_table(finished.path / "table.csv")
    assert [(row["memory"], row["size"], row["runs"]) for row in rows] == [
        ("expire-span", 16, 2),
        ("none", None, 2),
    ]
    for row in rows:
        successes = [float(run["success"] or 0.0) for run in table if run["memory"] == row["memory"]]
        assert row["success_iqm"] == pytest.approx(sum(successes) / 2)
        assert min(successes) <= row["success_iqm_low"] <= row["success_iqm_high"] <= max(successes)


def test_what_was_equal_is_written_down(finished: Sweep) -> None:
    options = yaml.safe_load((finished.path / "options.yaml").read_text())
    assert options["equal_for_all"]["total_steps"] == 768
    may_vary = {"memory.kind", "memory.max_span", "memory.initial_span_fraction", "memory.ramp", "seed"}
    assert may_vary >= set(options["varied"]["none-seed0"])


def test_the_live_table_has_a_line_for_what_runs_and_for_every_kind(finished: Sweep) -> None:
    console = Console(file=io.StringIO(), width=100)
    watch = Watch(finished, finished.members(), console=console)
    watch.states["none-seed1"] = RUNNING
    console.print(watch.table())
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert lines[0].startswith("3 of 4 finished, 1 running")
    assert "none-seed1 evaluating" in lines
    assert any(line.startswith("expire-span 16 2 of 2") for line in lines)
    assert any(line.startswith("none 1 of 2") for line in lines)


def test_a_finished_sweep_trains_nothing_again(finished: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("evaluation.json")}
    assert sweep_memory.main([*SHORT.split(), *RUN_SIZES, "--run", str(finished.path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in finished.path.rglob("evaluation.json")} == before
    assert "begins" not in capsys.readouterr().out


def test_drawing_again_needs_the_table_only(finished: Sweep, tmp_path: Path) -> None:
    table = tmp_path / "copied" / "table.csv"
    table.parent.mkdir()
    table.write_bytes((finished.path / "table.csv").read_bytes())
    assert sweep_memory.main(["--env", "corridor-short", "--run", str(table.parent), "--redraw"]) == 0
    assert sorted(path.name for path in table.parent.iterdir()) == ["copied.pdf", "copied.png", "table.csv"]
    assert (table.parent / "copied.png").read_bytes() == (finished.path / "killed.png").read_bytes()


def test_another_kind_of_sweep_is_not_drawn(finished: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        sweep_length.main(["--env", "corridor-short", "--run", str(finished.path), "--redraw"])
    assert exit_info.value.code == EXIT_USAGE
    assert "holds another kind of sweep: train_min, train_max is not in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--memory expire-spam",
            "memory must be one of expire-span, transformer-xl, adaptive-span, compressive, none",
        ),
        ("--sizes", "sizes must be one or more, each an integer, got none"),
        ("--sizes 1 16", "sizes must be at least 2, got 1"),
        ("--sizes 16 --memory.size 8", "memory.size is set by the sweep, member by member"),
        ("--seed 3", "seed is not an option; did you mean seeds?"),
        ("--resume runs/a", "resume is set by the sweep"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--backend loca", "backend must be one of local, ray, slurm, wandb"),
        ("--address auto", "address belongs to backend ray, but backend is local"),
        ("--total-stepps 5", "total-stepps is not an option; did you mean total_steps?"),
        ("--total-steps 5", "total_steps (5) must be at least one rollout"),
        ("--env-arg min_length=1", "min_length must be at least view_size (3)"),
        ("--backend slurm --slurm-executor local --slurm-arg partitoin=a", "partitoin"),
        ("--slurm-arg a=1", "slurm_args belong to backend slurm, but backend is local"),
        ("--redraw", "cannot be read"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        sweep_memory.main([*["--env", "corridor-short", "--run"], str(tmp_path / "run"), *words.split()])
    assert exit_info.value.code == EXIT_USAGE
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and len(error.splitlines()) == 2  # the other one points to --help
    assert not (tmp_path / "run" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--test-lengths 9-3", "test_lengths: 9-3 begins above its end"),
        ("--train-lengths many", "train_lengths must be a range such as 3-200, or one length, got 'many'"),
        ("--env CartPole-v1", "length_args must say which arguments of CartPole-v1"),
        (
            "--env portal-short --train-lengths 3-5 --test-lengths 4",
            "rooms is one number, so 3-5 cannot be a range",
        ),
        ("--env portal-short --train-lengths 3 --test-lengths 1-2", "rooms is one number"),
        ("--env-arg length=9", "env_args.length is set by train_lengths and test_lengths"),
        ("--eval-env-arg length=9", "eval_env_args.length is set by train_lengths and test_lengths"),
    ],
)
def test_a_mistake_about_lengths_is_one_sentence(
    words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        sweep_length.main(["--run", str(tmp_path / "run"), *words.split()])
    assert exit_info.value.code == EXIT_USAGE
    assert message in capsys.readouterr().err


def test_another_sweep_needs_another_folder(finished: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    for main, words, message in (
        (sweep_memory.main, f"{SHORT} --total-steps 1024", "total_steps is 768 there and 1024 here"),
        (sweep_length.main, SHORT, "holds a sweep over memory, size, seed in corridor-short"),
    ):
        with pytest.raises(SystemExit):
            main([*words.split(), *RUN_SIZES[:3], "--run", str(finished.path)])
        assert message in capsys.readouterr().err


def test_what_a_size_means() -> None:
    def sizes(kind: Any, size: int, *given: str) -> dict[str, Any]:
        return sweep_memory.size_settings(kind, size, given, ramp=8)

    assert sizes("transformer-xl", 7) == {"memory.size": 7}
    assert sizes("compressive", 7) == {"memory.size": 4, "memory.compressed_size": 3}
    expected = {"memory.max_span": 64, "memory.initial_span_fraction": 0.5, "memory.ramp": 8}
    assert sizes("expire-span", 64) == sizes("adaptive-span", 64) == expected
    assert sizes("expire-span", 4)["memory.ramp"] == 4
    assert sizes("expire-span", 64, "memory.ramp", "memory.initial_span_fraction") == {"memory.max_span": 64}


def test_options_for_training_hold_for_all_members() -> None:
    words = "--memory none compressive --sizes 8 --seeds 1 --ppo.learning-rate 1e-3 --env-arg max_length=9"
    command, training_words = command_line.parse_known(sweep_memory.SweepMemoryCommand, words.split())
    none, compressive = sweep_memory.make_members(command, training_words)
    for member in (none, compressive):
        assert member.config.ppo.learning_rate == 1e-3
        assert member.config.env_args["max_length"] == 9
    assert (compressive.config.memory.size, compressive.config.memory.compressed_size) == (4, 4)


class FakeAttempt:
    """Ends at once with the next of its member's exit codes."""

    def __init__(self, sweep: Sweep, name: str, code: int | None) -> None:
        self.exit_code, self.reason = code, f"exit code {code}"
        self._sweep, self._name = sweep, name
        if code == 0:
            self._sweep.run_path(name).mkdir(parents=True)
            result = {"success_rate": 1.0, "retained_mean": [2.0]}
            self._sweep.evaluation_file(name).write_text(json.dumps(result))

    def stop(self) -> None:
        self.exit_code = EXIT_SAVED


def outcome(sweep: Sweep, codes: list[int | None], *, stop_after: int | None = None) -> tuple[str, int]:
    """The last state of a sweep's only member, and its attempts, if they end with these codes."""
    (member,) = sweep.members()
    watch = Watch(sweep, [member])
    stop = GracefulStop()
    started = 0

    def start(sweep: Sweep, name: str) -> FakeAttempt:
        nonlocal started
        started += 1
        if started == stop_after:
            stop.stop_signal = signal.SIGTERM
        return FakeAttempt(sweep, name, codes[started - 1])

    run_attempts(sweep, start, watch, stop, workers=1, retries=3, poll_seconds=0.0)
    return watch.states[member.name], started


@pytest.fixture
def lone(tmp_path: Path) -> Sweep:
    """A sweep of one member that has not begun."""
    sweep = Sweep(tmp_path / "lone")
    command, words = command_line.parse_known(
        sweep_memory.SweepMemoryCommand, ["--memory", "none", "--seeds", "1"]
    )
    sweep.add(sweep_memory.make_members(command, words))
    return sweep


def test_attempts_are_repeated_until_they_are_in_vain(lone: Sweep) -> None:
    assert outcome(lone, [-signal.SIGKILL, 1, 1, 0]) == (FAILED, 3)
    assert outcome(lone, [-signal.SIGKILL, 75, 0]) == (FINISHED, 3)


def test_a_usage_error_is_not_repeated(lone: Sweep) -> None:
    assert outcome(lone, [EXIT_USAGE]) == (FAILED, 1)


def test_an_attempt_that_got_further_is_not_in_vain(lone: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = iter(range(100))
    monkeypatch.setattr(Sweep, "progress", lambda self, member: (0, next(steps)))
    assert outcome(lone, [*[-signal.SIGKILL] * 10, 0]) == (FINISHED, 11)


def test_asked_to_stop_every_attempt_saves_and_none_follows(lone: Sweep) -> None:
    assert outcome(lone, [None], stop_after=1) == (STOPPED, 1)


def test_two_processes_cannot_train_a_member(lone: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    from memory_suite.runners.sweeps import worker

    monkeypatch.setattr(worker, "LOCK_SECONDS", 0.0)
    lone.lock_file("none-seed0").parent.mkdir()
    with lone.lock_file("none-seed0").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("4711 on elsewhere")
        file.flush()
        with pytest.raises(SweepError, match="process 4711 on elsewhere is still training none-seed0"):
            worker.train_member(lone, "none-seed0")


def member_words(sweep: Path, *words: str) -> list[str]:
    return [*SHORT.split(), *["--memory", "none", "--seeds", "1", "--run"], str(sweep), *words]


def test_slurm_jobs_through_submitit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = member_words(tmp_path / "slurm", "--backend", "slurm", "--slurm-executor", "local")
    assert sweep_memory.main(words) == 0
    assert "none-seed0: finished" in capfd.readouterr().out
    assert [row["run"] for row in read_table(tmp_path / "slurm" / "table.csv")] == ["none-seed0"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray Tune is not installed")
def test_trials_of_ray_tune_survive_a_kill(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "ray")
    process = start_process(
        "sweep_memory.py", *member_words(sweep.path, "--backend", "ray", "--workers", "1")
    )
    kill_member(sweep, "none-seed0")
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    rows = read_metrics(RunFolder(sweep.run_path("none-seed0")).metrics_file)
    assert [row[STEP_KEY] for row in rows] == [128 * update for update in range(1, 7)]
    assert [row["run"] for row in read_table(sweep.path / "table.csv")] == ["none-seed0"]


def test_agents_of_a_wandb_sweep_train_its_members(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = Sweep(tmp_path / "wandb")
    words = member_words(sweep.path, "--backend", "wandb")
    assert sweep_memory.main(words) == 0
    file = sweep.path / "wandb_sweep.yaml"
    assert f"wandb sweep {file}" in capsys.readouterr().out
    definition = yaml.safe_load(file.read_text())
    assert definition["parameters"] == {"member": {"values": ["none-seed0"]}}
    assert Path(definition["program"]).is_file()
    # What an agent makes of it: https://docs.wandb.ai/guides/sweeps/define-sweep-configuration
    env, interpreter, program, *arguments = definition["command"]
    assert (env, interpreter, program) == ("${env}", "${interpreter}", "${program}")
    assert arguments[-3:] == ["--track", "online", "${args}"]
    assert run_member.main([*arguments[:-3], "--track", "disabled", "--member=none-seed0"]) == 0
    capsys.readouterr()
    assert sweep_memory.main([*words, "--redraw"]) == 0
    assert read_table(sweep.path / "table.csv")[0]["steps"] == 768


def test_the_exact_length_of_a_preset_does_not_win_over_those_of_the_sweep() -> None:
    words = ["--env", "corridor-endless", "--train-lengths", "3-9", "--test-lengths", "3-5", "12"]
    command, training_words = command_line.parse_known(sweep_length.SweepLengthCommand, words)
    member = sweep_length.make_members(command, training_words)[0]
    judged: Any = member.config.evaluation_env_args
    bounds = [CorridorRules(**(judged | one.env_args)).bounds for one in member.test_settings]
    assert [CorridorRules(**judged).bounds, *bounds] == [(3, 9), (3, 5), (12, 12)]


def test_the_exact_length_may_be_what_is_swept() -> None:
    words = [
        "--env",
        "corridor-short",
        "--length-args",
        "length",
        "--train-lengths",
        "7",
        "--test-lengths",
        "9",
    ]
    command, training_words = command_line.parse_known(sweep_length.SweepLengthCommand, words)
    member = sweep_length.make_members(command, training_words)[0]
    judged: Any = member.config.evaluation_env_args
    assert member.config.env_args["length"] == judged["length"] == 7
    assert CorridorRules(**(judged | member.test_settings[0].env_args)).bounds == (9, 9)


def test_lengths_are_tested_and_drawn(tmp_path: Path) -> None:
    words = [*SHORT.split(), "--memory", "none", "--seeds", "1", "--run", str(tmp_path / "lengths")]
    words += ["--train-lengths", "3-5"]
    assert sweep_length.main([*words, "--test-lengths", "3-5", "12"]) == 0
    sweep = Sweep(tmp_path / "lengths")
    (member,) = sweep.members()
    for arguments in (member.config.env_args, member.config.evaluation_env_args):
        assert (arguments["min_length"], arguments["max_length"]) == (3, 5)
    rows = read_table(sweep.path / "table.csv")
    assert [(row["test_min"], row["test_max"]) for row in rows] == [(3, 5), (12, 12)]
    for row, evaluation in zip(rows, member.test_settings, strict=True):
        result = json.loads(sweep.evaluation_file(member.name, evaluation).read_bytes())
        assert (row["success"], row["length_mean"]) == (result["success_rate"], result["length_mean"])
    own = json.loads(sweep.evaluation_file(member.name).read_bytes())
    assert rows[0]["success"] == own["success_rate"]  # the same episodes, asked for twice
    assert sweep_length.main([*words, "--test-lengths", "20"]) == 0  # nothing is trained again
    assert len(read_table(sweep.path / "table.csv")) == 3
    assert {path.suffix for path in sweep.path.glob("lengths.*")} == {".png", ".pdf"}


def test_every_column_is_explained() -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    for column in MEASURES:
        assert f"`{column}`" in text, column
