"""Random span shortening, a regularizer of the Expire-Span authors' released code.

Spans are clamped to u * L, with u ~ U(0, 1) drawn when an episode begins and constant within it, so that
acting and training compute the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext


class RandomShortening:
    """Draws the span limit of each episode when it begins."""

    def __init__(self, enabled: bool) -> None:
        """Draw nothing yet; if not `enabled`, never draw."""
        self.enabled = enabled
        self.span_limit_B1: Tensor | None = None
        """span limit of the last step, in steps"""

    def sample(
        self,
        episode_start_B: NDArray[np.bool_],
        max_span: int,
        ranks: DistributedContext = SINGLE_PROCESS,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "B 1"] | None:
        """Span limits of a step, redrawn where an episode begins; None if not enabled.

        If an episode begins on any of the `ranks`, all of them draw, so that their generators stay equal.
        """
        if not self.enabled:
            return None
        batch = len(episode_start_B)
        if self.span_limit_B1 is None:
            self.span_limit_B1 = torch.full((batch, 1), float(max_span))
        self.span_limit_B1 = self.span_limit_B1.to(device)  # that of a checkpoint is on the CPU
        if any(ranks.any(bool(episode_start_B.any()))):
            redraw_B1 = torch.as_tensor(episode_start_B, device=device).unsqueeze(1)
            draw_N1 = torch.rand(ranks.world_size * batch, 1, device=device)
            self.span_limit_B1 = torch.where(
                redraw_B1, draw_N1[ranks.rows(batch)] * max_span, self.span_limit_B1
            )
        return self.span_limit_B1

    def state_dict(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return {} if self.span_limit_B1 is None else {"limit": self.span_limit_B1}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self.span_limit_B1 = state.get("limit")
