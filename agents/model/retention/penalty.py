"""Penalties on spans."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

SHORTEST_SPAN = 1e-6
"""Lower bound, in steps, of a span whose logarithm is taken."""


def span_cost(span: Float[Tensor, "*shape"], form: Literal["log", "all"]) -> Float[Tensor, "*shape"]:
    """Cost of a memory: log(1 + e_i) or e_i itself (equation 6, "all").

    The gradient of the logarithm is relative to the span: all useless spans shrink at the same rate, down to
    0, and useful ones are charged the same whatever their length.
    """
    return span.log1p() if form == "log" else span


def span_shortfall(
    span: Float[Tensor, "*shape"], age: Float[Tensor, "*shape"], margin: float
) -> Float[Tensor, "*shape"]:
    """log(target / span), at least 0; the target is `margin` times the age at which the memory was useful."""
    return (margin * age / span.clamp_min(SHORTEST_SPAN)).clamp_min(1.0).log()


def ramp_penalty(
    remaining_BWGT: Float[Tensor, "B W G T"], mask_BWGT: Float[Tensor, "B W G T"], ramp: int
) -> Float[Tensor, " B"]:
    """The span penalty of the released code, per row of a block.

    The sum of r_ti over pairs on the ramp, divided by R and by the block's length. Its value is negative
    and meaningless; its gradient is 1 / length per step of the ramp and memory.

    Args:
        remaining_BWGT: r_ti, in steps.
        mask_BWGT: m_ti, 0 where a query is blocked.
        ramp: R, in steps.
    """
    flat_BWGT = (mask_BWGT == 0.0) | (mask_BWGT == 1.0)
    total_B = remaining_BWGT.masked_fill(flat_BWGT, 0.0).sum((1, 2, 3))
    return total_B / (ramp * mask_BWGT.shape[1] * mask_BWGT.shape[2])
