"""Memory that learns when to forget.

Expire-Span: Sukhbaatar et al., "Not All Memories are Created Equal: Learning to Forget by
Expiring", ICML 2021, https://arxiv.org/abs/2105.06548. Comments give that paper's symbols:
span e_i, maximum span L, remaining span r_ti, mask m_ti, ramp length R.

Shape letters used in this file (logical dimensions, always in this order):
    B  rows of the batch
    T  query steps
    M  memories
    D  model width
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_MASK = 1e-6
"""A mask at or below this counts as 0. Attention is renormalized (equation 4), so a single memory with
a mask of one rounding error would be attended in full: whether it is there must not hang on rounding."""

PenaltyForm = Literal["capped", "all", "ramp"]


class PenaltyKind(NamedTuple):
    """Which span penalty to compute."""

    form: PenaltyForm
    """"all": equation 6 on every memory written; "capped": the same with a cap on each memory's cost;
    "ramp": the released code's, on fading memories only"""
    cap_steps: float = 64.0
    """the cap, used by "capped" alone"""
    use_steps: float = 0.0
    """what attention takes off the cost of a memory older than the ramp; see `use_discount`"""


class SpanNoise(NamedTuple):
    """How training disturbs spans so that none is tuned to one length; None while evaluating.

    Both parts belong to a (row, step) and stay constant within an episode, so a memory and every
    query that can see it agree on them.
    """

    limit_BT: Float[Tensor, "B T"]
    """random span shortening (released code): spans are clamped to this many steps, u * L"""
    rate_BT: Float[Tensor, "B T"]
    """time dilation: the clock runs so many times faster, i.e. spans are divided by it"""

    def apply(self, span_BM: Float[Tensor, "B M"], at: slice) -> Float[Tensor, "B M"]:
        """Spans as seen by the steps `at` (one step for all memories, or one step each)."""
        return torch.minimum(span_BM, self.limit_BT[:, at]) / self.rate_BT[:, at]


class ExpireSpan(nn.Module):
    """Predict how long each memory is worth keeping (equation 1), one predictor for all heads."""

    def __init__(
        self,
        width: int,
        *,
        max_span: int,
        ramp: int,
        initial_span_fraction: float = 0.1,
        span_divisor: float = 1.0,
    ) -> None:
        """Build the predictor; every span starts at `initial_span_fraction * max_span`.

        Args:
            width: D, the size of a memory.
            max_span: L, the longest span that can be predicted, in steps.
            ramp: R, steps over which an expiring memory fades from 1 to 0. May exceed `max_span`.
            initial_span_fraction: p; the bias starts at logit(p), the weights at zero (released code).
            span_divisor: d; hidden states are divided by it before the predictor, so that spans do
                not jump when L is very large (released code).

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if max_span < 1 or ramp < 1:
            raise ValueError(f"max_span and ramp must be at least 1 step, got {max_span} and {ramp}")
        if not 0.0 < initial_span_fraction < 1.0:
            raise ValueError(f"initial_span_fraction must lie inside (0, 1), got {initial_span_fraction}")
        if span_divisor <= 0.0:
            raise ValueError(f"span_divisor must be positive, got {span_divisor}")
        self.max_span = max_span
        self.ramp = ramp
        self.span_divisor = span_divisor
        self.predictor = nn.Linear(width, 1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(
            self.predictor.bias, math.log(initial_span_fraction / (1.0 - initial_span_fraction))
        )

    def forward(self, hidden_BMD: Float[Tensor, "B M D"]) -> Float[Tensor, "B M"]:
        """e_i for every memory, in steps."""
        return self.span(F.linear(hidden_BMD, self.predictor.weight).squeeze(-1))

    def span(self, product: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """e_i from w . h_i, without divisor and bias."""
        if self.span_divisor != 1.0:
            product = product / self.span_divisor
        return self.max_span * torch.sigmoid(product + self.predictor.bias)

    def mask(self, remaining: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """m_ti of equation 3 from r_ti of equation 2: 1 while alive, 0 once expired, linear between."""
        return F.threshold((remaining / self.ramp + 1.0).clamp(max=1.0), SMALLEST_MASK, 0.0)


def span_cost(span: Float[Tensor, "*shape"], cap_steps: float | None) -> Float[Tensor, "*shape"]:
    """What a memory costs: e_i itself (equation 6), or c (1 - exp(-e_i / c)), which never exceeds the cap c.

    With a cap, a memory that is kept very long costs hardly more for being kept longer, so the
    penalty shortens the many that are of no use and leaves the few that the task needs alone.
    """
    return span if cap_steps is None else cap_steps * -torch.expm1(-span / cap_steps)


def use_discount(
    span_BW: Float[Tensor, "B W"], attention_BW: Float[Tensor, "B W"], use_steps: float
) -> Float[Tensor, " B"]:
    """What use takes off the cost of memories: `use_steps` times log e_i per unit of attention received.

    The task teaches spans on the ramp alone, so a memory is kept for as long as training happened to need
    it, and no longer. Attention to a memory that is old already says that this one is worth keeping: its
    span then grows by factors, whatever its length. A useless memory is not attended once it is old, or
    shares its attention with all the others, and is not protected.

    Args:
        span_BW: e_i, in steps.
        attention_BW: attention that each memory received at an age above the ramp, without gradient.
        use_steps: steps of cost per unit of attention and e-folding of the span.
    """
    return use_steps * (attention_BW * span_BW.clamp_min(1.0).log()).sum(1)


def ramp_penalty(
    remaining_BTM: Float[Tensor, "B T M"], mask_BTM: Float[Tensor, "B T M"], ramp: int
) -> Float[Tensor, " B"]:
    """The released code's span penalty of a block, per row.

    The sum of r_ti over pairs on the ramp, divided by R and by the block's length T. Its value is
    negative and means nothing; its gradient is 1 / T per step of the ramp and memory.

    Args:
        remaining_BTM: r_ti, in steps.
        mask_BTM: m_ti, zero where a query may not look.
        ramp: R, in steps.
    """
    flat_BTM = (mask_BTM == 0.0) | (mask_BTM == 1.0)
    return remaining_BTM.masked_fill(flat_BTM, 0.0).sum((1, 2)) / (ramp * mask_BTM.shape[1])
