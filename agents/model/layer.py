"""One layer of the transformer: attention over stored memories and the memories of a block."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.attention.expiring import ExpiringAttention, should_project_kv
from memory_suite.agents.model.attention.flex import fused_attention, fused_unsupported_reason
from memory_suite.agents.model.attention.leave_one_out import Ablation, leave_one_out
from memory_suite.agents.model.attention.positions import BlockPositions, positions_of_ages
from memory_suite.agents.model.block_memories import BlockMemories
from memory_suite.agents.model.init import orthogonal
from memory_suite.agents.model.retention.make import make_retention
from memory_suite.agents.model.retention.penalty import span_shortfall
from memory_suite.agents.model.settings import AttentionKind, PenaltySpec, TransformerSettings
from memory_suite.agents.model.store.base import Store
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.pages import to_pages
from memory_suite.agents.model.store.rows import RowStore
from memory_suite.agents.model.store.state import SpanBounds

SLOTS_PER_ALLOCATION = {"cuda": 16}
"""Number of free slots that a row has after its store has grown, by device type (1 on all others, so that
stores stay narrow). On a GPU, checking for free slots synchronizes with the host."""

FEEDFORWARD_MULTIPLIER = 4
"""width of the hidden layer of a feedforward part, as a multiple of the model width"""
LONG_AGO = -(2**30)
"""Earliest birth, relative to a block, where ages have 32 bits. A memory this old has no position."""

SCORES_IN_CACHE = 2**18
"""Number of scores (one per query, head and memory) that attention computes at a time on a CPU: one MiB."""


class StepReport(NamedTuple):
    """Statistics of one layer's memories in a step."""

    span_BG: Float[Tensor, "B G"]
    """e_i of the memory written in this step"""
    retained_B: Int[Tensor, " B"]
    """number of memories that at least one head sees"""
    on_ramp_B: Int[Tensor, " B"]
    """number of these that no head sees in full"""
    cues_B: Int[Tensor, " B"]
    """number of these whose cue number is positive"""


class MemoryDetail(NamedTuple):
    """All slots of one layer as a step sees them, for recording (`agents.episodes.recorder`)."""

    birth_BT: Int[Tensor, "B T"]
    """clock reading at which the memory was written; a slot is empty where the mask is 0"""
    span_BT: Float[Tensor, "B T"]
    """e_i in steps; the maximum over heads"""
    mask_BT: Float[Tensor, "B T"]
    """m_ti; the maximum over heads"""
    attention_BHT: Float[Tensor, "B H T"]
    """a'_ti; all zero for a step that sees nothing; sums to less than 1 with a null memory"""


class BlockReport(NamedTuple):
    """Statistics of one layer's memories in a block."""

    span_BGW: Float[Tensor, "B G W"]
    """e_i of the memories written in the block, with gradient"""
    penalty_B: Float[Tensor, " B"] | None
    """span penalty per row; None if it is not requested or spans are not learned"""


class _SlotScores(NamedTuple):
    """What a step computes for every slot, in the layout of `Store.slots` (B: its lines)."""

    score_BHT: Float[Tensor, "B H T"]
    span_BGT: Float[Tensor, "B G T"]
    age_BT: Int[Tensor, "B T"]
    mask_BGT: Float[Tensor, "B G T"]
    max_mask_BT: Float[Tensor, "B T"]
    """the maximum over heads"""


class _Queries(NamedTuple):
    """Queries of a block."""

    query_BWHK: Float[Tensor, "B W H K"]
    """queries, scaled by the root of the head size: for keys, or for memories as they are stored"""
    position_BWHP: Float[Tensor, "B W H P"]
    """their products with relative positions"""
    projected: bool
    """whether they are for keys; then values are projected too"""
    fused: bool


class _Attended(NamedTuple):
    """Output of a block's attention."""

    context_BWHK: Float[Tensor, "B W H K"]
    mask_BWGT: Float[Tensor, "B W G T"] | None
    """m_ti, if the penalty needs it"""
    attention_BWHT: Float[Tensor, "B W H T"] | None
    """a'_ti, if memories are ablated"""
    value_BHTK: Float[Tensor, "B _ T K"]
    """values; the same for all heads if they are not projected"""


class AttentionOutput(NamedTuple):
    """What a block's queries read from memory, for some of its rows."""

    context_BWHK: Float[Tensor, "B W H K"]
    span_BGW: Float[Tensor, "B G W"]
    penalty_B: Float[Tensor, " B"] | None
    without_NHHK: Float[Tensor, "N H H K"] | None
    """context of the selected queries without the memory that each head attends to most, if memories are
    ablated"""
    shortfall_NH: Float[Tensor, "N H"] | None
    """shortfall of that memory's span, with gradient"""

    @staticmethod
    def cat(parts: list[AttentionOutput]) -> AttentionOutput:
        """Concatenate the outputs of several groups of rows."""
        if len(parts) == 1:
            return parts[0]
        columns = zip(*parts, strict=True)  # a field is None in all parts or in none
        return AttentionOutput(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


class MemoryLayer(nn.Module):
    """Attention over memories, then a feed-forward part, both with a residual."""

    def __init__(self, settings: TransformerSettings) -> None:
        """Build the layer; raises ValueError if the heads do not divide the width."""
        super().__init__()
        if settings.attention not in get_args(AttentionKind):
            raise ValueError(
                f"attention must be one of {', '.join(get_args(AttentionKind))}, got {settings.attention!r}"
            )
        width, heads = settings.width, settings.num_heads
        if width % heads:
            raise ValueError(f"num_heads ({heads}) must divide width ({width})")
        self.num_heads = heads
        self.head_size = width // heads
        self.position_window = settings.position_window
        self.remembers = settings.remembers
        self.attention = settings.attention
        self.null_memory = settings.null_memory
        self.feedforward_norm = nn.LayerNorm(width)
        self.widen = orthogonal(nn.Linear(width, FEEDFORWARD_MULTIPLIER * width), gain=2**0.5)
        self.narrow = orthogonal(nn.Linear(FEEDFORWARD_MULTIPLIER * width, width))
        if not settings.remembers:
            return
        self.memory_norm = nn.LayerNorm(width)
        self.query = orthogonal(nn.Linear(width, width))
        # No bias here: one on the keys would cancel in the softmax, one on the values is attention_out's.
        self.key = orthogonal(nn.Linear(width, width, bias=False))
        self.value = orthogonal(nn.Linear(width, width, bias=False))
        self.attention_out = orthogonal(nn.Linear(width, width))
        self.retention = make_retention(settings)
        if self.position_window:
            # Oldest first: entry j belongs to age P - j, as `agents.model.attention.positions` wants it.
            self.position_HPK = nn.Parameter(torch.zeros(heads, self.position_window, self.head_size))

    def feedforward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Apply the feed-forward part, with its residual."""
        # In place only on a flat batch: on a view, autograd would copy the whole gradient three times.
        h_ND = self.feedforward_norm(x).flatten(0, -2)
        return x + self.narrow(F.relu(self.widen(h_ND), inplace=True)).view_as(x)

    # -- acting ---------------------------------------------------------------------------------

    def step(
        self,
        x_BD: Float[Tensor, "B D"],
        store: Store,
        clock_B: Int[Tensor, " B"],
        bounds: SpanBounds,
        cue_B: Int[Tensor, " B"] | None,
        *,
        write: bool,
        details: list[MemoryDetail] | None = None,
    ) -> tuple[Tensor, Store, StepReport]:
        """Take one step; `store` is updated in place and returned, since it may have grown."""
        retention, slots = self.retention, store.slots
        h_BD = self.memory_norm(x_BD)
        scores = self._score_slots(h_BD, store, clock_B, bounds)
        attention = store.softmax(scores.score_BHT, scores.mask_BGT, null_memory=self.null_memory)
        context_BHD = store.sum_pages(torch.bmm(attention, slots.h_BTD))
        y_BD = self.feedforward(x_BD + self.output_projection(context_BHD, projected=False))

        span_BGW = retention.spans(
            retention.span_logits(h_BD.unsqueeze(1)), clock_B.unsqueeze(1), compressed_BT=None
        )
        visible = scores.max_mask_BT > 0.0
        retained_B = store.sum_pages(visible.sum(1))
        report = StepReport(
            span_BG=span_BGW.squeeze(2),
            retained_B=retained_B,
            on_ramp_B=retained_B - store.sum_pages((scores.max_mask_BT == 1.0).sum(1)),
            cues_B=store.sum_pages((visible & (slots.cue_BT > 0)).sum(1)),
        )
        max_span = _max_of_groups(scores.span_BGT)
        if details is not None:
            attention = attention * (scores.mask_BGT > 0.0)
            details.append(MemoryDetail(slots.birth_BT.clone(), max_span, scores.max_mask_BT, attention))
        if write:
            expired = retention.compress_step(slots, retention.expired(max_span - (scores.age_BT + 1)))
            store = self._write(h_BD, store, clock_B, expired, cue_B)
        return y_BD, store, report

    def _score_slots(
        self,
        h_BD: Float[Tensor, "B D"],
        store: Store,
        clock_B: Int[Tensor, " B"],
        bounds: SpanBounds,
    ) -> _SlotScores:
        """Compute scores, spans and masks of all slots."""
        retention, slots = self.retention, store.slots
        query_BHD, position_BHP = self.project_queries(h_BD, projected=False)
        # One pass over the memories gives the scores of all heads and, last, the logits of spans.
        span_weight_1D = retention.span_weight_1D
        if span_weight_1D is not None:
            query_BHD = torch.cat([query_BHD, span_weight_1D.expand(len(h_BD), 1, -1)], 1)
        product = torch.bmm(store.expand_to_pages(query_BHD), slots.h_BTD.transpose(1, 2))
        score = product[:, : self.num_heads]
        span = retention.spans(product[:, self.num_heads :], slots.birth_BT, slots.compressed_BT)
        span = bounds.apply(span, store)
        age = store.expand_to_pages(clock_B).unsqueeze(1) - slots.birth_BT
        mask = retention.mask(span - age.unsqueeze(1))
        if self.position_window:
            position = store.expand_to_pages(position_BHP)
            score += positions_of_ages(position, self._position_ages(age, slots))
        return _SlotScores(score, span, age, mask, _max_of_groups(mask))

    def _write(
        self,
        h_BD: Float[Tensor, "B D"],
        store: Store,
        clock_B: Int[Tensor, " B"],
        expired: Bool[Tensor, "_ T"],
        cue_B: Int[Tensor, " B"] | None,
    ) -> Store:
        """Write h_i over an expired memory; grow the store if a row has none."""
        store, index = store.reserve_slot(expired, SLOTS_PER_ALLOCATION.get(h_BD.device.type, 1))
        slots = store.slots
        slots.h_BTD[index] = h_BD
        slots.birth_BT[index] = clock_B
        slots.cue_BT[index] = 0 if cue_B is None else cue_B
        if self.retention.compresses:
            slots.compressed_BT[index] = False
        return store

    # -- learning -------------------------------------------------------------------------------

    def block(
        self,
        x_BWD: Float[Tensor, "B W D"],
        store: RowStore,
        view: BlockView,
        penalty: PenaltySpec | None,
        ablation: Ablation | None,
    ) -> tuple[Tensor, Tensor, BlockReport, Ablation | None]:
        """Take all steps of a block at once.

        Returns:
            The layer's output; h_i of the memories written; the report; and `ablation` (of the layers below)
            extended by this layer's memories.
        """
        h_BWD = self.memory_norm(x_BWD)
        fused = self._use_fused(h_BWD, penalty)
        projected = fused or should_project_kv(
            num_steps=h_BWD.shape[1], num_heads=self.num_heads, width=h_BWD.shape[2]
        )
        query_BWHK, position_BWHP = self.project_queries(h_BWD, projected=projected)
        size = self._rows_at_a_time(view, store)
        # Mixed precision ends here: spans of thousands of steps need every digit.
        with torch.autocast(h_BWD.device.type, enabled=False):
            parts = [
                self._attend(_Queries(query, position, projected, fused), h, stored, part_view, penalty)
                for query, position, h, stored, part_view in zip(
                    torch.split(query_BWHK, size),
                    torch.split(position_BWHP, size),
                    torch.split(h_BWD, size),
                    store.split(size),
                    view.split(size),
                    strict=True,
                )
            ]
        output = AttentionOutput.cat(parts)
        attended_BWD = self.output_projection(output.context_BWHK, projected=projected)
        y_BWD = self.feedforward(x_BWD + attended_BWD)
        if output.without_NHHK is not None and output.shortfall_NH is not None:
            with torch.no_grad():
                x_ND, attended_ND = x_BWD[view.ablation_mask_BW], attended_BWD[view.ablation_mask_BW]
                without_NHD = self.output_projection(output.without_NHHK, projected=projected)
            ablation = self._extend_ablation(ablation, x_ND, attended_ND, without_NHD, output.shortfall_NH)
        return y_BWD, h_BWD, BlockReport(output.span_BGW, output.penalty_B), ablation

    def _extend_ablation(
        self,
        ablation: Ablation | None,
        x_ND: Float[Tensor, "N D"],
        attended_ND: Float[Tensor, "N D"],
        without_NHD: Float[Tensor, "N H D"],
        shortfall_NH: Float[Tensor, "N H"],
    ) -> Ablation:
        """Pass the ablations of the layers below through this layer, and append those of its own memories.

        Args:
            ablation: ablations of the layers below.
            x_ND: input of the selected queries.
            attended_ND: what attention adds to it.
            without_NHD: what attention adds to it without the memory that each head attends to most.
            shortfall_NH: shortfall of that memory's span.
        """
        with torch.no_grad():
            x_NTD = x_ND.unsqueeze(1) + without_NHD
            if ablation is not None:
                x_NTD = torch.cat([ablation.y_NTD + attended_ND.unsqueeze(1), x_NTD], 1)
            y_NTD = self.feedforward(x_NTD)
        if ablation is None:
            return Ablation(y_NTD, shortfall_NH)
        return Ablation(y_NTD, torch.cat([ablation.shortfall_NT, shortfall_NH], 1))

    def _use_fused(self, h_BWD: Float[Tensor, "B W D"], penalty: PenaltySpec | None) -> bool:
        """Whether a block takes the fused path; raises ValueError if it must but cannot."""
        if self.attention == "plain" or (self.attention == "auto" and h_BWD.device.type != "cuda"):
            return False
        reason = fused_unsupported_reason(h_BWD.device.type, h_BWD.dtype, self.head_size)
        if penalty is not None and (penalty.form == "ramp" or penalty.needs_ablation):
            reason = 'the penalty form "ramp" and use_weight look at every pair, which it never stores'
        if reason is not None and self.attention == "fused":
            raise ValueError(f"attention=fused cannot be had here: {reason}; choose auto or plain")
        return reason is None

    def _rows_at_a_time(self, view: BlockView, store: RowStore) -> int:
        """The number of rows whose attention fits into the processor's cache.

        Rows of such a group are padded to the fullest of the group only.
        """
        batch, num_steps = view.episode_BW.shape
        if store.h_BTD.device.type != "cpu":
            return batch
        scores_per_row = num_steps * self.num_heads * (store.num_slots + num_steps)
        return min(batch, max(1, SCORES_IN_CACHE // scores_per_row))

    def _attend(
        self,
        queries: _Queries,
        h_BWD: Float[Tensor, "B W D"],
        store: RowStore,
        view: BlockView,
        penalty: PenaltySpec | None,
    ) -> AttentionOutput:
        """Let a block's queries attend to the stored memories and to those of the block (`h_BWD`)."""
        retention = self.retention
        memories = BlockMemories.gather(retention, store, view, h_BWD, null_memory=self.null_memory)
        attended = (
            self._attend_fused(queries, memories, view)
            if queries.fused
            else self._attend_plain(queries, memories, view, penalty)
        )
        penalty_B = without_NHHK = shortfall_NH = None
        if penalty is not None:
            penalty_B = retention.penalty(
                penalty, memories.span_BGW, memories.end_BGT, attended.mask_BWGT, view.step_W
            )
            if attended.attention_BWHT is not None:
                without_NHHK, shortfall_NH = self._ablate(attended, memories, view, penalty.use_margin)
        return AttentionOutput(
            attended.context_BWHK, memories.span_BGW, penalty_B, without_NHHK, shortfall_NH
        )

    def _attend_plain(
        self, queries: _Queries, memories: BlockMemories, view: BlockView, penalty: PenaltySpec | None
    ) -> _Attended:
        """Attention that stores the scores of all queries and memories."""
        retention, full_dtype = self.retention, memories.h[-1].dtype
        if queries.projected:
            key, value = self._projected(memories.h, full_dtype)
        else:
            with torch.no_grad():  # gradients flow into the written memories, which are passed separately
                key, value = torch.cat(memories.h, 1).unsqueeze(1), None
        positions = None
        if self.position_window:
            stored = memories.contents[0]
            age_BT = self._position_ages(view.clock_B.unsqueeze(1) - stored.birth_BT, stored)
            positions = BlockPositions.of(age_BT, num_steps=len(view.step_W), window=self.position_window)
        context_BWHK, mask_BWGT, attention_BWHT = ExpiringAttention.apply(  # type: ignore[no-untyped-call]
            *(queries.query_BWHK.to(full_dtype), key, value, queries.position_BWHP),
            *memories.expiry(view, retention.ramp, detach_spans=view.detach_spans),
            positions,
            penalty is not None and penalty.needs_ablation and retention.learns,
            penalty is not None and penalty.form == "ramp",
            self.null_memory,
            *(() if queries.projected else memories.h[1:]),
        )
        return _Attended(context_BWHK, mask_BWGT, attention_BWHT, key if value is None else value)

    def _attend_fused(self, queries: _Queries, memories: BlockMemories, view: BlockView) -> _Attended:
        """Attention in one kernel, which stores no scores."""
        key_BHTK, value_BHTK = self._projected(memories.h, queries.query_BWHK.dtype)
        position_BHWP = queries.position_BWHP.transpose(1, 2) if self.position_window else None
        birth_BT = memories.birth_BT.masked_fill(memories.no_position_BT(), LONG_AGO)
        context_BWHK = fused_attention(
            queries.query_BWHK,
            key_BHTK,
            value_BHTK,
            position_BHWP,
            birth_BT.clamp_min(LONG_AGO).to(torch.int32),
            *memories.expiry(view, self.retention.ramp, detach_spans=view.detach_spans),
        )
        return _Attended(context_BWHK, None, None, value_BHTK)

    def _ablate(
        self, attended: _Attended, memories: BlockMemories, view: BlockView, margin: float
    ) -> tuple[Tensor, Tensor]:
        """Ablate the memory that each head attends to most, for the selected queries.

        Returns:
            The context of all heads without it, and the shortfall of its span (0 where there is none).
        """
        assert attended.attention_BWHT is not None
        row_N, step_N = view.ablation_mask_BW.nonzero(as_tuple=True)
        attention_NHT = attended.attention_BWHT[row_N, step_N]
        if self.null_memory:  # it cannot be removed
            attention_NHT[..., -len(view.step_W) - 1] = 0.0
        without_NHHK, index_NH = leave_one_out(
            attended.context_BWHK[row_N, step_N], attended.value_BHTK, attention_NHT, row_N
        )
        span_NH = memories.span_BGT().expand(-1, self.num_heads, -1)[
            row_N.unsqueeze(1), torch.arange(self.num_heads, device=row_N.device), index_NH
        ]
        age_NH = view.step_W[step_N].unsqueeze(1) - memories.birth_BT[row_N].gather(1, index_NH)
        shortfall_NH = span_shortfall(span_NH, age_NH, margin)
        return without_NHHK, shortfall_NH.masked_fill(attention_NHT.amax(2) == 0.0, 0.0)

    def after_block(self, store: RowStore, h_BWD: Float[Tensor, "B W D"], view: BlockView) -> RowStore:
        """The memories that the query after a block still sees.

        Args:
            store: memories before the block.
            h_BWD: hidden states that the block writes.
            view: the block.
        """
        num_steps = h_BWD.shape[1]
        retention = self.retention
        new = view.new_memory(h_BWD.detach())
        compressed = retention.compress_block(store, new, view)
        contents, episodes = [store, new], [torch.zeros_like(store.birth_BT), view.episode_BW]
        if compressed is not None:
            contents.insert(1, compressed.memory)
            episodes.insert(1, compressed.episode_BN)
        spans = view.limited([retention.spans_of(part) for part in contents])
        all_memories = RowStore.cat(contents)
        remaining_BGT = torch.cat(spans, 2) + (view.relative(all_memories.birth_BT) - num_steps).unsqueeze(1)
        alive_BT = ~retention.expired(_max_of_groups(remaining_BGT))
        return all_memories.compacted(alive_BT & (torch.cat(episodes, 1) == view.episode_BW[:, -1:]))

    # -- stores ----------------------------------------------------------------------------------

    def initial_memory(self, batch: int) -> RowStore:
        """An empty store."""
        weight = self.feedforward_norm.weight
        integers = torch.zeros(batch, 0, dtype=torch.long, device=weight.device)
        h_BTD = weight.new_zeros(batch, 0, weight.shape[0]).detach()
        return RowStore(h_BTD, integers, integers.clone(), integers.bool())

    def remaining(self, store: Store, clock_B: Int[Tensor, " B"], bounds: SpanBounds) -> Float[Tensor, "_ T"]:
        """r_ti for a query at this time, per slot: the maximum over heads, far below 0 for an empty slot."""
        span = bounds.apply(self.retention.spans_of(store.slots), store)
        return _max_of_groups(span) - (store.expand_to_pages(clock_B).unsqueeze(1) - store.slots.birth_BT)

    def seen(self, store: Store, clock_B: Int[Tensor, " B"], bounds: SpanBounds) -> Bool[Tensor, "_ T"]:
        """The slots whose memories a query at this time sees."""
        return ~self.retention.expired(self.remaining(store, clock_B, bounds))

    def compacted(self, store: Store, clock_B: Int[Tensor, " B"], bounds: SpanBounds) -> RowStore:
        """The memories that a query at this time sees, in the narrowest store."""
        return store.compacted(self.seen(store, clock_B, bounds))

    def paged(self, store: RowStore) -> Store:
        """The memories in pages (a copy) where that makes steps cheaper, else the store itself."""
        # On a GPU the time of a small model's step is kernel launches, not slots. Compression moves memories
        # between slots of a row, which must not be on different pages.
        in_rows_only = store.h_BTD.device.type != "cpu" or self.retention.compresses
        pages = None if in_rows_only else to_pages(store)
        return store if pages is None else pages

    # -- projections -----------------------------------------------------------------------------

    def project_queries(
        self, h: Float[Tensor, "*N D"], *, projected: bool
    ) -> tuple[Float[Tensor, "*N H K"], Float[Tensor, "*N H P"]]:
        """Compute queries, scaled by the root of the head size, and their products with relative positions.

        Queries are for keys if `projected`, else for memories as they are stored. The products q_t . p_age
        are for the ages P to 1, in full precision.
        """
        heads, size = self.num_heads, self.head_size
        query = self.query(h).mul(size**-0.5).view(*h.shape[:-1], heads, size)

        def times(weight: Tensor) -> Tensor:
            query_HNK = query.flatten(0, -3).transpose(0, 1)
            product = torch.bmm(query_HNK.to(weight.dtype), weight)
            return product.transpose(0, 1).contiguous().view(*h.shape[:-1], heads, -1)

        memory_query = query if projected else times(self.key.weight.view(heads, size, -1))
        if not self.position_window:
            return memory_query, query.new_empty(*query.shape[:-1], 0)
        with torch.autocast(h.device.type, enabled=False):
            return memory_query, times(self.position_HPK.transpose(1, 2))

    def _projected(self, parts: list[Float[Tensor, "B _ D"]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Compute the keys and values of all heads, both [B, H, T, K], of memories given in parts."""
        weight = torch.cat([self.key.weight, self.value.weight]).to(dtype)
        sizes = (2, self.num_heads, self.head_size)
        # Part by part, so that no gradient is computed for stored memories, which pass none on.
        both = [
            F.linear(part.to(dtype), weight).view(*part.shape[:2], *sizes).permute(2, 0, 3, 1, 4)
            for part in parts
        ]
        key_BHTK, value_BHTK = torch.cat(both, 3)
        return key_BHTK, value_BHTK

    def output_projection(
        self, context: Float[Tensor, "*N H K"], *, projected: bool
    ) -> Float[Tensor, "*N D"]:
        """Combine the contexts of the heads, read from projected values or from memories as stored."""
        if projected:
            return self.attention_out(context.flatten(-2))
        value_HDK = self.value.weight.view(self.num_heads, self.head_size, -1).transpose(1, 2)
        value_ND = torch.bmm(context.flatten(0, -3).transpose(0, 1), value_HDK).transpose(0, 1).flatten(1)
        return self.attention_out(value_ND.view(*context.shape[:-2], value_ND.shape[1]))

    def _position_ages(self, age_BT: Int[Tensor, "B T"], slots: RowStore) -> Int[Tensor, "B T"]:
        """Ages; beyond the position window for compressed memories, which have no position."""
        if not self.retention.compresses:
            return age_BT
        return age_BT.masked_fill(slots.compressed_BT, self.position_window + 1)


def _max_of_groups(part_BGT: Float[Tensor, "B G T"]) -> Float[Tensor, "B T"]:
    """The maximum over heads."""
    return part_BGT.squeeze(1) if part_BGT.shape[1] == 1 else part_BGT.amax(1)
