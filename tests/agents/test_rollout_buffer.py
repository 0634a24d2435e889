"""Advantages: by hand, and against the definition as a double sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_suite.agents.algorithms.rollout_buffer import RolloutBuffer


def rollout_of(rewards: Tensor, values: Tensor, is_first: Tensor) -> RolloutBuffer:
    rollout = RolloutBuffer(*rewards.shape, torch.device("cpu"))
    rollout.rewards_BT.copy_(rewards)
    rollout.values_BT.copy_(values)
    rollout.episode_start_BT.copy_(is_first)
    return rollout


def test_advantages_by_hand_with_an_episode_that_ends_inside() -> None:
    """Rewards 1, 2 | 4: the second step ends an episode. gamma = 0.5, lambda = 0.5, all values 1.

    step 2: 4 + 0.5 * 3 - 1 = 4.5 (the value after the rollout is 3)
    step 1: 2 - 1 = 1 (its episode is over: neither the next value nor the next advantage counts)
    step 0: 1 + 0.5 * 1 - 1 + 0.25 * 1 = 0.75
    """
    rollout = rollout_of(
        torch.tensor([[1.0, 2.0, 4.0]]), torch.ones(1, 3), torch.tensor([[True, False, True]])
    )
    rollout.compute_advantages(
        torch.tensor([3.0]), torch.tensor([False]), gamma=0.5, gae_lambda=0.5, critic_lambda=0.0
    )
    assert rollout.advantages_BT.tolist() == [pytest.approx([0.75, 1.0, 4.5])]
    # The critic's targets have a lambda of their own: with 0 they look one step ahead.
    assert rollout.returns_BT.tolist() == [pytest.approx([1.5, 2.0, 5.5])]


def test_values_after_the_end_of_an_episode_do_not_count() -> None:
    rollout = rollout_of(torch.tensor([[1.0]]), torch.zeros(1, 1), torch.tensor([[True]]))
    rollout.compute_advantages(
        torch.tensor([1e9]), torch.tensor([True]), gamma=0.9, gae_lambda=0.9, critic_lambda=0.9
    )
    assert rollout.advantages_BT.item() == 1.0


@given(
    seed=st.integers(0, 2**16), gamma=st.floats(0, 1), gae_lambda=st.floats(0, 1),
    critic_lambda=st.floats(0, 1), rate=st.floats(0, 0.6),
)  # fmt: skip
def test_advantages_equal_the_double_sum(
    seed: int, gamma: float, gae_lambda: float, critic_lambda: float, rate: float
) -> None:
    """A_t = sum_k (gamma * lambda)^k delta_(t+k), up to the end of the episode (equation 16).

    Returns are such sums with the critic's lambda, plus the values.
    """
    g = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 9, generator=g), torch.randn(2, 10, generator=g)
    first = torch.rand(2, 10, generator=g) < rate
    rollout = rollout_of(rewards, values[:, :9], first[:, :9])
    rollout.compute_advantages(
        values[:, 9], first[:, 9], gamma=gamma, gae_lambda=gae_lambda, critic_lambda=critic_lambda
    )

    def double_sum(b: int, t: int, decay: float) -> float:
        total = 0.0
        for k in range(t, 9):
            ended = bool(first[b, k + 1])
            delta = rewards[b, k] + (0.0 if ended else gamma * values[b, k + 1]) - values[b, k]
            total += (gamma * decay) ** (k - t) * float(delta)
            if ended:
                break
        return total

    for b in range(2):
        for t in range(9):
            advantage, target = double_sum(b, t, gae_lambda), double_sum(b, t, critic_lambda)
            assert float(rollout.advantages_BT[b, t]) == pytest.approx(advantage, abs=2e-5)
            assert float(rollout.returns_BT[b, t] - values[b, t]) == pytest.approx(target, abs=2e-5)
