"""The benchmark's parts, end to end at tiny sizes. What they measure is not tested: no test measures time."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from memory_suite.runners import benchmark
from memory_suite.runners.benchmarks import acting, baselines, environments, ranks, training
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved
from memory_suite.runners.benchmarks.worker_process import (
    BenchmarkError,
    Turn,
    WorkerProcess,
    peak_mebibytes,
)
from memory_suite.runners.run.processes import usable_cores

SMALL = ["--num-envs", "4", "--ppo.n-steps", "8", "--ppo.batch-size", "16", "--policy.width", "16"]
TINY = ["--env", "corridor-short", "--rounds", "2", *SMALL]
needs_peers = pytest.mark.skipif(
    importlib.util.find_spec("sb3_contrib") is None, reason="sb3-contrib is not installed"
)


def measured(tmp_path: Path, *words: str) -> dict[str, Any]:
    """The tables of a benchmark that must succeed."""
    file = tmp_path / "out.json"
    assert benchmark.main([*TINY, *words, "--json", str(file)]) == 0
    tables: dict[str, Any] = json.loads(file.read_text())["tables"]
    return tables


# -- tables -------------------------------------------------------------------------------------------


def test_interleaved_measurements_alternate() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert found == {"a": [None, None], "b": [None, None]}


def test_ratios_are_taken_round_by_round() -> None:
    ratio = Spread((2.0, 30.0, 4.0)).against(Spread((1.0, 10.0, 4.0)))
    assert ratio.values == (2.0, 3.0, 1.0)
    assert str(ratio) == "2.000 (1.000 to 3.000)"
    assert ratio.to_json() == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "values": [2.0, 3.0, 1.0]}


def test_a_table_is_markdown() -> None:
    table = Table("who", "all equal", {"a": {"x": Spread((1.0,)), "y": "yes"}, "bb": {"y": "no"}})
    assert [*table.lines()] == [
        "all equal:",
        "",
        "| who | x     | y   |",
        "| --- | ----- | --- |",
        "| a   | 1.000 | yes |",
        "| bb  |       | no  |",
        "",
    ]


# -- processes ----------------------------------------------------------------------------------------


def _count(turn: Turn, start: int, fail_at: int) -> None:
    for number in range(start, fail_at):
        turn(number)
    raise ValueError(f"cannot count to {fail_at}")


def test_a_process_runs_one_turn_at_a_time_and_reports_its_failure() -> None:
    with WorkerProcess(_count, 1, fail_at=3) as process:
        assert process.answer() == 1
        seconds, number = process.turn()
        assert number == 2
        assert seconds > 0.0
        with pytest.raises(BenchmarkError, match="cannot count to 3"):
            process.turn()


def _take_memory(turn: Turn, mebibytes: int) -> None:
    turn(peak_mebibytes())
    _ = bytearray(mebibytes * 2**20)
    turn(peak_mebibytes())


def test_the_peak_is_that_of_the_process_alone() -> None:
    ballast = bytearray(300 * 2**20)
    with WorkerProcess(_take_memory, 200) as process:
        before = process.answer()
        _, after = process.turn()
    assert after - before == pytest.approx(200, abs=20)
    assert before < len(ballast) / 2**20 + peak_mebibytes() / 2


# -- parts --------------------------------------------------------------------------------------------


def test_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COPIES", "LARGE_BATCH", "PLAIN_STEPS", "BATCH_STEPS"):
        monkeypatch.setattr(environments, name, 2)
    tables = measured(tmp_path, "--parts", "envs")
    assert "AsyncVectorEnv of 2" in tables["environments"]["rows"]
    assert all(row["steps/s"]["median"] > 0.0 for row in tables["environments"]["rows"].values())
    assert {"corridor-long", "portal-long", "instruction-short"} <= tables["vectorized versions"][
        "rows"
    ].keys()


@needs_peers
def test_training_and_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(training, "NAMES", (baselines.FORGETTING, baselines.RECURRENT))
    picture = tmp_path / "out.png"
    rows = measured(tmp_path, "--parts", "training", "update", "--picture", str(picture))["training"]["rows"]
    assert rows[baselines.RECURRENT]["against RecurrentPPO"]["median"] == 1.0
    assert 0.0 < rows[baselines.FORGETTING]["MiB above the imports"]["median"] < 1000.0
    assert picture.read_bytes().startswith(b"\x89PNG")


@needs_peers
@pytest.mark.parametrize("name", baselines.NAMES)
def test_every_compared_agent_trains(name: str) -> None:
    command = benchmark.BenchmarkCommand(env="corridor-short")
    spec = benchmark.AgentSpec.from_command(command, SMALL)
    agent = baselines.make_baseline(spec, name, reach=32)
    assert agent.learn(64).num_timesteps == 64
    assert (agent.n_steps, agent.n_envs, agent.batch_size) == (8, 4, 16)  # type: ignore[attr-defined]


def test_acting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acting, "STRETCH_STEPS", 10)
    words = ["--parts", "acting", "--episode-steps", "100", "200", "--max-spans", "32", "4096"]
    tables = measured(tmp_path, *words)
    ages = tables["acting, by age of the episode"]["rows"]
    assert ages["after 200 steps"]["held against step 100"]["median"] == pytest.approx(1.0, abs=0.2)
    spans = tables["acting, by maximum span"]["rows"]
    held = [spans[name]["memories"]["median"] for name in ("32", "4,096")]
    assert held[0] == pytest.approx(held[1], abs=1.0), "no more is retained"


@pytest.mark.skipif(len(usable_cores()) < 2, reason="one core")
def test_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "BATCHES", (2,))
    rows = measured(tmp_path, "--parts", "ranks")["ranks"]["rows"]
    assert [*rows] == ["1 rank on 1 core", "2 ranks on 2 cores, 2x the batch"]
    assert all(row["samples/s"]["median"] > 0.0 for row in rows.values())


@needs_peers
def test_solving_ends_when_the_time_is_used_up(tmp_path: Path) -> None:
    rows = measured(tmp_path, "--parts", "solving", "--solving-seconds", "0.5")["solving"]["rows"]
    assert [row["solved"] for row in rows.values()] == ["0 of 1 seeds"] * 2
    for row in rows.values():
        assert row["seconds"]["median"] >= 0.5
        assert row["steps/s"]["median"] == pytest.approx(row["steps"]["median"] / row["seconds"]["median"])
    mine, recurrent = rows.values()
    ratio = mine["steps/s"]["median"] / recurrent["steps/s"]["median"]
    assert mine["steps/s against RecurrentPPO"]["median"] == pytest.approx(ratio)


# -- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--parts", "envs", "speed"], "envs, training, update, acting, ranks, solving"),
        (["--part", "envs"], "did you mean parts"),
        (["--env", "corridor-lnog"], "did you mean 'corridor-long'"),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--episode-steps", "100", "10"], "episode_steps must grow"),
        (["--max-spans", "8"], "max_spans must be at least 32"),
        (["--solving-success", "1.5"], "solving_success"),
        (["--parts", "training", "--algo", "a2c"], "algo must be ppo"),
        (["--parts", "solving", "--env", "portal-long"], "without a curriculum"),
        (
            ["--parts", "ranks", "--num-envs", "5", "--ppo.batch-size", "8"],
            "must be a multiple of the number of processes",
        ),
        (["--picture", "nowhere/out.png"], "picture: there is no folder nowhere"),
        (["--run", "nowhere"], "nowhere"),
        (["--run", "nowhere", "--policy.width", "8"], "the agent of --run has a configuration already"),
    ],
)
def test_a_mistake_is_one_message_before_any_work(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [] if "--env" in words or "--run" in words else TINY
    with pytest.raises(SystemExit) as leaving:
        benchmark.main([*given, *words])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
