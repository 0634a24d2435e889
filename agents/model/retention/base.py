"""How long the memories of a layer last: all that distinguishes one kind of memory from another.

A `Retention` gives every memory its span, from which the layers derive masks (equation 3) and deletion,
and may replace several memories by one. The layers ask nothing else, whatever the kind; which kinds
there are is known to `agents.model.transformer.make_retention` alone. Equations and symbols are those of
Expire-Span (https://arxiv.org/abs/2105.06548): span e_i, maximum span L, remaining span r_ti, mask m_ti,
ramp length R.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.penalty import PenaltySpec
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import RowStore

SMALLEST_MASK = 1e-6
"""A mask at or below this counts as 0. Attention is renormalized (equation 4), so a single memory with
a mask of one rounding error would be attended in full: whether it is there must not hang on rounding."""


class CompressedMemories(NamedTuple):
    """Memories that take the place of others in the course of a block."""

    memory: RowStore
    """P of them for each row, with gradient; births of `NEVER` where there are fewer"""
    episode_BN: Int[Tensor, "B N"]
    """the episode (as `BlockView.episode_BW` counts) they belong to"""
    blocked_BWN: Bool[Tensor, "B W N"]
    """where a query may not look: before they come up, and in other episodes"""


class Retention(nn.Module):
    """What every kind of memory answers; a kind whose spans are constant needs `spans` alone."""

    learns: ClassVar[bool] = False
    """whether spans are learned; if not, there is nothing to charge for them and nothing to shorten"""
    compresses: ClassVar[bool] = False
    """whether several memories may be replaced by one"""

    def __init__(self, *, ramp: int = 1, num_spans: int = 1, short_term_window: int) -> None:
        """Say what all memories of this kind have in common.

        Args:
            ramp: R, steps over which an expiring memory fades from 1 to 0. Ages are integers, so a ramp of
                1 is a hard mask for spans that are integers too.
            num_spans: G.
            short_term_window: steps for which any memory lasts.

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
        """What memories are multiplied with before `spans` sees them, if spans depend on content."""
        return None

    def span_logits(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B N T"]:
        """The memories multiplied with the probe."""
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
        """e_i in steps.

        Args:
            span_logits_BNT: what `span_logits` gave.
            birth_BT: clock readings at which the memories were written.
            compressed_BT: which of them have taken the place of others; None: none.
        """
        raise NotImplementedError

    def spans_of(self, memory: RowStore) -> Float[Tensor, "B G T"]:
        """e_i of everything in a store."""
        return self.spans(self.span_logits(memory.h_BTD), memory.birth_BT, memory.compressed_BT)

    def mask(self, remaining: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """m_ti of equation 3 from r_ti of equation 2: 1 while alive, 0 once expired, linear between."""
        return F.threshold((remaining / self.ramp + 1.0).clamp(max=1.0), SMALLEST_MASK, 0.0)

    def expired(self, remaining: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where m_ti is 0, to the digit."""
        return remaining / self.ramp + 1.0 <= SMALLEST_MASK

    def penalty(
        self,
        kind: PenaltySpec,
        span_BGW: Float[Tensor, "B G W"],
        end_BGT: Float[Tensor, "B G T"],
        mask_BWGT: Float[Tensor, "B W G T"] | None,
        step_W: Float[Tensor, " W"],
    ) -> Float[Tensor, " B"] | None:
        """What a block's spans cost each row, in steps; None if spans are not learned.

        Args:
            kind: which penalty.
            span_BGW: e_i of the memories written in the block.
            end_BGT: e_i plus birth, for all memories, on the block's clock.
            mask_BWGT: m_ti, zero where a query may not look; None will do for all forms but "ramp".
            step_W: the block's clock.
        """
        return None

    def compress_step(self, memory: RowStore, expired_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """After a step: let memories that the next query will not see live on in others.

        Args:
            memory: the store, changed in place.
            expired_BT: the memories that the next query will not see.

        Returns:
            The slots that are free now.
        """
        return expired_BT

    def compress_block(self, memory: RowStore, new: RowStore, view: BlockView) -> CompressedMemories | None:
        """The same for the steps of a block: the memories that come up in it or right after it.

        Args:
            memory: the store before the block.
            new: the memories written in the block, with gradient.
            view: who may see whom.
        """
        return None


class LearnedSpans(Retention):
    """Spans between 0 and a maximum, L * sigmoid(something learned)."""

    learns = True

    def __init__(
        self, *, max_span: int, ramp: int, initial_span_fraction: float = 0.1, num_spans: int = 1
    ) -> None:
        """Check and keep the settings.

        Args:
            max_span: L, the longest span possible, in steps.
            ramp: R, steps over which an expiring memory fades from 1 to 0. May exceed `max_span`.
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
    """The last S steps, whatever they hold.

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
