"""Leave-one-out ablation: how the output changes without one memory.

Attention weights alone say little about usefulness. A head with nothing to do must attend to something, and
what it reads may be ignored. So each head's most attended memory is removed from all heads, and the outputs
of the model are compared. For a single layer this is exact, at the cost of its feed-forward part, because
attention without one memory follows from attention with it. With several layers the change of a step
reaches the layers above, whose attention stays as it is; effects on later steps are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOTHING_LEFT = 1e-5
"""Total attention to all other memories at or below which there are no others. It is the divisor of what a
query reads without the one."""
SMALLEST_EFFECT = 0.1
"""Threshold in nats. Removing any memory changes the action a little; over hundreds of steps that would
add up to as much as the one step that needs a memory."""
LARGEST_EFFECT = 1.0
"""Cap in nats. Beyond it the action has changed; a more certain policy does not make a memory more useful."""


class Ablation(NamedTuple):
    """Outputs of the layers without single memories: those that heads attend to most.

    T counts the memories removed, one at a time: one per head of each layer so far.
    """

    y_NTD: Float[Tensor, "N T D"]
    shortfall_NT: Float[Tensor, "N T"]
    """shortfall of the memory's span (`span_shortfall`), with gradient; 0 where there is no memory"""

    def cost(
        self, divergence: Callable[[Tensor], Tensor], *, num_heads: int, num_steps: int
    ) -> Float[Tensor, ""]:
        """Compute the usefulness term of the span penalty, per unit of its weight.

        Args:
            divergence: KL divergence in nats of the prediction from the one with given hidden states [N, D].
                It counts beyond `SMALLEST_EFFECT`, up to `LARGEST_EFFECT`.
            num_heads: H, by which the effect of a memory is divided.
            num_steps: number of steps of the block in all rows, by which the sum is divided.
        """
        if not len(self.y_NTD):  # torch's distributions must not be empty
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
    """Remove the memory that each head attends to most, one at a time, from all heads.

    Args:
        context_NHK: context of each head with all memories.
        value_BHTK: values; the same for all heads, or one for each.
        attention_NHT: a'_ti. Need not sum to 1: the rest goes to a null memory.
        row_N: row of each query.

    Returns:
        The contexts without the memory of each head (the first H of N H H K), and its index in T.
    """
    index_NH = attention_NHT.argmax(2)
    value_NHHK = value_BHTK.transpose(1, 2)[row_N.unsqueeze(1), index_NH]
    # Attention of each head to the memory that another head attends to most.
    share_NHH = attention_NHT.gather(2, index_NH.unsqueeze(1).expand(-1, attention_NHT.shape[1], -1))
    share_NHH1 = share_NHH.transpose(1, 2).unsqueeze(3)
    rest_NHH1 = 1.0 - share_NHH1
    others_NHHK = (context_NHK.unsqueeze(1) - share_NHH1 * value_NHHK) / rest_NHH1.clamp_min(NOTHING_LEFT)
    return others_NHHK.masked_fill(rest_NHH1 <= NOTHING_LEFT, 0.0), index_NH
