"""How training disturbs spans, so that what is learned does not hang on one length.

Two disturbances, both drawn when an episode begins and constant within it, so that acting and
learning see the same: *random span shortening* (the released code: spans are clamped to u * L) and
*time dilation* (the episode's clock runs faster: surviving 200 of its steps takes a span of 200
times the rate, which teaches surviving 20,000 ordinary ones).

Dilation paces itself: clocks are ordinary until the task is solved, then the fastest one speeds up
for as long as the task stays solved with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from agents.block_view import SpanNoise
from agents.ranks import ALONE, Ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanNoiseSettings:
    """Which disturbances; none by default."""

    random_shortening: bool = False
    """clamp spans to u * L, u ~ U(0, 1)"""
    time_dilation_max: float = 1.0
    """the fastest clock that is ever used; 1: no dilation"""
    time_dilation_probability: float = 0.5
    """share of episodes whose clock runs fast, at a rate log-uniform between 1 and the fastest so far"""
    time_dilation_growth: float = 1.03
    """factor per update on the fastest clock while the task stays solved"""
    target_success: float = 0.97
    """solved: the worst class of episodes, dilated ones included, succeeds this often"""

    def __post_init__(self) -> None:
        """Refuse what makes no sense; raises ValueError."""
        if self.time_dilation_max < 1.0:
            raise ValueError(f"time_dilation_max must be at least 1, got {self.time_dilation_max}")
        if not 0.0 <= self.time_dilation_probability <= 1.0:
            raise ValueError(
                f"time_dilation_probability must lie in [0, 1], got {self.time_dilation_probability}"
            )
        if self.time_dilation_growth < 1.0:
            raise ValueError(f"time_dilation_growth must be at least 1, got {self.time_dilation_growth}")


class SpanNoiseSampler:
    """Draws the noise of each episode as it begins."""

    def __init__(self, settings: SpanNoiseSettings) -> None:
        """Start with ordinary clocks."""
        self.settings = settings
        self.fastest = 1.0
        """the fastest clock so far"""
        self.current: SpanNoise | None = None
        """noise of the step taken last, parts of shape [B, 1]"""

    def sample(self, is_first_B: Bool[Tensor, " B"], max_span: int, ranks: Ranks = ALONE) -> SpanNoise | None:
        """The noise of this step: as before, drawn anew where an episode begins; None if there is none.

        All `ranks` draw if an episode begins on any of them, so that their generators stay in step.
        """
        settings = self.settings
        if not settings.random_shortening and settings.time_dilation_max == 1.0:
            return None
        if self.current is None:
            neutral_B1 = torch.ones(len(is_first_B), 1, device=is_first_B.device)
            self.current = SpanNoise(neutral_B1 * max_span, neutral_B1)
        if any(ranks.any(bool(is_first_B.any()))):
            batch = len(is_first_B)
            first_B1 = is_first_B.unsqueeze(1)
            draws_3N1 = torch.rand(3, ranks.count * batch, 1, device=first_B1.device)
            draws_3B1 = draws_3N1[:, ranks.rows(batch)]
            limit_B1, rate_B1 = self.current
            if settings.random_shortening:
                limit_B1 = torch.where(first_B1, draws_3B1[0] * max_span, limit_B1)
            fast_B1 = draws_3B1[1] < settings.time_dilation_probability
            drawn_B1 = torch.where(fast_B1, (draws_3B1[2] * math.log(self.fastest)).exp(), 1.0)
            self.current = SpanNoise(limit_B1, torch.where(first_B1, drawn_B1, rate_B1))
        return self.current

    def update(self, worst_success: float | None) -> None:
        """Once per rollout: speed up if the task is solved (None: not known)."""
        if worst_success is not None and worst_success >= self.settings.target_success:
            self.fastest = min(
                self.settings.time_dilation_max, self.fastest * self.settings.time_dilation_growth
            )

    def dilated(self) -> list[bool]:
        """Which environments are in an episode whose clock runs fast; empty if there is no noise."""
        return [] if self.current is None else (self.current.rate_BT[:, 0] > 1.0).tolist()

    def state_dict(self) -> dict[str, Tensor | float]:
        """What a checkpoint needs."""
        state: dict[str, Tensor | float] = {"fastest": self.fastest}
        if self.current is not None:
            state |= {"limit": self.current.limit_BT, "rate": self.current.rate_BT}
        return state

    def load_state_dict(self, state: dict[str, Tensor | float]) -> None:
        """Continue from a checkpoint."""
        limit, rate, fastest = state.get("limit"), state.get("rate"), state["fastest"]
        assert isinstance(fastest, float)
        self.fastest = fastest
        self.current = (
            SpanNoise(limit, rate) if isinstance(limit, Tensor) and isinstance(rate, Tensor) else None
        )
