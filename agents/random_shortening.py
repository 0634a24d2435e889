"""Random span shortening, so that what is learned does not hang on one length (the released code).

Spans are clamped to u * L, with u ~ U(0, 1) drawn when an episode begins and constant within it, so that
acting and learning see the same.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.ranks import ALONE, Ranks


class RandomShortening:
    """Draws the limit of each episode as it begins."""

    def __init__(self, enabled: bool) -> None:
        """Draw nothing yet; never, if not `enabled`."""
        self.enabled = enabled
        self.limit_B1: Tensor | None = None
        """of the step taken last, in steps"""

    def sample(
        self, is_first_B: Bool[Tensor, " B"], max_span: int, ranks: Ranks = ALONE
    ) -> Float[Tensor, "B 1"] | None:
        """The limits of this step: as before, drawn anew where an episode begins; None if there is none.

        All `ranks` draw if an episode begins on any of them, so that their generators stay in step.
        """
        if not self.enabled:
            return None
        first_B1 = is_first_B.unsqueeze(1)
        if self.limit_B1 is None:
            self.limit_B1 = torch.full(first_B1.shape, float(max_span))
        self.limit_B1 = self.limit_B1.to(first_B1.device)  # a checkpoint's lies in memory
        if any(ranks.any(bool(first_B1.any()))):
            batch = len(is_first_B)
            draw_N1 = torch.rand(ranks.count * batch, 1, device=first_B1.device)
            self.limit_B1 = torch.where(first_B1, draw_N1[ranks.rows(batch)] * max_span, self.limit_B1)
        return self.limit_B1

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {} if self.limit_B1 is None else {"limit": self.limit_B1}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.limit_B1 = state.get("limit")
