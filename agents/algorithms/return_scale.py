"""Mean and size of returns, so that learning does not depend on the unit of reward.

The critic predicts returns in units of their size (PopArt, van Hasselt et al. 2016,
https://arxiv.org/abs/1602.07714), and the floor of the advantages' standard deviation is a multiple of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext

WINDOW_ROLLOUTS = 1_000
"""Rollouts are weighted equally until there are so many, then exponentially."""


@dataclass(slots=True)
class ReturnScale:
    """Statistics of the critic's targets over all rollouts.

    The size of returns is their mean squared deviation divided by their mean absolute deviation. It is close
    to the standard deviation for evenly spread returns. Where rewards are rare, the standard deviation falls
    with their frequency, so that noise of the critic looks large; the size stays a multiple of the reward.
    """

    rollouts: int = 0
    mean: float = 0.0
    square: float = 0.0
    """mean square"""
    deviation: float = 0.0
    """mean absolute deviation"""

    @property
    def size(self) -> float:
        """The size of returns, in units of reward; 0 while all returns are equal."""
        return max(self.square - self.mean**2, 0.0) / self.deviation if self.deviation > 0.0 else 0.0

    def update(self, returns_BT: Float[Tensor, "B T"], ranks: DistributedContext = SINGLE_PROCESS) -> None:
        """Add the critic's targets of a rollout, of all ranks."""
        wide_BT = returns_BT.double()
        mean, square = ranks.all_reduce_sum(torch.stack([wide_BT.mean(), wide_BT.square().mean()])).tolist()
        mean, square = mean / ranks.world_size, square / ranks.world_size
        center = self.mean if self.rollouts else mean
        deviation = ranks.all_reduce_sum((wide_BT - center).abs().mean()).item() / ranks.world_size
        self.rollouts += 1
        share = 1.0 / min(self.rollouts, WINDOW_ROLLOUTS)
        self.mean += share * (mean - self.mean)
        self.square += share * (square - self.square)
        self.deviation += share * (deviation - self.deviation)

    def state_dict(self) -> dict[str, int | float]:
        """State for a checkpoint."""
        return {name: getattr(self, name) for name in ("rollouts", "mean", "square", "deviation")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
