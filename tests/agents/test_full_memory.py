"""Environments that keep all memories, and the methods by which spans learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from memory_suite import MemoryPPO
from memory_suite.agents.algorithms.forgetting import (
    FULL_RELIANCE,
    SMALLEST_PACE,
    Forgetting,
    Reliance,
    check_method,
)
from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.model.settings import PenaltySettings
from memory_suite.agents.model.store import pages
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.envs.make import make_vec_env
from tests.agents.small_envs import RepeatFirst
from tests.agents.test_algorithms import TINY, a2c, ppo, rows_of, vec

SHORT = -20.0
"""bias of span predictors with which every memory expires at once"""


def with_short_spans(model: MemoryOnPolicyAlgorithm) -> MemoryOnPolicyAlgorithm:
    for layer in model.policy.transformer.layers:
        layer.retention.predictor.bias.data.fill_(SHORT)
    return model


def corridor(count: int = 8) -> Any:
    return make_vec_env("corridor-short", count, seed=3, env_kwargs={"max_length": 9})


def retained(model: MemoryOnPolicyAlgorithm) -> list[int]:
    assert model._memory is not None
    return model._memory.retained_NB[0].tolist()


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize("make", [ppo, a2c])
def test_one_of_four_keeps_all_in_acting_and_learning(
    make: Any, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio of the first minibatch is 1: a block sees what the steps saw."""
    if paged:
        monkeypatch.setattr(pages, "MIN_SLOTS", 0)
    model = make(corridor(), random_shortening=True, policy_kwargs={**TINY, "ramp": 1, "max_span": 400})
    rows = rows_of(with_short_spans(model), 16 * 8 * 6)
    assert max(row["train/first_ratio_deviation"] for row in rows) < 1e-5
    assert model.forgetting.full_memory_N.tolist() == [False, False, False, True] * 2
    held = retained(model)
    assert [count > 1 for count in held] == [
        False,
        False,
        False,
        held[3] > 1,
        False,
        False,
        False,
        held[7] > 1,
    ]
    assert max(held[3], held[7]) > 1
    # Only those that forget are counted: none of them sees more than the memory of the last step.
    assert rows[0]["memory/layer1/retained_max"] <= 1
    assert rows[-1]["memory/possible_mean"] > 3


def test_a_floor_travels_with_its_row() -> None:
    model = ppo(vec(RepeatFirst))
    model.learn(64)
    state = model._memory
    assert state is not None and state.span_floor_B is not None
    assert state.span_floor_B.tolist() == [0.0, 0.0, 0.0, 4.0]
    for copy in (state.clone(), state.to("cpu"), state.to_rows(), state.trimmed()):
        assert copy.span_floor_B is not None and torch.equal(copy.span_floor_B, state.span_floor_B)
    back = MemoryState.from_state_dict(state.state_dict())
    assert back.span_floor_B is not None and torch.equal(back.span_floor_B, state.span_floor_B)
    one = state.select(torch.tensor([3, 0]))
    assert one.span_floor_B is not None and one.span_floor_B.tolist() == [4.0, 0.0]
    both = MemoryState.cat([state, one])
    assert both.span_floor_B is not None and both.span_floor_B.tolist() == [0.0, 0.0, 0.0, 4.0, 4.0, 0.0]
    assert MemoryState.cat([model.policy.initial_state(1)]).span_floor_B is None


@pytest.mark.parametrize(("count", "full"), [(1, 0), (3, 0), (4, 1), (7, 1), (64, 16)])
def test_how_many_environments_keep_all_memories(count: int, full: int) -> None:
    """With none, all environments are evaluated."""
    transformer = ppo(vec(RepeatFirst)).policy.transformer
    forgetting = Forgetting("counterfactual", PenaltySettings(), transformer, num_envs=count)
    assert int(forgetting.full_memory_N.sum()) == full
    assert (forgetting.span_floor_B(torch.device("cpu")) is None) == (full == 0)
    torch.manual_seed(0)
    forgetting.begin_update(3, torch.device("cpu"))
    assert forgetting.log_factor_BE is not None
    evaluations_B = (~forgetting.log_factor_BE.isnan()).sum(1)
    assert evaluations_B.tolist() == (forgetting.full_memory_N.long().tolist() if full else [1] * count)
    assert (
        Forgetting("none", PenaltySettings(), transformer, num_envs=count).span_floor_B(torch.device("cpu"))
        is None
    )


def test_each_of_them_is_evaluated_in_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ppo(vec(RepeatFirst, 8), n_epochs=3, batch_size=64)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    evaluate = model.policy.evaluate_block

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append((arguments[2].span_floor_B, options["log_factor_B"]))
        return evaluate(*arguments, **options)

    monkeypatch.setattr(model.policy, "evaluate_block", watched)
    model.learn(8 * 16)
    assert len(seen) == 3 * 2
    floors, factors = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert int((~factors.isnan()).sum()) == 2
    assert bool((floors[~factors.isnan()] > 0).all())


def test_statistics_leave_them_out() -> None:
    """Their episodes are in no success rate and no mean return but their own."""

    class ByEnvironment(gym.Wrapper[Any, Any, Any, Any]):
        """Returns 1 in the fourth environment, and success there alone."""

        made = 0

        def __init__(self) -> None:
            super().__init__(RepeatFirst(4))
            self.is_fourth = ByEnvironment.made == 3
            ByEnvironment.made += 1

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, _, terminated, truncated, info = super().step(action)
            info["is_success"] = self.is_fourth
            return observation, float(self.is_fourth and terminated), terminated, truncated, info

    model = ppo(vec(ByEnvironment))
    rows = rows_of(model, 4 * 16 * 10)
    assert rows[-1]["rollout/ep_rew_mean"] == rows[-1]["rollout/success_rate"] == 0.0
    assert rows[-1]["forgetting/full_memory_return"] == 1.0
    assert rows[-1]["success/all"] == 0.0
    assert len(model.diagnostics.full_memory_returns) == 40
    assert len(model.ep_info_buffer or []) == 100


def test_they_survive_saving(tmp_path: Path) -> None:
    """Including returns and reliance."""
    model = ppo(corridor(), n_epochs=1)
    model.learn(16 * 8 * 8)
    model.forgetting.reliance.update(2.0, 1.0)
    model.save(tmp_path / "model", with_training_state=True)
    loaded = MemoryPPO.load(tmp_path / "model", env=corridor(), device="cpu")
    assert loaded.forgetting.state_dict() == model.forgetting.state_dict()
    assert loaded.return_scale.state_dict() == model.return_scale.state_dict()
    assert list(loaded.diagnostics.full_memory_returns) == list(model.diagnostics.full_memory_returns)
    assert len(loaded.diagnostics.full_memory_returns) > 0
    assert loaded._memory is not None and model._memory is not None
    assert loaded._memory.span_floor_B is not None and model._memory.span_floor_B is not None
    assert torch.equal(loaded._memory.span_floor_B, model._memory.span_floor_B)


def span_gradient(model: MemoryOnPolicyAlgorithm) -> float:
    """The largest gradient of span predictors in the last minibatch; 0 if there is none."""
    parameters = [p for layer in model.policy.transformer.layers for p in layer.retention.parameters()]
    return max(float(p.grad.abs().max()) for p in parameters) if parameters[0].grad is not None else 0.0


@pytest.mark.parametrize(("method", "teaches"), [("paper", True), ("none", False)])
def test_only_the_papers_method_lets_the_task_teach_spans(method: Any, teaches: bool) -> None:
    """On the ramp, with a penalty of weight 0."""
    model = ppo(corridor(), method=method, penalty=PenaltySettings(weight=0.0))
    biases = [layer.retention.predictor.bias for layer in model.policy.transformer.layers]
    before = [bias.item() for bias in biases]
    model.learn(16 * 8 * 4)
    assert (span_gradient(model) > 0.0) == teaches
    assert teaches or [bias.item() for bias in biases] == before


def test_the_penalty_shortens_spans() -> None:
    def bias(weight: float) -> float:
        model = ppo(corridor(), method="paper", penalty=PenaltySettings(weight=weight, form="all"))
        model.learn(16 * 8 * 4)
        return sum(layer.retention.predictor.bias.item() for layer in model.policy.transformer.layers)

    assert bias(1.0) < bias(0.0) - 1e-3


def test_the_tasks_gradient_reaches_no_span(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an evaluated row there is none."""
    monkeypatch.setattr(Forgetting, "log_factor_B", lambda self, epoch: None)
    model = ppo(corridor())
    model.learn(16 * 8 * 2)
    assert span_gradient(model) == 0.0


def test_reliance_and_pace() -> None:
    reliance = Reliance()
    assert (reliance.value, reliance.pace) == (0.0, SMALLEST_PACE)
    reliance.update(10.0, 10 * 0.1)  # ten steps at which all differs a tenth: not ten tenths
    assert reliance.value == pytest.approx(0.1)
    assert reliance.pace == pytest.approx(max(SMALLEST_PACE, 0.1 / FULL_RELIANCE))
    for _ in range(200):
        reliance.update(1.0, 0.9)
    assert reliance.value == pytest.approx(0.9, abs=0.01)
    assert reliance.pace == 1.0


def test_wrong_methods_are_refused() -> None:
    with pytest.raises(ValueError, match="method must be one of counterfactual, paper, none, got 'best'"):
        check_method("best", PenaltySettings())
    with pytest.raises(ValueError, match=r"penalty.use_weight \(1\) is not offered for agents"):
        ppo(vec(RepeatFirst), penalty=PenaltySettings(use_weight=1.0))


class CueAndNoise(gym.Env[np.ndarray, Any]):
    """Say after `length` steps of noise what was seen first; says nothing of success."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 12) -> None:
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.bit, self.t = int(self.np_random.integers(2)), 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t > self.length
        return self._observe(), float(done and int(action) == self.bit), done, False, {}

    def _observe(self) -> np.ndarray:
        cue = 2.0 * self.bit - 1.0 if self.t == 0 else 0.0
        noise = 2.0 * self.np_random.integers(2) - 1.0
        return np.array([cue, float(self.t == self.length), noise], dtype=np.float32)


@pytest.mark.learning
def test_what_is_not_needed_is_forgotten_without_a_word_about_success() -> None:
    """With the defaults but for the length of rollouts; it costs no return."""
    small: dict[str, Any] = {"n_steps": 16, "batch_size": 128, "policy_kwargs": {"width": 32}}
    model = MemoryPPO("MemoryPolicy", vec(lambda: CueAndNoise(8), 32), seed=0, device="cpu", **small)
    rows = rows_of(model, 60_000)
    assert rows[-1]["rollout/ep_rew_mean"] > 0.95
    retained = [rows[-1][f"memory/layer{layer}/retained_mean"] for layer in (1, 2)]
    assert sum(retained) < 0.8 * 2 * rows[-1]["memory/possible_mean"]
    assert min(retained) < 0.6 * rows[-1]["memory/possible_mean"]
