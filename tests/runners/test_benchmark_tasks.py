"""Tasks of `benchmark.py tasks`: perfect memory gets everything, and the command goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

from memory_suite.runners import benchmark
from memory_suite.runners.benchmarks import field_tasks, tasks


def oracle(env: Any, seen: list[Any]) -> int:
    """The best action, from all observations of the episode."""
    match env:
        case field_tasks.TMaze():
            needed = seen[-1][2] > 0.0
            return int(needed and seen[0][0] > 0.0)
        case field_tasks.Majority():
            return int(2 * sum(seen[: env.num_bits]) > env.num_bits)
        case field_tasks.KeyValue():
            if seen[-1] < env.NUM_KEYS + env.NUM_VALUES:
                return 0
            return int(seen[seen.index(seen[-1] - env.NUM_KEYS - env.NUM_VALUES) + 1]) - env.NUM_KEYS
        case field_tasks.Cards():
            return int(seen[0 if env.delay is None else max(0, len(seen) - 1 - env.delay)])
    raise AssertionError(env)


NAMES = ["TMaze50", "TMaze200", "RedundantCue", "RarelyNeededCue", "Majority", "KeyValue", "RepeatPrevious"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*NAMES, "RepeatFirst"])
def test_perfect_memory_is_enough(name: str) -> None:
    """And the last observation alone is not."""
    env = gym.make(f"{name}-v0").unwrapped
    check_env(env, skip_render_check=True)
    returns = {}
    for memory in (True, False):
        total = 0.0
        for seed in range(40):
            observation, _ = env.reset(seed=seed)
            seen, over = [observation], False
            while not over:
                action = oracle(env, seen) if memory else 0
                observation, reward, over, _, _ = env.step(action)
                seen.append(observation)
                total += float(reward)
        returns[memory] = total / 40
    assert returns[True] == pytest.approx(1.0)
    assert returns[False] < (0.99 if name == "RarelyNeededCue" else 0.75)


def test_positions_are_all_that_is_seen() -> None:
    env = gym.make("PositionsOnlyCartPole-v0")
    observation, _ = env.reset(seed=0)
    whole, _ = gym.make("CartPole-v1").reset(seed=0)
    assert observation.tolist() == whole[[0, 2]].tolist()


def test_finished_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each with its command and revision; the same command again trains nothing."""
    small = ("--total-steps", "512", "--num-envs", "8", "--policy.width", "16", "--evaluation.episodes", "2")
    monkeypatch.setattr(tasks, "BUDGETS", {"corridor-short": small})
    words = ["tasks", "--json", str(tmp_path / "found.json"), "--run", str(tmp_path / "runs")]
    words += ["--tasks", "corridor-short", "--seeds", "2", "--methods", "none"]
    assert benchmark.main(words) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["runs"][0]["command"].startswith("python runners/train_agent.py --env corridor-short")
    assert found["runs"][0]["steps"] == 512 and len(found["runs"][0]["retained_mean"]) == 2
    assert "| corridor-short | none | 1 | 512 |" in capsys.readouterr().out
    monkeypatch.setattr(tasks, "_train", lambda *arguments: pytest.fail("trained again"))
    assert benchmark.main(words) == 0
    with pytest.raises(SystemExit):
        benchmark.main([*words, "--tasks", "chess"])
    assert "tasks must be among corridor-short, got 'chess'" in capsys.readouterr().err
