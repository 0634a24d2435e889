"""What would be done without a single memory: what that memory is good for.

Attention alone says little about use. A head with nothing to do must attend to something all the same, and
what it reads there may be ignored. So each head's most attended memory is taken away from all heads, and
what comes out of the model is compared: exact for a single layer, at the cost of its feed-forward part,
because attention without one memory follows from attention with it. With several layers what changes in a
step reaches the layers above it, whose attention stays as it is; what later steps would have read there
differently is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOTHING_LEFT = 1e-5
"""Attention to all other memories together at or below which there are none: what a query reads without the
one is computed by a division by this."""
SMALLEST_EFFECT = 0.1
"""Nats. Without any one memory what is done changes a little; over hundreds of steps that would add up to as
much as the one step for which a memory is there."""
LARGEST_EFFECT = 1.0
"""Nats. Another action is done then; how certain of it the policy is does not make a memory more useful."""


class Ablation(NamedTuple):
    """What comes out of the layers without each of the memories that their heads attended to most."""

    y_NTD: Float[Tensor, "N T D"]
    shortfall_NT: Float[Tensor, "N T"]
    """of the memory's span (`span_shortfall`), with gradient; 0 where there was none"""

    def cost(
        self, divergence: Callable[[Tensor], Tensor], *, num_heads: int, num_steps: int
    ) -> Float[Tensor, ""]:
        """What the use of memories with too short spans adds to the span penalty, per unit of its weight.

        Args:
            divergence: of what is done from what would be done with these hidden states [N, D], by Kullback
                and Leibler, in nats. It counts without its first `SMALLEST_EFFECT`, up to `LARGEST_EFFECT`.
            num_heads: H; each head asks for an H-th.
            num_steps: by which the sum is divided: of the block and all rows, asked or not.
        """
        if not len(self.y_NTD):  # torch's distributions refuse to be of nothing
            return self.shortfall_NT.sum()
        with torch.no_grad():
            effect_TN = torch.stack([divergence(y_ND) for y_ND in self.y_NTD.unbind(1)])
            effect_NT = (effect_TN.T - SMALLEST_EFFECT).clamp(0.0, LARGEST_EFFECT) / num_heads
        return (effect_NT * self.shortfall_NT).sum() / num_steps


@torch.no_grad()
def leave_one_out(
    context_NHK: Float[Tensor, "N H K"],
    value_BHTK: Float[Tensor, "B _ T K"],
    attention_NHT: Float[Tensor, "N H T"],
    row_N: Int[Tensor, " N"],
) -> tuple[Float[Tensor, "N H H K"], Int[Tensor, "N H"]]:
    """For every head: the memory that it attends to most, and what all heads read without it.

    Args:
        context_NHK: what was read.
        value_BHTK: what is read from each memory.
        attention_NHT: a'_ti. Need not sum to 1: the rest goes to nothing.
        row_N: the row of each query.

    Returns:
        What is read without the memory of each head, and that memory's place in M.
    """
    place_NH = attention_NHT.argmax(2)
    value_NHHK = value_BHTK.transpose(1, 2)[row_N.unsqueeze(1), place_NH]
    # What each head gives to the memory that head C attends to most.
    share_NHH = attention_NHT.gather(2, place_NH.unsqueeze(1).expand(-1, attention_NHT.shape[1], -1))
    share_NHH1 = share_NHH.transpose(1, 2).unsqueeze(3)
    rest_NHH1 = 1.0 - share_NHH1
    others_NHHK = (context_NHK.unsqueeze(1) - share_NHH1 * value_NHHK) / rest_NHH1.clamp_min(NOTHING_LEFT)
    return others_NHHK.masked_fill(rest_NHH1 <= NOTHING_LEFT, 0.0), place_NH
