"""How long the memories of a layer last: all that distinguishes one kind of memory from another.

A `Retention` gives every memory its span, from which the layers derive masks (equation 3) and deletion,
and may replace several memories by one. The layers ask nothing else, whatever the kind; which kinds
there are is known to `agents.model.transformer.make_retention` alone. Equations and symbols are those of
Expire-Span (https://arxiv.org/abs/2105.06548): span e_i, maximum span L, remaining span r_ti, mask m_ti,
ramp length R.

Shape letters used in this file (logical dimensions, always in this order):
    B  rows of the batch
    T  query steps
    G  spans of a memory: 1 if all heads share it, else one for each head
    X  probes: 1 if the span depends on the memory's content, else 0
    M  memories            P  pooled memories that come up in a block
    W  stored memories     D  model width
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.retention.penalty import PenaltyKind
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import LayerMemory

SMALLEST_MASK = 1e-6
"""A mask at or below this counts as 0. Attention is renormalized (equation 4), so a single memory with
a mask of one rounding error would be attended in full: whether it is there must not hang on rounding."""


class Pooled(NamedTuple):
    """Memories that take the place of others in the course of a block."""

    memory: LayerMemory
    """P of them for each row, with gradient; births of `NEVER` where there are fewer"""
    episode_BP: Int[Tensor, "B P"]
    """the episode (as `BlockView.episode_BT` counts) they belong to"""
    blocked_BTP: Bool[Tensor, "B T P"]
    """where a query may not look: before they come up, and in other episodes"""


class Retention(nn.Module):
    """What every kind of memory answers; a kind whose spans are constant needs `spans` alone."""

    learns: ClassVar[bool] = False
    """whether spans are learned; if not, there is nothing to charge for them and nothing to shorten"""
    pools: ClassVar[bool] = False
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
    def probe_1D(self) -> Tensor | None:
        """What memories are multiplied with before `spans` sees them, if spans depend on content."""
        return None

    def products(self, hidden_BMD: Float[Tensor, "B M D"]) -> Float[Tensor, "B X M"]:
        """The memories multiplied with the probe."""
        probe_1D = self.probe_1D
        if probe_1D is None:
            return hidden_BMD.new_empty(hidden_BMD.shape[0], 0, hidden_BMD.shape[1])
        return F.linear(hidden_BMD, probe_1D).transpose(1, 2)

    def spans(
        self,
        product_BXM: Float[Tensor, "B X M"],
        birth_BM: Int[Tensor, "B M"],
        pooled_BM: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B G M"]:
        """e_i in steps.

        Args:
            product_BXM: what `products` gave.
            birth_BM: clock readings at which the memories were written.
            pooled_BM: which of them have taken the place of others; None: none.
        """
        raise NotImplementedError

    def spans_of(self, memory: LayerMemory) -> Float[Tensor, "B G M"]:
        """e_i of everything in a store."""
        return self.spans(self.products(memory.hidden_BWD), memory.birth_BW, memory.pooled_BW)

    def mask(self, remaining: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """m_ti of equation 3 from r_ti of equation 2: 1 while alive, 0 once expired, linear between."""
        return F.threshold((remaining / self.ramp + 1.0).clamp(max=1.0), SMALLEST_MASK, 0.0)

    def expired(self, remaining: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Where m_ti is 0, to the digit."""
        return remaining / self.ramp + 1.0 <= SMALLEST_MASK

    def penalty(
        self,
        kind: PenaltyKind,
        span_BGT: Float[Tensor, "B G T"],
        end_BGM: Float[Tensor, "B G M"],
        mask_BTGM: Float[Tensor, "B T G M"] | None,
        step_T: Float[Tensor, " T"],
    ) -> Float[Tensor, " B"] | None:
        """What a block's spans cost each row, in steps; None if spans are not learned.

        Args:
            kind: which penalty.
            span_BGT: e_i of the memories written in the block.
            end_BGM: e_i plus birth, for all memories, on the block's clock.
            mask_BTGM: m_ti, zero where a query may not look; None will do for all forms but "ramp".
            step_T: the block's clock.
        """
        return None

    def merge(self, memory: LayerMemory, gone_BW: Bool[Tensor, "B W"]) -> Bool[Tensor, "B W"]:
        """After a step: let memories that the next query will not see live on in others.

        Args:
            memory: the store, changed in place.
            gone_BW: the memories that the next query will not see.

        Returns:
            The slots that are free now.
        """
        return gone_BW

    def pool(self, memory: LayerMemory, new: LayerMemory, view: BlockView) -> Pooled | None:
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
        product_BXM: Float[Tensor, "B X M"],
        birth_BM: Int[Tensor, "B M"],
        pooled_BM: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B G M"]:
        """S for every memory."""
        return product_BXM.new_full((birth_BM.shape[0], 1, birth_BM.shape[1]), float(self.size))
