"""The transitions of one rollout, and the memory at its beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.encoders import Features


class Minibatch(NamedTuple):
    """Whole rollouts of some environments."""

    features: Features
    actions: Tensor
    episode_start_BT: Bool[Tensor, "B T"]
    old_values_BT: Float[Tensor, "B T"]
    old_log_prob_BT: Float[Tensor, "B T"]
    advantages_BT: Float[Tensor, "B T"]
    returns_BT: Float[Tensor, "B T"]
    state: MemoryState
    span_limit_BT: Float[Tensor, "B T"] | None
    log_factor_B: Float[Tensor, " B"] | None
    """log of the factor on the spans of each row (`model.shortening`); NaN: the row is not evaluated"""
    share: float
    """this rank's fraction of the minibatch of all ranks; 0: a placeholder row with no weight"""


class RolloutBuffer:
    """Transitions of `num_envs` environments over `num_steps` steps, written one step at a time."""

    def __init__(self, num_envs: int, num_steps: int, device: torch.device) -> None:
        """Allocate the buffer; that of features and actions is allocated by the first `add`."""
        self.num_envs = num_envs
        self.num_steps = num_steps
        self.device = device

        def zeros(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_envs, num_steps, dtype=dtype, device=device)

        self.episode_start_BT = zeros(torch.bool)
        self.rewards_BT, self.values_BT, self.log_prob_BT = zeros(), zeros(), zeros()
        self.advantages_BT, self.returns_BT = zeros(), zeros()
        self.span_limit_BT: Tensor | None = None
        self.features: Features = {}
        self.actions: Tensor | None = None
        self.state: MemoryState | None = None
        self.position = 0

    def reset(self, state: MemoryState) -> None:
        """Begin a rollout with this memory, which must not be changed afterwards."""
        self.state = state
        self.position = 0

    def add(
        self,
        features: Features,
        actions: Tensor,
        episode_start_B: Tensor,
        values_B: Tensor,
        log_prob_B: Tensor,
        span_limit_B1: Float[Tensor, "B 1"] | None,
    ) -> None:
        """Store a step, except its rewards: the caller writes those to `rewards_BT`."""
        if self.actions is None:
            self.actions = self._allocate(actions)
            self.features = {name: self._allocate(part) for name, part in features.items()}
        t = self.position
        for name, part in features.items():
            self.features[name][:, t] = part
        self.actions[:, t] = actions
        self.episode_start_BT[:, t] = episode_start_B
        self.values_BT[:, t] = values_B
        self.log_prob_BT[:, t] = log_prob_B
        if span_limit_B1 is not None:
            if self.span_limit_BT is None:
                self.span_limit_BT = torch.zeros_like(self.rewards_BT)
            self.span_limit_BT[:, t : t + 1] = span_limit_B1
        self.position += 1

    def _allocate(self, part: Tensor) -> Tensor:
        return torch.zeros(
            self.num_envs, self.num_steps, *part.shape[1:], dtype=part.dtype, device=self.device
        )

    def compute_advantages(
        self,
        last_values_B: Tensor,
        last_episode_start_B: Tensor,
        *,
        gamma: float,
        gae_lambda: float,
        critic_lambda: float,
    ) -> None:
        """Generalized advantage estimation (Schulman 2016, https://arxiv.org/abs/1506.02438, equation 16).

        Args:
            last_values_B: values of the observations after the rollout.
            last_episode_start_B: where the last step of the rollout ended an episode, so that the observation
                after it begins another.
            gamma: discount factor.
            gae_lambda: lambda of the advantages.
            critic_lambda: lambda of the returns, the critic's targets.
        """
        lambda_N1 = last_values_B.new_tensor([[gae_lambda], [critic_lambda]])
        running_NB = torch.zeros_like(last_values_B).expand(2, -1)
        next_values_B, next_episode_start_B = last_values_B, last_episode_start_B
        for t in reversed(range(self.num_steps)):
            continues_B = (~next_episode_start_B).float()
            delta_B = self.rewards_BT[:, t] + gamma * next_values_B * continues_B - self.values_BT[:, t]
            running_NB = delta_B + gamma * lambda_N1 * continues_B * running_NB
            self.advantages_BT[:, t], self.returns_BT[:, t] = running_NB.unbind()
            next_values_B, next_episode_start_B = self.values_BT[:, t], self.episode_start_BT[:, t]
        self.returns_BT += self.values_BT

    def minibatches(
        self,
        num_rows: int,
        ranks: DistributedContext = SINGLE_PROCESS,
        log_factor_B: Float[Tensor, " B"] | None = None,
    ) -> Iterator[Minibatch]:
        """Yield random minibatches of `num_rows` environments each, every environment once.

        Within a minibatch, environments are sorted by the number of memories they retain, so that attention
        can process similar ones together.

        A minibatch is drawn from the environments of all `ranks`, and each rank gets its own rows of it. A
        rank without any gets a placeholder row with no weight, since all ranks take part in every gradient
        step. `log_factor_B` is passed on to the rows.
        """
        assert self.actions is not None
        assert self.state is not None
        retained_B = self.state.retained_B
        own = ranks.rows(self.num_envs)
        permutation = torch.randperm(ranks.world_size * self.num_envs, device=self.device)
        for group in torch.split(permutation, num_rows):
            mine = group
            if ranks.is_distributed:
                mine = group[(group >= own.start) & (group < own.stop)] - own.start
            share = len(mine) / len(group)
            if not share:
                mine = torch.zeros_like(group[:1])
            rows = mine[retained_B[mine].argsort()]
            yield Minibatch(
                {name: part[rows] for name, part in self.features.items()},
                self.actions[rows],
                self.episode_start_BT[rows],
                self.values_BT[rows],
                self.log_prob_BT[rows],
                self.advantages_BT[rows],
                self.returns_BT[rows],
                self.state.select(rows).trimmed(),
                None if self.span_limit_BT is None else self.span_limit_BT[rows],
                None if log_factor_B is None else log_factor_B[rows],
                share,
            )
