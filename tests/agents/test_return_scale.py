"""Learning does not depend on the unit of reward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformReward

from memory_suite import MemoryPolicy
from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.algorithms.return_scale import ReturnScale
from tests.agents.small_envs import AnySpace, Endless
from tests.agents.test_algorithms import a2c, ppo, rows_of, vec


def test_statistics_are_those_of_all_returns() -> None:
    rng, scale = np.random.default_rng(0), ReturnScale()
    rollouts = [rng.normal(3.0, 2.0, (4, 5)) for _ in range(200)]
    for returns in rollouts:
        scale.update(torch.tensor(returns))
    every = np.concatenate(rollouts)
    assert scale.mean == pytest.approx(every.mean())
    assert scale.square == pytest.approx(np.square(every).mean())
    deviation = np.abs(every - every.mean()).mean()
    assert scale.size == pytest.approx(every.var() / deviation, rel=0.02)
    assert scale.size == pytest.approx(2.0 * np.sqrt(np.pi / 2), rel=0.02)  # of a normal distribution


@pytest.mark.parametrize("share", [0.5, 0.05, 0.005])
def test_the_size_of_rare_rewards_does_not_fall_with_their_share(share: float) -> None:
    """Returns are 1 in a share of the steps: their size is 1/2, their standard deviation falls."""
    scale = ReturnScale()
    returns = torch.zeros(1, 1000)
    returns[0, : int(1000 * share)] = 1.0
    scale.update(returns)
    assert scale.size == pytest.approx(0.5)


def test_equal_returns_have_no_size() -> None:
    scale = ReturnScale()
    scale.update(torch.zeros(2, 3))
    assert scale.size == 0.0


def test_rescaling_keeps_every_value() -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2), lambda _: 1e-3, width=8)
    torch.nn.init.normal_(policy.value_net.weight)
    y = torch.randn(5, 8)
    before = policy.values(y)
    policy.rescale_values(-40.0, 7.0, preserve=True)
    policy.rescale_values(3.0, 0.01, preserve=True)
    torch.testing.assert_close(policy.values(y), before, rtol=1e-4, atol=1e-4)
    policy.rescale_values(100.0, 2.0, preserve=False)
    torch.nn.init.zeros_(policy.value_net.weight)
    torch.nn.init.zeros_(policy.value_net.bias)
    assert policy.values(y).tolist() == [100.0] * 5


def test_a_tenth_of_the_critics_gradient_reaches_the_transformer() -> None:
    policy = MemoryPolicy(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2), lambda _: 1e-3, width=8)
    torch.nn.init.normal_(policy.value_net.weight)
    y = torch.randn(3, 8, requires_grad=True)
    (found,) = torch.autograd.grad(policy.values(y).sum(), y)
    (whole,) = torch.autograd.grad(policy.value_net(policy.value_body(y)).sum(), y)
    torch.testing.assert_close(found, 0.1 * whole)


class Scaled(TransformReward):
    """Rewards of another unit."""

    def __init__(self, env: gym.Env[Any, Any], factor: float) -> None:
        super().__init__(env, lambda reward: factor * float(reward))


def trained(make: Any, factor: float, updates: int) -> tuple[MemoryOnPolicyAlgorithm, list[Any]]:
    """A model after some updates, and the actions of all its rollouts."""
    model = make(vec(lambda: Scaled(gym.make("CartPole-v1"), factor)))
    actions: list[Any] = []
    step = model.env.step

    def remember(chosen: Any) -> Any:
        actions.append(chosen.tolist())
        return step(chosen)

    model.env.step = remember
    model.learn(16 * 4 * updates)
    return model, actions


@pytest.mark.parametrize("make", [ppo, a2c])
def test_powers_of_two_change_no_digit(make: Callable[..., MemoryOnPolicyAlgorithm]) -> None:
    base, actions = trained(make, 1.0, 8)
    for factor in (2.0**7, 2.0**-7):
        other, others = trained(make, factor, 8)
        assert others == actions
        for name, part in base.policy.state_dict().items():
            unit = factor if name in ("value_mean", "value_scale") else 1.0
            assert torch.equal(part * unit, other.policy.state_dict()[name]), name


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_other_factors_change_rounding_alone(factor: float) -> None:
    """The same actions in the first five rollouts."""
    _, actions = trained(ppo, 1.0, 5)
    _, others = trained(ppo, factor, 5)
    assert others == actions


class OneStep(AnySpace):
    """Episodes of one step."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, _, _, info = super().step(action)
        return observation, -1.0, True, False, info


NUMBERS = spaces.Box(-1.0, 1.0, (2,), np.float32)
STRANGE: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "one step": lambda: OneStep(NUMBERS, spaces.Discrete(2)),
    "no end": Endless,
    "no reward": lambda: Scaled(AnySpace(NUMBERS, spaces.Discrete(2)), 0.0),
    "negative": lambda: Scaled(AnySpace(NUMBERS, spaces.Discrete(2)), -1e4),
    "tiny": lambda: Scaled(AnySpace(NUMBERS, spaces.Discrete(2)), 1e-12),
    "constant": lambda: TimeLimit(Endless(), 5),
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("make", [ppo, a2c])
def test_strange_rewards_train_without_nan(make: Any, name: str) -> None:
    model = make(vec(STRANGE[name]))
    rows = rows_of(model, 16 * 4 * 4)
    assert all(bool(part.isfinite().all()) for part in model.policy.state_dict().values())
    assert all(np.isfinite(row["train/loss"]) for row in rows)
    assert (rows[-1]["train/return_size"] == 0.0) == (name in ("no reward", "one step"))
