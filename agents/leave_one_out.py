"""What a step would have read without the memory it attends to most: what that memory is good for.

Attention alone says little about use. A head with nothing to do must attend to something all the same, and
what it reads there may be ignored. So each head's most attended memory is taken away from all heads, and
what comes out of the model is compared (`agents.policies`): exact for a single layer, at the cost of its
feed-forward part, because attention without one memory follows from attention with it. With several
layers what changes in a step reaches the layers above it, whose attention stays as it is; what later steps
would have read there differently is left out.

Shape letters:
    B  rows of the batch     T  queries     M  memories
    H  heads                 C  memories taken away, one at a time: one for each head
    S  sets of rows to read: 1 if all heads read the same, else H                      Q  size of a row
    D  model width           O  memories taken away in all layers so far
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOTHING_LEFT = 1e-5
"""Attention to all other memories together at or below which there are none: what a step reads without the
one is computed by a division by this."""


class Ablation(NamedTuple):
    """What comes out of the layers without each of the memories that their heads attended to most."""

    y_BTOD: Float[Tensor, "B T O D"]
    shortfall_BTO: Float[Tensor, "B T O"]
    """of the memory's span (`agents.retention.span_shortfall`), with gradient; 0 where there was none"""


@torch.no_grad()
def leave_one_out(
    read_BTHQ: Float[Tensor, "B T H Q"],
    value_BSMQ: Float[Tensor, "B S M Q"],
    attention_BTHM: Float[Tensor, "B T H M"],
) -> tuple[Float[Tensor, "B T C H Q"], Int[Tensor, "B T C"]]:
    """For every head: the memory that it attends to most, and what all heads read without it.

    Args:
        read_BTHQ: what was read.
        value_BSMQ: what is read from each memory.
        attention_BTHM: a'_ti. Need not sum to 1: the rest goes to nothing.

    Returns:
        What is read without the memory of each head, and that memory's place in M.
    """
    batch, _, heads, size = read_BTHQ.shape
    place_BTC = attention_BTHM.argmax(3)
    value_BMSQ = value_BSMQ.transpose(1, 2)
    index_BNSQ = place_BTC.view(batch, -1, 1, 1).expand(-1, -1, value_BMSQ.shape[2], size)
    value_BTCSQ = value_BMSQ.gather(1, index_BNSQ).view(*place_BTC.shape, -1, size)
    # What each head gives to the memory that head C attends to most.
    share_BTHC = attention_BTHM.gather(3, place_BTC.unsqueeze(2).expand(-1, -1, heads, -1))
    share_BTCH1 = share_BTHC.transpose(2, 3).unsqueeze(4)
    rest_BTCH1 = 1.0 - share_BTCH1
    others_BTCHQ = (read_BTHQ.unsqueeze(2) - share_BTCH1 * value_BTCSQ) / rest_BTCH1.clamp_min(NOTHING_LEFT)
    return others_BTCHQ.masked_fill(rest_BTCH1 <= NOTHING_LEFT, 0.0), place_BTC
