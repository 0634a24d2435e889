"""`--method paper` is one choice, which neither replaces what is said nor what a run was trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from memory_suite.configs.agent_schema import (
    METHOD_PRESETS,
    AgentMemoryConfig,
    PenaltyConfig,
    TrainConfig,
    from_yaml,
    load,
)
from memory_suite.configs.run_config import to_yaml

PAPER = AgentMemoryConfig(ramp=16, max_span=1024, initial_span_fraction=0.1)
PENALTY = PenaltyConfig(weight=1e-6, form="all")


def write(path: Path, config: TrainConfig) -> Path:
    path.write_text(to_yaml(config))
    return path


@pytest.mark.parametrize("env", ["corridor-long", "Acrobot-v1"])
def test_the_paper_is_one_choice(env: str) -> None:
    config = load(["--env", env, "--method", "paper"])
    assert config == replace(load(["--env", env]), method="paper", memory=PAPER, penalty=PENALTY)


@pytest.mark.parametrize("method", ["counterfactual", "none"])
def test_other_methods_have_no_preset(method: str) -> None:
    assert not (METHOD_PRESETS / f"{method}.yaml").exists()
    assert load(["--method", method]).memory == AgentMemoryConfig()


def test_it_lies_above_the_preset_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "corridor-long.yaml").write_text(
        "method: paper\nmemory: {ramp: 8, position_window: 4}\nseed: 7"
    )
    config = load([], presets=tmp_path)
    assert (config.seed, config.memory) == (7, replace(PAPER, position_window=4))


def test_it_lies_below_the_command_line() -> None:
    words = ["--memory.ramp", "4", "--method", "paper", "--penalty.weight", "1e-3"]
    config = load(words)
    assert (config.memory, config.penalty) == (replace(PAPER, ramp=4), replace(PENALTY, weight=1e-3))


def test_it_lies_below_a_file_that_chooses_it(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("method: paper\nmemory: {ramp: 8}\n")
    for words in ([], ["--method", "paper"]):
        assert load(["--config", str(own), *words]).memory == replace(PAPER, ramp=8)
    assert load(["--config", str(own), "--method", "none"]).memory == AgentMemoryConfig(ramp=8)


def test_a_finished_run_is_repeated_as_it_was(tmp_path: Path) -> None:
    finished = load(["--method", "paper", "--memory.ramp", "2", "--memory.max-span", "99"])
    path = write(tmp_path / "config.yaml", finished)
    assert load(["--config", str(path)]) == finished
    assert from_yaml(path) == finished
    assert load(["--resume", str(tmp_path)]).memory == finished.memory


def test_a_finished_run_is_repeated_with_another_method(tmp_path: Path) -> None:
    path = write(tmp_path / "config.yaml", load(["--policy.width", "32"]))
    config = load(["--config", str(path), "--method", "paper"])
    assert (config.memory, config.policy.width) == (PAPER, 32)


def test_the_method_cannot_change_when_a_run_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "config.yaml", load([]))
    with pytest.raises(SystemExit):
        load(["--resume", str(tmp_path), "--method", "paper"])
    assert "method was counterfactual when the run began and cannot become paper" in capsys.readouterr().err


def test_what_does_not_fit_is_said_with_the_name_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load(["--method", "paper", "--memory.max-span", "8"])
    assert "paper.yaml" in capsys.readouterr().err
