"""Penalties on spans."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SHORTEST_SPAN = 1e-6
"""Lower bound, in steps, of a span whose logarithm is taken."""


PenaltyForm = Literal["log", "capped", "all", "ramp"]


class PenaltySpec(NamedTuple):
    """A span penalty."""

    form: PenaltyForm
    """cost of a span. "log": log(1 + span) of every memory written; "all": equation 6; "capped": equation 6
    with a cap on each memory's cost; "ramp": that of the released code, on fading memories only"""
    cap_steps: float = 64.0
    """cap of a memory's cost (form "capped")"""
    use_weight: float | None = None
    """Weight of the usefulness term. None: spans learn from the task loss through the ramp, as in the paper.
    Otherwise the task loss is cut off from spans, and each memory pays `use_weight * KL * log(target / span)`
    while its span is below the target (`span_shortfall`), where KL is the effect of its ablation
    (`attention.leave_one_out`). 0: the term is off for now"""
    use_margin: float = 2.0
    """target span of a memory that is useful at some age, as a multiple of this age"""

    @property
    def needs_ablation(self) -> bool:
        """Whether memories must be ablated to compute the penalty."""
        return bool(self.use_weight)


def span_cost(
    span: Float[Tensor, "*shape"], form: Literal["log", "capped", "all"], cap_steps: float
) -> Float[Tensor, "*shape"]:
    """Cost of a memory: log(1 + e_i), c (1 - exp(-e_i / c)), or e_i itself (equation 6, "all").

    The gradient of the logarithm is relative to the span: all useless spans shrink at the same rate, down to
    0, and useful ones are charged the same whatever their length. With a cap c, keeping a long memory longer
    costs hardly more, so the penalty shortens the many useless memories and leaves the few useful ones alone.
    """
    if form == "log":
        return span.log1p()
    if form == "all":
        return span
    return cap_steps * -torch.expm1(-span / cap_steps)


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
