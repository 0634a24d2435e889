"""Memory that learns when to forget.

Expire-Span: Sukhbaatar et al., "Not All Memories are Created Equal: Learning to Forget by
Expiring", ICML 2021, https://arxiv.org/abs/2105.06548. Comments give that paper's symbols:
span e_i, maximum span L, remaining span r_ti, mask m_ti, ramp length R.

Shape letters used in this file (logical dimensions, always in this order):
    B  rows of the batch
    T  query steps
    G  spans of a memory: 1 here, the heads share it
    X  probes: 1 here
    M  memories
    D  model width
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.base import LearnedSpans
from memory_suite.agents.model.retention.penalty import PenaltyKind, ramp_penalty, span_cost


class ExpireSpan(LearnedSpans):
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
        if span_divisor <= 0.0:
            raise ValueError(f"span_divisor must be positive, got {span_divisor}")
        super().__init__(max_span=max_span, ramp=ramp, initial_span_fraction=initial_span_fraction)
        self.span_divisor = span_divisor
        self.predictor = nn.Linear(width, 1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(self.predictor.bias, self.initial_logit)

    @property
    def probe_1D(self) -> Tensor:
        """W."""
        return self.predictor.weight

    def spans(
        self,
        product_BXM: Float[Tensor, "B X M"],
        birth_BM: Int[Tensor, "B M"],
        pooled_BM: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B G M"]:
        """e_i = L * sigmoid(w . h_i / d + b), from w . h_i."""
        if self.span_divisor != 1.0:
            product_BXM = product_BXM / self.span_divisor
        return self.max_span * (product_BXM + self.predictor.bias).sigmoid()

    def penalty(
        self,
        kind: PenaltyKind,
        span_BGT: Float[Tensor, "B G T"],
        end_BGM: Float[Tensor, "B G M"],
        mask_BTGM: Float[Tensor, "B T G M"] | None,
        step_T: Float[Tensor, " T"],
    ) -> Float[Tensor, " B"]:
        """Of the form asked for."""
        if kind.form == "ramp":
            assert mask_BTGM is not None
            return ramp_penalty(end_BGM.unsqueeze(1) - step_T.view(1, -1, 1, 1), mask_BTGM, self.ramp)
        return span_cost(span_BGT, kind.form, kind.cap_steps).mean((1, 2))
