"""Retention rules: how long the memories of a layer last. This is all that differs between kinds of memory.

A `Retention` gives every memory its span, from which the layers derive masks (equation 3) and deletion. It
may also replace several memories by one. Only `make.make_retention` knows which kinds there
are. Equations and symbols are those of Expire-Span (https://arxiv.org/abs/2105.06548): span e_i, maximum
span L, remaining span r_ti, mask m_ti, ramp length R.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.settings import PenaltySpec
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import RowStore

SMALLEST_MASK = 1e-6
"""A mask at or below this counts as 0. Attention is renormalized (equation 4), so a single visible memory is
attended to in full even if its mask is one rounding error. Rounding must not decide whether it is seen."""


class CompressedMemories(NamedTuple):
    """Memories that replace others during a block."""

    memory: RowStore
    """the same number for each row, with gradient; births of `NEVER` where a row has fewer"""
    episode_BN: Int[Tensor, "B N"]
    """their episodes, counted as in `BlockView.episode_BW`"""
    blocked_BWN: Bool[Tensor, "B W N"]
    """where a query must not attend to them: before they exist, and in other episodes"""


class Retention(nn.Module):
    """Interface of all kinds of memory; a kind with constant spans implements `spans` alone."""

    learns: ClassVar[bool] = False
    """whether spans are learned; if not, they have no penalty and are never shortened"""
    compresses: ClassVar[bool] = False
    """whether several memories may be replaced by one"""

    def __init__(self, *, ramp: int = 1, num_spans: int = 1, short_term_window: int) -> None:
        """Keep the settings.

        Args:
            ramp: R, number of steps over which an expiring memory fades from 1 to 0. Ages are integers, so a
                ramp of 1 is a hard mask for integer spans.
            num_spans: G.
            short_term_window: number of steps that every memory lasts.

        Raises:
            ValueError: an argument is out of its range.
        """
        super().__init__()
        if ramp < 1:
            raise ValueError(f"ramp must be at least 1 step, got {ramp}")
        self.ramp = ramp
        self.num_spans = num_spans
        self.short_term_window = short_term_window

    @property
    def span_weight_1D(self) -> Tensor | None:
        """Weights of a linear span predictor, if spans depend on the content of memories."""
        return None

    def span_logits(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B N T"]:
        """Products of the memories and `span_weight_1D`; N is 1, or 0 if spans do not depend on content."""
        span_weight_1D = self.span_weight_1D
        if span_weight_1D is None:
            return h_BTD.new_empty(h_BTD.shape[0], 0, h_BTD.shape[1])
        return F.linear(h_BTD, span_weight_1D).transpose(1, 2)

    def spans(
        self,
        span_logits_BNT: Float[Tensor, "B N T"],
        birth_BT: Int[Tensor, "B T"],
        compressed_BT: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B G T"]:
        """Compute e_i, in steps.

        Args:
            span_logits_BNT: result of `span_logits`.
            birth_BT: clock readings at which the memories were written.
            compressed_BT: which memories stand for several others; None: none.
        """
        raise NotImplementedError

    def spans_of(self, memory: RowStore) -> Float[Tensor, "B G T"]:
        """Compute e_i of all memories in a store."""
        return self.spans(self.span_logits(memory.h_BTD), memory.birth_BT, memory.compressed_BT)

    def mask(self, remaining: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """m_ti of equation 3 from r_ti of equation 2: 1 while alive, 0 once expired, linear between."""
        return F.threshold((remaining / self.ramp + 1.0).clamp(max=1.0), SMALLEST_MASK, 0.0)

    def expired(self, remaining: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where m_ti is exactly 0."""
        return remaining / self.ramp + 1.0 <= SMALLEST_MASK

    def penalty(
        self,
        spec: PenaltySpec,
        span_BGW: Float[Tensor, "B G W"],
        end_BGT: Float[Tensor, "B G T"],
        mask_BWGT: Float[Tensor, "B W G T"] | None,
        step_W: Float[Tensor, " W"],
    ) -> Float[Tensor, " B"] | None:
        """Compute the span penalty of a block per row, in steps; None if spans are not learned.

        Args:
            spec: which penalty.
            span_BGW: e_i of the memories written in the block.
            end_BGT: e_i plus birth of all memories, relative to the block.
            mask_BWGT: m_ti, 0 where a query is blocked; needed only by the form "ramp".
            step_W: time of each step, relative to the block.
        """
        return None

    def compress_step(self, memory: RowStore, expired_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Compress memories that the next query does not see, after a step.

        Args:
            memory: the slots, changed in place.
            expired_BT: memories that the next query does not see.

        Returns:
            The slots that are free.
        """
        return expired_BT

    def compress_block(self, memory: RowStore, new: RowStore, view: BlockView) -> CompressedMemories | None:
        """Compute the compressed memories that come to exist during a block or right after it.

        Args:
            memory: the store before the block.
            new: the memories written in the block, with gradient.
            view: the block.
        """
        return None


class LearnedSpans(Retention):
    """Spans between 0 and a maximum, L * sigmoid(something learned)."""

    learns = True

    def __init__(
        self, *, max_span: int, ramp: int, initial_span_fraction: float = 0.1, num_spans: int = 1
    ) -> None:
        """Keep the settings.

        Args:
            max_span: L, the longest span possible, in steps.
            ramp: R, number of steps over which an expiring memory fades from 1 to 0. May exceed `max_span`.
            initial_span_fraction: p; every span starts at p * L.
            num_spans: G.

        Raises:
            ValueError: an argument is out of its range.
        """
        if max_span < 1:
            raise ValueError(f"max_span must be at least 1 step, got {max_span}")
        if not 0.0 < initial_span_fraction < 1.0:
            raise ValueError(f"initial_span_fraction must lie inside (0, 1), got {initial_span_fraction}")
        super().__init__(ramp=ramp, num_spans=num_spans, short_term_window=ramp)
        self.max_span = max_span
        self.initial_logit = math.log(initial_span_fraction / (1.0 - initial_span_fraction))


class FixedSpan(Retention):
    """The last S steps, whatever their content.

    Transformer-XL: Dai et al. 2019, https://arxiv.org/abs/1901.02860.
    """

    def __init__(self, *, size: int) -> None:
        """Keep S; raises ValueError if it is not at least 1."""
        if size < 1:
            raise ValueError(f"memory_size must be at least 1 step, got {size}")
        super().__init__(short_term_window=size)
        self.size = size

    def spans(
        self,
        span_logits_BNT: Float[Tensor, "B N T"],
        birth_BT: Int[Tensor, "B T"],
        compressed_BT: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B G T"]:
        """S for every memory."""
        return span_logits_BNT.new_full((birth_BT.shape[0], 1, birth_BT.shape[1]), float(self.size))
