"""One layer of the transformer: attention over stored memories and the memories of a block."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.attention.expiring import INVISIBLE, ExpiringAttention, should_project_kv
from memory_suite.agents.model.attention.flex import fused_attention, fused_unsupported_reason
from memory_suite.agents.model.attention.leave_one_out import Ablation, leave_one_out
from memory_suite.agents.model.attention.positions import BlockPositions, positions_of_ages
from memory_suite.agents.model.block_memories import BlockMemories
from memory_suite.agents.model.init import orthogonal
from memory_suite.agents.model.retention.penalty import PenaltySpec, span_shortfall
from memory_suite.agents.model.settings import AttentionKind, TransformerSettings, make_retention
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.pages import Store, to_pages
from memory_suite.agents.model.store.rows import RowStore

WRITES_PER_LOOK = {"cuda": 16}
"""Where to look whether every row has a free slot is to wait for the device, room is made for so many writes
at a time; elsewhere for one, so that stores stay narrow."""


LONG_AGO = -(2**30)
"""Births, relative to a block, that count as one when ages are 32 bits wide: none of them has a position."""


SCORES_IN_CACHE = 2**18
"""Scores (one number per query, head and memory) that attention handles at a time on a CPU: one MiB."""


class StepReport(NamedTuple):
    """What one layer did with its memories in a step."""

    span_BG: Float[Tensor, "B G"]
    """e_i of the memory written now, in steps"""
    retained_B: Int[Tensor, " B"]
    """memories the step could see with at least one head"""
    on_ramp_B: Int[Tensor, " B"]
    """those of them that no head sees in full any more"""
    cues_B: Int[Tensor, " B"]
    """those of them whose tag is positive"""


class MemoryDetail(NamedTuple):
    """Every slot of one layer as a step saw it, for recording (`agents.episodes.recorder`)."""

    birth_BT: Int[Tensor, "B T"]
    """clock reading at which the memory was written; only where the mask is above 0 is there a memory"""
    span_BT: Float[Tensor, "B T"]
    """e_i, in steps; the longest, if heads differ"""
    mask_BT: Float[Tensor, "B T"]
    """m_ti; the largest, if heads differ"""
    attention_BHT: Float[Tensor, "B H T"]
    """a'_ti; a step that sees nothing attends to nothing, and with a null memory the rest goes to it"""


class BlockReport(NamedTuple):
    """What one layer did with its memories in a block."""

    span_BGW: Float[Tensor, "B G W"]
    """e_i of the memories written now, in steps, with gradient"""
    penalty_B: Float[Tensor, " B"] | None
    """the span penalty per row; None unless asked for, and if spans are not learned"""


class _Queries(NamedTuple):
    """Queries of a block."""

    query_BWHK: Tensor
    """scaled by K**-0.5, against keys or against memories as they are stored"""
    position_BWHP: Tensor
    """their products with relative positions"""
    projected: bool
    """against keys, so that values are projected too"""
    fused: bool


class _Attended(NamedTuple):
    """What attention gives, the last three only as far as penalty and ablation need them."""

    context_BWHK: Tensor
    mask_BWGT: Tensor | None
    attention_BWHT: Tensor | None
    value: Tensor
    """what was averaged: [B, H, M, K] if projected, else [B, 1, M, D]"""


class AttentionOutput(NamedTuple):
    """What some rows of a block read from memory."""

    context_BWHK: Float[Tensor, "B W H K"]
    span_BGW: Float[Tensor, "B G W"]
    penalty_B: Float[Tensor, " B"] | None
    without_NHHK: Float[Tensor, "N H H K"] | None
    """what is read without the memory that each head attends to most, if its use is asked for"""
    shortfall_NH: Float[Tensor, "N H"] | None
    """of that memory's span, with gradient"""


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
        self.widen = orthogonal(nn.Linear(width, settings.feedforward_multiplier * width), gain=2**0.5)
        self.narrow = orthogonal(nn.Linear(settings.feedforward_multiplier * width, width))
        if not settings.remembers:
            return
        self.memory_norm = nn.LayerNorm(width)
        self.query = orthogonal(nn.Linear(width, width), settings.query_key_gain)
        # No bias here: one on the keys would cancel in the softmax, one on the values is attention_out's.
        self.key = orthogonal(nn.Linear(width, width, bias=False), settings.query_key_gain)
        self.value = orthogonal(nn.Linear(width, width, bias=False))
        self.attention_out = orthogonal(nn.Linear(width, width))
        self.retention = make_retention(settings)
        if self.position_window:
            # Oldest first: entry j belongs to age P - j, as `agents.model.attention.positions` wants it.
            self.position_HPK = nn.Parameter(torch.zeros(heads, self.position_window, self.head_size))

    def initial_memory(self, batch: int) -> RowStore:
        """An empty store."""
        weight = self.feedforward_norm.weight
        integers = torch.zeros(batch, 0, dtype=torch.long, device=weight.device)
        h_BTD = weight.new_zeros(batch, 0, weight.shape[0]).detach()
        return RowStore(h_BTD, integers, integers.clone(), integers.bool())

    def feedforward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The second half of the layer, residual included."""
        # In place only on a flat batch: on a view, autograd would copy the whole gradient three times.
        h_ND = self.feedforward_norm(x).flatten(0, -2)
        return x + self.narrow(F.relu(self.widen(h_ND), inplace=True)).view_as(x)

    # -- acting ---------------------------------------------------------------------------------

    def step(
        self,
        x_BD: Float[Tensor, "B D"],
        memory: Store,
        clock_B: Int[Tensor, " B"],
        span_limit_B1: Float[Tensor, "B 1"] | None,
        cue_B: Int[Tensor, " B"] | None,
        *,
        write: bool,
        details: list[MemoryDetail] | None = None,
    ) -> tuple[Tensor, Store, StepReport]:
        """One step; `memory` is updated in place (and returned, since it may have grown)."""
        batch, heads = x_BD.shape[0], self.num_heads
        retention, slots = self.retention, memory.slots
        h_BD = self.memory_norm(x_BD)
        query_BHD, position_BHP = self._project_queries(h_BD, projected=False)
        # One pass over the memories gives the scores of all heads and, last, what the spans depend on.
        span_weight_1D = retention.span_weight_1D
        if span_weight_1D is not None:
            query_BHD = torch.cat([query_BHD, span_weight_1D.expand(batch, 1, -1)], 1)
        answer = torch.bmm(memory.expand_to_pages(query_BHD), slots.h_BTD.transpose(1, 2))
        score_FHT = answer[:, :heads]
        span_FGT = retention.spans(answer[:, heads:], slots.birth_BT, slots.compressed_BT)
        if span_limit_B1 is not None:
            span_FGT = torch.minimum(span_FGT, memory.expand_to_pages(span_limit_B1).unsqueeze(1))
        age_FT = memory.expand_to_pages(clock_B).unsqueeze(1) - slots.birth_BT
        mask_FGT = retention.mask(span_FGT - age_FT.unsqueeze(1))
        max_mask_FT = _largest(mask_FGT)
        visible_FT = max_mask_FT > 0.0
        if self.position_window:
            position_FHP = memory.expand_to_pages(position_BHP)
            score_FHT += positions_of_ages(position_FHP, self._position_ages(age_FT, slots))
        attention_FHT = self._attention(score_FHT, mask_FGT, memory)
        context_BHD = memory.sum_pages(torch.bmm(attention_FHT, slots.h_BTD))
        y_BD = self.feedforward(x_BD + self._output_projection(context_BHD, projected=False))

        written_BGW = retention.spans(
            retention.span_logits(h_BD.unsqueeze(1)), clock_B.unsqueeze(1), compressed_BT=None
        )
        retained_B = memory.sum_pages(visible_FT.sum(1))
        report = StepReport(
            span_BG=written_BGW.squeeze(2),
            retained_B=retained_B,
            on_ramp_B=retained_B - memory.sum_pages((max_mask_FT == 1.0).sum(1)),
            cues_B=memory.sum_pages((visible_FT & (slots.cue_BT > 0)).sum(1)),
        )
        if details is not None:
            visible_FHT = attention_FHT * (mask_FGT > 0.0)
            details.append(MemoryDetail(slots.birth_BT.clone(), _largest(span_FGT), max_mask_FT, visible_FHT))
        if write:
            expired_FT = retention.compress_step(slots, retention.expired(_largest(span_FGT) - (age_FT + 1)))
            memory = self._write(h_BD, memory, clock_B, expired_FT, cue_B)
        return y_BD, memory, report

    def _attention(
        self, score_FHT: Float[Tensor, "F H T"], mask_FGT: Float[Tensor, "F G T"], memory: Store
    ) -> Float[Tensor, "F H T"]:
        """What a step attends to.

        Equation 4: softmax(a + log m) = m exp(a) / sum m exp(a). A null memory has a score of 0.
        """
        if isinstance(memory, RowStore):
            score_FHT += _log_mask(mask_FGT)
            if self.null_memory:
                return F.pad(score_FHT, (0, 1)).softmax(-1)[..., :-1]
            return score_FHT.softmax(-1) * (mask_FGT > 0.0).any(2, keepdim=True)
        score_FHT.masked_fill_(mask_FGT == 0.0, INVISIBLE)
        max_score_BH = memory.max_pages(score_FHT.amax(2))
        if self.null_memory:
            max_score_BH = max_score_BH.clamp_min(0.0)
        weight_FHT = (score_FHT - memory.expand_to_pages(max_score_BH).unsqueeze(2)).exp_().mul_(mask_FGT)
        total_BH = memory.sum_pages(weight_FHT.sum(2))
        if self.null_memory:
            total_BH += (-max_score_BH).exp()
        else:  # a head that sees nothing attends to nothing
            total_BH = total_BH.masked_fill(total_BH == 0.0, 1.0)
        return weight_FHT / memory.expand_to_pages(total_BH).unsqueeze(2)

    def _write(
        self,
        h_BD: Float[Tensor, "B D"],
        memory: Store,
        clock_B: Int[Tensor, " B"],
        expired_FT: Bool[Tensor, "F T"],
        cue_B: Int[Tensor, " B"] | None,
    ) -> Store:
        """Put h_i where an expired memory lay; make room if a row has no such slot."""
        memory, page_B, slot_B = memory.reserve_slot(expired_FT, WRITES_PER_LOOK.get(h_BD.device.type, 1))
        slots = memory.slots
        slots.h_BTD[page_B, slot_B] = h_BD
        slots.birth_BT[page_B, slot_B] = clock_B
        slots.cue_BT[page_B, slot_B] = 0 if cue_B is None else cue_B
        if self.retention.compresses:
            slots.compressed_BT[page_B, slot_B] = False
        return memory

    # -- learning -------------------------------------------------------------------------------

    def block(
        self,
        x_BWD: Float[Tensor, "B W D"],
        memory: RowStore,
        view: BlockView,
        penalty: PenaltySpec | None,
        ablation: Ablation | None,
    ) -> tuple[Tensor, Tensor, BlockReport, Ablation | None]:
        """Many steps at once.

        Returns:
            The layer's output; h_i of the new memories; the report; and what comes out without memories of
            the layers below (of which `ablation` comes in) and of this one.
        """
        h_BWD = self.memory_norm(x_BWD)
        fused = self._use_fused(h_BWD, penalty)
        projected = fused or should_project_kv(
            num_steps=h_BWD.shape[1], num_heads=self.num_heads, width=h_BWD.shape[2]
        )
        query_BWHK, position_BWHP = self._project_queries(h_BWD, projected=projected)
        size = self._rows_at_a_time(view, memory)
        # Mixed precision ends here: spans of thousands of steps need every digit.
        with torch.autocast(h_BWD.device.type, enabled=False):
            parts = [
                self._attend(_Queries(question, position, projected, fused), h, stored, part_view, penalty)
                for question, position, h, stored, part_view in zip(
                    torch.split(query_BWHK, size),
                    torch.split(position_BWHP, size),
                    torch.split(h_BWD, size),
                    memory.split(size),
                    view.split(size),
                    strict=True,
                )
            ]
        read = _joined(parts)
        attended_BWD = self._output_projection(read.context_BWHK, projected=projected)
        y_BWD = self.feedforward(x_BWD + attended_BWD)
        if read.shortfall_NH is not None:
            assert read.without_NHHK is not None
            shortfall_NT = read.shortfall_NH
            with torch.no_grad():
                x_NTD = x_BWD[view.ablation_mask_BW].unsqueeze(1)
                x_NTD = x_NTD + self._output_projection(read.without_NHHK, projected=projected)
                if ablation is not None:
                    attended_N1D = attended_BWD[view.ablation_mask_BW].unsqueeze(1)
                    x_NTD = torch.cat([ablation.y_NTD + attended_N1D, x_NTD], 1)
                y_NTD = self.feedforward(x_NTD)
            if ablation is not None:
                shortfall_NT = torch.cat([ablation.shortfall_NT, shortfall_NT], 1)
            ablation = Ablation(y_NTD, shortfall_NT)
        return y_BWD, h_BWD, BlockReport(read.span_BGW, read.penalty_B), ablation

    def _use_fused(self, h_BWD: Float[Tensor, "B W D"], penalty: PenaltySpec | None) -> bool:
        """Whether a block takes the fused path; raises ValueError if it must and cannot."""
        if self.attention == "plain" or (self.attention == "auto" and h_BWD.device.type != "cuda"):
            return False
        reason = fused_unsupported_reason(h_BWD.device.type, h_BWD.dtype, self.head_size)
        if penalty is not None and (penalty.form == "ramp" or penalty.needs_ablation):
            reason = 'the penalty form "ramp" and use_weight look at every pair, which it never stores'
        if reason is not None and self.attention == "fused":
            raise ValueError(f"attention=fused cannot be had here: {reason}; choose auto or plain")
        return reason is None

    def _rows_at_a_time(self, view: BlockView, memory: RowStore) -> int:
        """So few that attention's arrays stay in the processor's cache, and a row is padded by its like."""
        batch, num_steps = view.episode_BW.shape
        if memory.h_BTD.device.type != "cpu":
            return batch
        scores_per_row = num_steps * self.num_heads * (memory.num_slots + num_steps)
        return min(batch, max(1, SCORES_IN_CACHE // scores_per_row))

    def _attend(
        self,
        queries: _Queries,
        h_BWD: Float[Tensor, "B W D"],
        memory: RowStore,
        view: BlockView,
        penalty: PenaltySpec | None,
    ) -> AttentionOutput:
        """Let a block's queries attend to the stored memories and to those of the block (`h_BWD`)."""
        retention = self.retention
        memories = BlockMemories.gather(retention, memory, view, h_BWD, null_memory=self.null_memory)
        attended = (
            self._attend_fused(queries, memories, view, penalty)
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
        """Attention that computes every score of a query and a memory."""
        retention, full_dtype = self.retention, memories.h[-1].dtype
        if queries.projected:
            key, value = self._projected(memories.h, full_dtype)
        else:
            with torch.no_grad():  # the gradient goes to those written in the block, by another way
                key, value = torch.cat(memories.h, 1).unsqueeze(1), None
        positions = None
        if self.position_window:
            stored = memories.contents[0]
            age_BT = self._position_ages(view.clock_B.unsqueeze(1) - stored.birth_BT, stored)
            positions = BlockPositions.of(age_BT, num_steps=len(view.step_W), window=self.position_window)
        context_BWHK, mask_BWGT, attention_BWHT = ExpiringAttention.apply(  # type: ignore[no-untyped-call]
            *(queries.query_BWHK.to(full_dtype), key, value, queries.position_BWHP),
            *memories.expiry(view, retention.ramp, detach_spans=_detach_spans(penalty)),
            positions,
            penalty is not None and penalty.needs_ablation and retention.learns,
            penalty is not None and penalty.form == "ramp",
            self.null_memory,
            *(() if queries.projected else memories.h[1:]),
        )
        return _Attended(context_BWHK, mask_BWGT, attention_BWHT, key if value is None else value)

    def _attend_fused(
        self, queries: _Queries, memories: BlockMemories, view: BlockView, penalty: PenaltySpec | None
    ) -> _Attended:
        """Attention in one kernel, which stores no score."""
        key_BHTK, value_BHTK = self._projected(memories.h, queries.query_BWHK.dtype)
        position_BHWP = queries.position_BWHP.transpose(1, 2) if self.position_window else None
        birth_BT = memories.birth_BT.masked_fill(memories.no_position_BT(), LONG_AGO)
        context_BWHK = fused_attention(
            queries.query_BWHK,
            key_BHTK,
            value_BHTK,
            position_BHWP,
            birth_BT.clamp_min(LONG_AGO).to(torch.int32),
            *memories.expiry(view, self.retention.ramp, detach_spans=_detach_spans(penalty)),
        )
        return _Attended(context_BWHK, None, None, value_BHTK)

    def _ablate(
        self, attended: _Attended, memories: BlockMemories, view: BlockView, margin: float
    ) -> tuple[Tensor, Tensor]:
        """What the selected queries read without each head's most attended memory; its span's shortfall."""
        assert attended.attention_BWHT is not None
        row_N, step_N = view.ablation_mask_BW.nonzero(as_tuple=True)
        attention_NHT = attended.attention_BWHT[row_N, step_N]
        if self.null_memory:  # it cannot be removed
            attention_NHT[..., -len(view.step_W) - 1] = 0.0
        without_NHHK, place_NH = leave_one_out(
            attended.context_BWHK[row_N, step_N], attended.value, attention_NHT, row_N
        )
        span_NH = memories.span_BGT().expand(-1, self.num_heads, -1)[
            row_N.unsqueeze(1), torch.arange(self.num_heads, device=row_N.device), place_NH
        ]
        age_NH = view.step_W[step_N].unsqueeze(1) - memories.birth_BT[row_N].gather(1, place_NH)
        shortfall_NH = span_shortfall(span_NH, age_NH, margin)
        return without_NHHK, shortfall_NH.masked_fill(attention_NHT.amax(2) == 0.0, 0.0)

    def after_block(self, memory: RowStore, h_BWD: Float[Tensor, "B W D"], view: BlockView) -> RowStore:
        """What the query after a block would still see, per row; `h_BWD` are the memories written in it."""
        num_steps = h_BWD.shape[1]
        retention = self.retention
        new = view.new_memory(h_BWD.detach())
        pooled = retention.compress_block(memory, new, view)
        contents, episodes = [memory, new], [torch.zeros_like(memory.birth_BT), view.episode_BW]
        if pooled is not None:
            contents.insert(1, pooled.memory)
            episodes.insert(1, pooled.episode_BN)
        spans = view.limited([retention.spans_of(part) for part in contents])
        everything = RowStore.cat(contents)
        remaining_BGT = torch.cat(spans, 2) + (view.relative(everything.birth_BT) - num_steps).unsqueeze(1)
        alive_BT = ~retention.expired(_largest(remaining_BGT))
        return everything.compacted(alive_BT & (torch.cat(episodes, 1) == view.episode_BW[:, -1:]))

    def remaining(
        self, memory: Store, clock_B: Int[Tensor, " B"], span_limit_B1: Float[Tensor, "B 1"] | None
    ) -> Float[Tensor, "F T"]:
        """r_ti of the head that sees a memory longest, for a query at this time; long past where none is."""
        span_FGT = self.retention.spans_of(memory.slots)
        if span_limit_B1 is not None:
            span_FGT = torch.minimum(span_FGT, memory.expand_to_pages(span_limit_B1).unsqueeze(1))
        return _largest(span_FGT) - (memory.expand_to_pages(clock_B).unsqueeze(1) - memory.slots.birth_BT)

    def seen(
        self, memory: Store, clock_B: Int[Tensor, " B"], span_limit_B1: Float[Tensor, "B 1"] | None
    ) -> Bool[Tensor, "F T"]:
        """The slots whose memories a query at this time would see."""
        return ~self.retention.expired(self.remaining(memory, clock_B, span_limit_B1))

    def compacted(
        self, memory: Store, clock_B: Int[Tensor, " B"], span_limit_B1: Float[Tensor, "B 1"] | None
    ) -> RowStore:
        """Only what a query at this time would see, in the narrowest store."""
        return memory.compacted(self.seen(memory, clock_B, span_limit_B1))

    def paged(self, memory: RowStore) -> Store:
        """The same memories in pages (a copy) where that makes steps cheaper, else as they are."""
        # On a GPU a step of a small model is launches, not slots; and pooled memories go from slot to slot.
        in_rows_only = memory.h_BTD.device.type != "cpu" or self.retention.compresses
        pages = None if in_rows_only else to_pages(memory)
        return memory if pages is None else pages

    def _project_queries(
        self, h: Float[Tensor, "*N D"], *, projected: bool
    ) -> tuple[Float[Tensor, "*N H K"], Float[Tensor, "*N H P"]]:
        """What queries ask, scaled by K**-0.5: of keys, or of memories as they are stored; and q_t . p_age.

        The latter for the ages P to 1, in full precision.
        """
        heads, size = self.num_heads, self.head_size
        query = self.query(h).mul(size**-0.5).view(*h.shape[:-1], heads, size)

        def taken_through(weight: Tensor) -> Tensor:
            query_HNK = query.flatten(0, -3).transpose(0, 1)
            product = torch.bmm(query_HNK.to(weight.dtype), weight)
            return product.transpose(0, 1).contiguous().view(*h.shape[:-1], heads, -1)

        question = query if projected else taken_through(self.key.weight.view(heads, size, -1))
        if not self.position_window:
            return question, query.new_empty(*query.shape[:-1], 0)
        with torch.autocast(h.device.type, enabled=False):
            return question, taken_through(self.position_HPK.transpose(1, 2))

    def _projected(self, parts: list[Float[Tensor, "B _ D"]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of every head, both [B, H, M, K], of memories given part by part."""
        weight = torch.cat([self.key.weight, self.value.weight]).to(dtype)
        sizes = (2, self.num_heads, self.head_size)
        # Part by part, so that no gradient is computed in the stored ones, which pass none on.
        both = [
            F.linear(part.to(dtype), weight).view(*part.shape[:2], *sizes).permute(2, 0, 3, 1, 4)
            for part in parts
        ]
        key_BHTK, value_BHTK = torch.cat(both, 3)
        return key_BHTK, value_BHTK

    def _output_projection(self, read: Float[Tensor, "*N H K"], *, projected: bool) -> Float[Tensor, "*N D"]:
        """What was read, from projected values or from memories as they are stored, as the layer adds it."""
        if projected:
            return self.attention_out(read.flatten(-2))
        value_HDK = self.value.weight.view(self.num_heads, self.head_size, -1).transpose(1, 2)
        value_ND = torch.bmm(read.flatten(0, -3).transpose(0, 1), value_HDK).transpose(0, 1).flatten(1)
        return self.attention_out(value_ND.view(*read.shape[:-2], value_ND.shape[1]))

    # -- relative positions ----------------------------------------------------------------------

    def _position_ages(self, age_BT: Int[Tensor, "B T"], memory: RowStore) -> Int[Tensor, "B T"]:
        """Ages, but older than the window for pooled memories: they have no position."""
        if not self.retention.compresses:
            return age_BT
        return age_BT.masked_fill(memory.compressed_BT, self.position_window + 1)


def _joined(parts: list[AttentionOutput]) -> AttentionOutput:
    """What all rows read, from what groups of them read."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)  # what is None in one part is None in all
    return AttentionOutput(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _detach_spans(penalty: PenaltySpec | None) -> bool:
    """Whether spans learn from the ablation of memories, and not from the task's loss."""
    return penalty is not None and penalty.use_weight is not None


def _largest(part_BGT: Float[Tensor, "B G T"]) -> Float[Tensor, "B T"]:
    """Span or mask for the head that sees the memory best."""
    return part_BGT.squeeze(1) if part_BGT.shape[1] == 1 else part_BGT.amax(1)


def _log_mask(mask: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log m, so that softmax(a + log m) is equation 4; exactly nothing passes where m is 0."""
    gone = mask <= 0.0
    return mask.masked_fill(gone, 1.0).log().masked_fill(gone, INVISIBLE)
