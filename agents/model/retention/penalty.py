"""Penalties on spans."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SHORTEST_SPAN = 1e-6
"""steps; a span below it is taken for one of this length where its logarithm is asked for"""


PenaltyForm = Literal["log", "capped", "all", "ramp"]


class PenaltySpec(NamedTuple):
    """Which span penalty to compute."""

    form: PenaltyForm
    """what holding costs. "log": the logarithm of 1 + the span of every memory written; "all": equation 6;
    "capped": the same with a cap on each memory's cost; "ramp": the released code's, on fading memories
    only"""
    cap_steps: float = 64.0
    """the cap, used by "capped" alone"""
    use_weight: float | None = None
    """None: the task teaches spans to grow, while their memories are on the ramp, as in the paper. Otherwise
    the use of memories does, and the task does not: where what is done would differ without a memory
    (`agents.model.attention.leave_one_out`), each e-folding that its span is too short (`span_shortfall`)
    costs this much, per nat of the difference; 0: nothing is asked for yet"""
    use_margin: float = 2.0
    """steps of span that use at an age asks for, per step of that age"""

    @property
    def needs_ablation(self) -> bool:
        """Whether the use of memories is needed to know what they cost."""
        return bool(self.use_weight)


def span_cost(
    span: Float[Tensor, "*shape"], form: Literal["log", "capped", "all"], cap_steps: float
) -> Float[Tensor, "*shape"]:
    """What a memory costs: log(1 + e_i), c (1 - exp(-e_i / c)), or e_i itself (equation 6, "all").

    The logarithm charges every span by factors: all that are of no use fall at the same rate, down to
    nothing, and for one that is of use it does not matter how long it is. With a cap c, a memory that is kept
    very long costs hardly more for being kept longer, so the penalty shortens the many that are of no use and
    leaves the few that the task needs alone.
    """
    if form == "log":
        return span.log1p()
    if form == "all":
        return span
    return cap_steps * -torch.expm1(-span / cap_steps)


def span_shortfall(
    span: Float[Tensor, "*shape"], age: Float[Tensor, "*shape"], margin: float
) -> Float[Tensor, "*shape"]:
    """By how many e-foldings a span is shorter than `margin` times the age at which its memory was of use."""
    return (margin * age / span.clamp_min(SHORTEST_SPAN)).clamp_min(1.0).log()


def ramp_penalty(
    remaining_BWGT: Float[Tensor, "B W G T"], mask_BWGT: Float[Tensor, "B W G T"], ramp: int
) -> Float[Tensor, " B"]:
    """The released code's span penalty of a block, per row.

    The sum of r_ti over pairs on the ramp, divided by R and by the block's length T. Its value is
    negative and means nothing; its gradient is 1 / T per step of the ramp and memory.

    Args:
        remaining_BWGT: r_ti, in steps.
        mask_BWGT: m_ti, zero where a query may not look.
        ramp: R, in steps.
    """
    flat_BWGT = (mask_BWGT == 0.0) | (mask_BWGT == 1.0)
    total_B = remaining_BWGT.masked_fill(flat_BWGT, 0.0).sum((1, 2, 3))
    return total_B / (ramp * mask_BWGT.shape[1] * mask_BWGT.shape[2])
