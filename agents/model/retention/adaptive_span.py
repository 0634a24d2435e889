"""One span per head, learned, and the same for every memory.

Adaptive-Span: Sukhbaatar et al., "Adaptive Attention Span in Transformers", ACL 2019,
https://arxiv.org/abs/1905.07799. That paper keeps the span of a head between 0 and L by cutting it off
after every update; here it is L * sigmoid(b_h), as in Expire-Span, so that no span gets stuck at a bound, and
the two differ only in what a span depends on.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.base import LearnedSpans
from memory_suite.agents.model.retention.penalty import span_cost
from memory_suite.agents.model.settings import PenaltySpec


class AdaptiveSpan(LearnedSpans):
    """A memory is kept as long as the longest span of a head."""

    def __init__(
        self, num_heads: int, *, max_span: int, ramp: int, initial_span_fraction: float = 0.1
    ) -> None:
        """Give every head a span of `initial_span_fraction * max_span`.

        Args:
            num_heads: H.
            max_span: L, the longest span possible, in steps.
            ramp: R, number of steps over which a memory fades from 1 to 0 for a head.
            initial_span_fraction: p.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__(
            max_span=max_span,
            ramp=ramp,
            initial_span_fraction=initial_span_fraction,
            num_spans=num_heads,
        )
        self.logit_G = nn.Parameter(torch.full((num_heads,), self.initial_logit))

    def spans(
        self,
        span_logits_BNT: Float[Tensor, "B N T"],
        birth_BT: Int[Tensor, "B T"],
        compressed_BT: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B G T"]:
        """L * sigmoid(b_h)."""
        span_G = self.max_span * self.logit_G.sigmoid()
        return span_G.view(1, -1, 1).expand(birth_BT.shape[0], -1, birth_BT.shape[1])

    def penalty(
        self,
        spec: PenaltySpec,
        span_BGW: Float[Tensor, "B G W"],
        end_BGT: Float[Tensor, "B G T"],
        mask_BWGT: Float[Tensor, "B W G T"] | None,
        step_W: Float[Tensor, " W"],
    ) -> Float[Tensor, " B"]:
        """The mean span of the heads; its logarithm if usefulness counts, which can balance a logarithm."""
        if spec.use_weight is not None:
            return span_cost(span_BGW, "log").mean((1, 2))
        return span_BGW.mean((1, 2))
