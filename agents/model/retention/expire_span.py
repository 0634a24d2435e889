"""Memory that learns when to forget.

Expire-Span: Sukhbaatar et al., "Not All Memories are Created Equal: Learning to Forget by
Expiring", ICML 2021, https://arxiv.org/abs/2105.06548. Comments give that paper's symbols:
span e_i, maximum span L, remaining span r_ti, mask m_ti, ramp length R.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.base import LearnedSpans
from memory_suite.agents.model.retention.penalty import ramp_penalty, span_cost
from memory_suite.agents.model.settings import PenaltySpec


class ExpireSpan(LearnedSpans):
    """Predict how long each memory is worth keeping (equation 1), one predictor for all heads."""

    def __init__(
        self,
        width: int,
        *,
        max_span: int,
        ramp: int,
        initial_span_fraction: float = 0.1,
    ) -> None:
        """Build the predictor; every span starts at `initial_span_fraction * max_span`.

        Args:
            width: D, the size of a memory.
            max_span: L, the longest span that can be predicted, in steps.
            ramp: R, steps over which an expiring memory fades from 1 to 0. May exceed `max_span`.
            initial_span_fraction: p; the bias starts at logit(p), the weights at zero (released code).

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__(max_span=max_span, ramp=ramp, initial_span_fraction=initial_span_fraction)
        self.predictor = nn.Linear(width, 1)
        nn.init.zeros_(self.predictor.weight)
        nn.init.constant_(self.predictor.bias, self.initial_logit)

    @property
    def span_weight_1D(self) -> Tensor:
        """Weights of the predictor."""
        return self.predictor.weight

    def spans(
        self,
        span_logits_BNT: Float[Tensor, "B N T"],
        birth_BT: Int[Tensor, "B T"],
        compressed_BT: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B G T"]:
        """Compute e_i = L * sigmoid(w . h_i + b) from w . h_i."""
        return self.max_span * (span_logits_BNT + self.predictor.bias).sigmoid()

    def penalty(
        self,
        spec: PenaltySpec,
        span_BGW: Float[Tensor, "B G W"],
        end_BGT: Float[Tensor, "B G T"],
        mask_BWGT: Float[Tensor, "B W G T"] | None,
        step_W: Float[Tensor, " W"],
    ) -> Float[Tensor, " B"]:
        """See `Retention.penalty`."""
        if spec.form == "ramp":
            assert mask_BWGT is not None
            return ramp_penalty(end_BGT.unsqueeze(1) - step_W.view(1, -1, 1, 1), mask_BWGT, self.ramp)
        return span_cost(span_BGW, spec.form).mean((1, 2))
