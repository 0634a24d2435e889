"""Random span shortening, so that what is learned does not hang on one length (the released code).

Spans are clamped to u * L, with u ~ U(0, 1) drawn when an episode begins and constant within it, so that
acting and learning see the same.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext


class RandomShortening:
    """Draws the limit of each episode as it begins."""

    def __init__(self, enabled: bool) -> None:
        """Draw nothing yet; never, if not `enabled`."""
        self.enabled = enabled
        self.limit_B1: Tensor | None = None
        """of the step taken last, in steps"""

    def sample(
        self,
        is_first_B: NDArray[np.bool_],
        max_span: int,
        ranks: DistributedContext = SINGLE_PROCESS,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "B 1"] | None:
        """The limits of this step: as before, drawn anew where an episode begins; None if there is none.

        All `ranks` draw if an episode begins on any of them, so that their generators stay in step.
        """
        if not self.enabled:
            return None
        batch = len(is_first_B)
        if self.limit_B1 is None:
            self.limit_B1 = torch.full((batch, 1), float(max_span))
        self.limit_B1 = self.limit_B1.to(device)  # a checkpoint's lies in memory
        if any(ranks.any(bool(is_first_B.any()))):
            first_B1 = torch.as_tensor(is_first_B, device=device).unsqueeze(1)
            draw_N1 = torch.rand(ranks.world_size * batch, 1, device=device)
            self.limit_B1 = torch.where(first_B1, draw_N1[ranks.rows(batch)] * max_span, self.limit_B1)
        return self.limit_B1

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint needs."""
        return {} if self.limit_B1 is None else {"limit": self.limit_B1}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a checkpoint."""
        self.limit_B1 = state.get("limit")
