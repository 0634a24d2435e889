"""One rollout: what was seen and done, and the memory it began with.

Shape letters:
    B  environments
    T  steps of the rollout
"""

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
    is_first_BT: Bool[Tensor, "B T"]
    old_values_BT: Float[Tensor, "B T"]
    old_log_prob_BT: Float[Tensor, "B T"]
    advantages_BT: Float[Tensor, "B T"]
    returns_BT: Float[Tensor, "B T"]
    state: MemoryState
    limit_BT: Float[Tensor, "B T"] | None
    share: float
    """of the minibatch of all ranks that these rows are; 0: the row is lent and does not count"""


class Rollout:
    """Transitions of `num_envs` environments over `num_steps` steps, written one step at a time."""

    def __init__(self, num_envs: int, num_steps: int, device: torch.device) -> None:
        """Make room; the observation and action parts are laid out by the first step."""
        self.num_envs = num_envs
        self.num_steps = num_steps
        self.device = device

        def zeros(dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(num_envs, num_steps, dtype=dtype, device=device)

        self.is_first_BT = zeros(torch.bool)
        self.rewards_BT, self.values_BT, self.log_prob_BT = zeros(), zeros(), zeros()
        self.advantages_BT, self.returns_BT = zeros(), zeros()
        self.limit_BT: Tensor | None = None
        self.features: Features = {}
        self.actions: Tensor | None = None
        self.state: MemoryState | None = None
        self.position = 0

    def begin(self, state: MemoryState) -> None:
        """Start over, from this memory, which must stay as it is."""
        self.state = state
        self.position = 0

    def add(
        self,
        features: Features,
        actions: Tensor,
        is_first_B: Tensor,
        values_B: Tensor,
        log_prob_B: Tensor,
        limit_B1: Float[Tensor, "B 1"] | None,
    ) -> None:
        """Store what was seen and decided; `rewards_BT` of the same step is written by the caller."""
        if self.actions is None:
            self.actions = self._room_for(actions)
            self.features = {name: self._room_for(part) for name, part in features.items()}
        t = self.position
        for name, part in features.items():
            self.features[name][:, t] = part
        self.actions[:, t] = actions
        self.is_first_BT[:, t] = is_first_B
        self.values_BT[:, t] = values_B
        self.log_prob_BT[:, t] = log_prob_B
        if limit_B1 is not None:
            if self.limit_BT is None:
                self.limit_BT = torch.zeros_like(self.rewards_BT)
            self.limit_BT[:, t : t + 1] = limit_B1
        self.position += 1

    def _room_for(self, part: Tensor) -> Tensor:
        return torch.zeros(
            self.num_envs, self.num_steps, *part.shape[1:], dtype=part.dtype, device=self.device
        )

    def compute_advantages(
        self, last_values_B: Tensor, last_is_first_B: Tensor, *, gamma: float, gae_lambda: float
    ) -> None:
        """Generalized advantage estimation (Schulman 2016, https://arxiv.org/abs/1506.02438, equation 16).

        Args:
            last_values_B: value of the observation after the rollout.
            last_is_first_B: True where the last step of the rollout ended an episode, so that nothing
                of what follows belongs to it.
            gamma: discount factor.
            gae_lambda: lambda of the estimate.
        """
        running_B = torch.zeros_like(last_values_B)
        next_values_B, next_is_first_B = last_values_B, last_is_first_B
        for t in reversed(range(self.num_steps)):
            goes_on_B = (~next_is_first_B).float()
            delta_B = self.rewards_BT[:, t] + gamma * next_values_B * goes_on_B - self.values_BT[:, t]
            running_B = delta_B + gamma * gae_lambda * goes_on_B * running_B
            self.advantages_BT[:, t] = running_B
            next_values_B, next_is_first_B = self.values_BT[:, t], self.is_first_BT[:, t]
        torch.add(self.advantages_BT, self.values_BT, out=self.returns_BT)

    def minibatches(self, num_rows: int, ranks: DistributedContext = SINGLE_PROCESS) -> Iterator[Minibatch]:
        """Random groups of `num_rows` environments each, every environment once.

        Within a group they are ordered by what they remember, so that attention can take those of a
        kind together.

        The groups are of the environments of all `ranks`; this rank has those of its own that are in them.
        If there are none it lends one that does not count, since every rank takes part in every step.
        """
        assert self.actions is not None
        assert self.state is not None
        retained_B = self.state.retained_B
        own = ranks.rows(self.num_envs)
        everybody = torch.randperm(ranks.world_size * self.num_envs, device=self.device)
        for group in torch.split(everybody, num_rows):
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
                self.is_first_BT[rows],
                self.values_BT[rows],
                self.log_prob_BT[rows],
                self.advantages_BT[rows],
                self.returns_BT[rows],
                self.state.select(rows).trimmed(),
                None if self.limit_BT is None else self.limit_BT[rows],
                share,
            )
