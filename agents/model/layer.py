"""One layer of the transformer: attention over stored memories and the memories of a block."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.attention.expiring import INVISIBLE, ExpiringAttention, projecting_pays
from memory_suite.agents.model.attention.flex import fused_attention, obstacle
from memory_suite.agents.model.attention.leave_one_out import Ablation, leave_one_out
from memory_suite.agents.model.attention.positions import BlockPositions, positions_of_ages
from memory_suite.agents.model.block_memories import BlockMemories
from memory_suite.agents.model.init import orthogonal
from memory_suite.agents.model.retention.penalty import PenaltyKind, span_shortfall
from memory_suite.agents.model.settings import AttentionKind, TransformerSettings, make_retention
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.pages import Store, in_pages
from memory_suite.agents.model.store.rows import LayerMemory

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
    tagged_B: Int[Tensor, " B"]
    """those of them whose tag is positive"""


class MemoryDetail(NamedTuple):
    """Every slot of one layer as a step saw it, for recording (`agents.episodes.recorder`)."""

    birth_BW: Int[Tensor, "B W"]
    """clock reading at which the memory was written; only where the mask is above 0 is there a memory"""
    span_BW: Float[Tensor, "B W"]
    """e_i, in steps; the longest, if heads differ"""
    mask_BW: Float[Tensor, "B W"]
    """m_ti; the largest, if heads differ"""
    attention_BHW: Float[Tensor, "B H W"]
    """a'_ti; a step that sees nothing attends to nothing, and with a null memory the rest goes to it"""


class BlockReport(NamedTuple):
    """What one layer did with its memories in a block."""

    span_BGT: Float[Tensor, "B G T"]
    """e_i of the memories written now, in steps, with gradient"""
    penalty_B: Float[Tensor, " B"] | None
    """the span penalty per row; None unless asked for, and if spans are not learned"""


class _Queries(NamedTuple):
    """Queries of a block."""

    question_BTHQ: Tensor
    """scaled by K**-0.5, against keys or against memories as they are stored"""
    position_BTHP: Tensor
    """their products with relative positions"""
    projected: bool
    """against keys, so that values are projected too"""
    fused: bool


class _Attended(NamedTuple):
    """What attention gives, the last three only as far as penalty and ablation need them."""

    context_BTHQ: Tensor
    mask_BTGM: Tensor | None
    attention_BTHM: Tensor | None
    value: Tensor
    """what was averaged: [B, H, M, K] if projected, else [B, 1, M, D]"""


class AttentionOutput(NamedTuple):
    """What some rows of a block read from memory."""

    context_BTHQ: Float[Tensor, "B T H Q"]
    span_BGT: Float[Tensor, "B G T"]
    penalty_B: Float[Tensor, " B"] | None
    without_NCHQ: Float[Tensor, "N C H Q"] | None
    """what is read without the memory that each head attends to most, if its use is asked for"""
    shortfall_NC: Float[Tensor, "N C"] | None
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

    def initial_memory(self, batch: int) -> LayerMemory:
        """An empty store."""
        weight = self.feedforward_norm.weight
        integers = torch.zeros(batch, 0, dtype=torch.long, device=weight.device)
        hidden_BWD = weight.new_zeros(batch, 0, weight.shape[0]).detach()
        return LayerMemory(hidden_BWD, integers, integers.clone(), integers.bool())

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
        limit_B1: Float[Tensor, "B 1"] | None,
        tag_B: Int[Tensor, " B"] | None,
        *,
        write: bool,
        details: list[MemoryDetail] | None = None,
    ) -> tuple[Tensor, Store, StepReport]:
        """One step; `memory` is updated in place (and returned, since it may have grown)."""
        batch, heads = x_BD.shape[0], self.num_heads
        retention, slots = self.retention, memory.slots
        h_BD = self.memory_norm(x_BD)
        question_BHD, position_BHP = self._ask(h_BD, projected=False)
        # One pass over the memories gives the scores of all heads and, last, what the spans depend on.
        probe_1D = retention.probe_1D
        if probe_1D is not None:
            question_BHD = torch.cat([question_BHD, probe_1D.expand(batch, 1, -1)], 1)
        answer = torch.bmm(memory.for_pages(question_BHD), slots.hidden_BWD.transpose(1, 2))
        score_FHS = answer[:, :heads]
        span_FGS = retention.spans(answer[:, heads:], slots.birth_BW, slots.pooled_BW)
        if limit_B1 is not None:
            span_FGS = torch.minimum(span_FGS, memory.for_pages(limit_B1).unsqueeze(1))
        age_FS = memory.for_pages(clock_B).unsqueeze(1) - slots.birth_BW
        mask_FGS = retention.mask(span_FGS - age_FS.unsqueeze(1))
        strongest_FS = _largest(mask_FGS)
        seen_FS = strongest_FS > 0.0
        if self.position_window:
            position_FHP = memory.for_pages(position_BHP)
            score_FHS += positions_of_ages(position_FHP, self._position_ages(age_FS, slots))
        attention_FHS = self._attention(score_FHS, mask_FGS, memory)
        read_BHD = memory.sum_of_pages(torch.bmm(attention_FHS, slots.hidden_BWD))
        y_BD = self.feedforward(x_BD + self._out(read_BHD, projected=False))

        written_BGT = retention.spans(
            retention.products(h_BD.unsqueeze(1)), clock_B.unsqueeze(1), pooled_BM=None
        )
        retained_B = memory.sum_of_pages(seen_FS.sum(1))
        report = StepReport(
            span_BG=written_BGT.squeeze(2),
            retained_B=retained_B,
            on_ramp_B=retained_B - memory.sum_of_pages((strongest_FS == 1.0).sum(1)),
            tagged_B=memory.sum_of_pages((seen_FS & (slots.tag_BW > 0)).sum(1)),
        )
        if details is not None:
            seen_FHS = attention_FHS * (mask_FGS > 0.0)
            details.append(MemoryDetail(slots.birth_BW.clone(), _largest(span_FGS), strongest_FS, seen_FHS))
        if write:
            gone_FS = retention.merge(slots, retention.expired(_largest(span_FGS) - (age_FS + 1)))
            memory = self._write(h_BD, memory, clock_B, gone_FS, tag_B)
        return y_BD, memory, report

    def _attention(
        self, score_FHS: Float[Tensor, "F H S"], mask_FGS: Float[Tensor, "F G S"], memory: Store
    ) -> Float[Tensor, "F H S"]:
        """What a step attends to.

        Equation 4: softmax(a + log m) = m exp(a) / sum m exp(a). A null memory has a score of 0.
        """
        if isinstance(memory, LayerMemory):
            score_FHS += _log_mask(mask_FGS)
            if self.null_memory:
                return F.pad(score_FHS, (0, 1)).softmax(-1)[..., :-1]
            return score_FHS.softmax(-1) * (mask_FGS > 0.0).any(2, keepdim=True)
        score_FHS.masked_fill_(mask_FGS == 0.0, INVISIBLE)
        top_BH = memory.largest_of_pages(score_FHS.amax(2))
        if self.null_memory:
            top_BH = top_BH.clamp_min(0.0)
        weight_FHS = (score_FHS - memory.for_pages(top_BH).unsqueeze(2)).exp_().mul_(mask_FGS)
        total_BH = memory.sum_of_pages(weight_FHS.sum(2))
        if self.null_memory:
            total_BH += (-top_BH).exp()
        else:  # a head that sees nothing attends to nothing
            total_BH = total_BH.masked_fill(total_BH == 0.0, 1.0)
        return weight_FHS / memory.for_pages(total_BH).unsqueeze(2)

    def _write(
        self,
        h_BD: Float[Tensor, "B D"],
        memory: Store,
        clock_B: Int[Tensor, " B"],
        gone_FS: Bool[Tensor, "F S"],
        tag_B: Int[Tensor, " B"] | None,
    ) -> Store:
        """Put h_i where an expired memory lay; make room if a row has no such slot."""
        memory, page_B, slot_B = memory.with_room(gone_FS, WRITES_PER_LOOK.get(h_BD.device.type, 1))
        slots = memory.slots
        slots.hidden_BWD[page_B, slot_B] = h_BD
        slots.birth_BW[page_B, slot_B] = clock_B
        slots.tag_BW[page_B, slot_B] = 0 if tag_B is None else tag_B
        if self.retention.pools:
            slots.pooled_BW[page_B, slot_B] = False
        return memory

    # -- learning -------------------------------------------------------------------------------

    def block(
        self,
        x_BTD: Float[Tensor, "B T D"],
        memory: LayerMemory,
        view: BlockView,
        penalty: PenaltyKind | None,
        ablation: Ablation | None,
    ) -> tuple[Tensor, Tensor, BlockReport, Ablation | None]:
        """Many steps at once.

        Returns:
            The layer's output; h_i of the new memories; the report; and what comes out without memories of
            the layers below (of which `ablation` comes in) and of this one.
        """
        h_BTD = self.memory_norm(x_BTD)
        fused = self._fuses(h_BTD, penalty)
        projected = fused or projecting_pays(
            num_steps=h_BTD.shape[1], num_heads=self.num_heads, width=h_BTD.shape[2]
        )
        question_BTHQ, position_BTHP = self._ask(h_BTD, projected=projected)
        size = self._rows_at_a_time(view, memory)
        # Mixed precision ends here: spans of thousands of steps need every digit.
        with torch.autocast(h_BTD.device.type, enabled=False):
            parts = [
                self._attend(_Queries(question, position, projected, fused), h, stored, part_view, penalty)
                for question, position, h, stored, part_view in zip(
                    torch.split(question_BTHQ, size),
                    torch.split(position_BTHP, size),
                    torch.split(h_BTD, size),
                    memory.split(size),
                    view.split(size),
                    strict=True,
                )
            ]
        read = _joined(parts)
        read_BTD = self._out(read.context_BTHQ, projected=projected)
        y_BTD = self.feedforward(x_BTD + read_BTD)
        if read.shortfall_NC is not None:
            assert read.without_NCHQ is not None
            shortfall_NO = read.shortfall_NC
            with torch.no_grad():
                x_NOD = x_BTD[view.asked_BT].unsqueeze(1)
                x_NOD = x_NOD + self._out(read.without_NCHQ, projected=projected)
                if ablation is not None:
                    read_N1D = read_BTD[view.asked_BT].unsqueeze(1)
                    x_NOD = torch.cat([ablation.y_NOD + read_N1D, x_NOD], 1)
                y_NOD = self.feedforward(x_NOD)
            if ablation is not None:
                shortfall_NO = torch.cat([ablation.shortfall_NO, shortfall_NO], 1)
            ablation = Ablation(y_NOD, shortfall_NO)
        return y_BTD, h_BTD, BlockReport(read.span_BGT, read.penalty_B), ablation

    def _fuses(self, h_BTD: Float[Tensor, "B T D"], penalty: PenaltyKind | None) -> bool:
        """Whether a block takes the fused path; raises ValueError if it must and cannot."""
        if self.attention == "plain" or (self.attention == "auto" and h_BTD.device.type != "cuda"):
            return False
        reason = obstacle(h_BTD.device.type, h_BTD.dtype, self.head_size)
        if penalty is not None and (penalty.form == "ramp" or penalty.asks_for_use):
            reason = 'the penalty form "ramp" and use_weight look at every pair, which it never stores'
        if reason is not None and self.attention == "fused":
            raise ValueError(f"attention=fused cannot be had here: {reason}; choose auto or plain")
        return reason is None

    def _rows_at_a_time(self, view: BlockView, memory: LayerMemory) -> int:
        """So few that attention's arrays stay in the processor's cache, and a row is padded by its like."""
        batch, num_steps = view.episode_BT.shape
        if memory.hidden_BWD.device.type != "cpu":
            return batch
        scores_per_row = num_steps * self.num_heads * (memory.num_slots + num_steps)
        return min(batch, max(1, SCORES_IN_CACHE // scores_per_row))

    def _attend(
        self,
        queries: _Queries,
        h_BTD: Float[Tensor, "B T D"],
        memory: LayerMemory,
        view: BlockView,
        penalty: PenaltyKind | None,
    ) -> AttentionOutput:
        """Let a block's queries attend to the stored memories and to those of the block (`h_BTD`)."""
        retention = self.retention
        memories = BlockMemories.gather(retention, memory, view, h_BTD, null_memory=self.null_memory)
        attended = (
            self._attend_fused(queries, memories, view, penalty)
            if queries.fused
            else self._attend_plain(queries, memories, view, penalty)
        )
        penalty_B = without_NCHQ = shortfall_NC = None
        if penalty is not None:
            penalty_B = retention.penalty(
                penalty, memories.span_BGT, memories.end_BGM, attended.mask_BTGM, view.step_T
            )
            if attended.attention_BTHM is not None:
                without_NCHQ, shortfall_NC = self._ablate(attended, memories, view, penalty.use_margin)
        return AttentionOutput(
            attended.context_BTHQ, memories.span_BGT, penalty_B, without_NCHQ, shortfall_NC
        )

    def _attend_plain(
        self, queries: _Queries, memories: BlockMemories, view: BlockView, penalty: PenaltyKind | None
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
            age_BW = self._position_ages(view.clock_B.unsqueeze(1) - stored.birth_BW, stored)
            positions = BlockPositions.of(age_BW, num_steps=len(view.step_T), window=self.position_window)
        context_BTHQ, mask_BTGM, attention_BTHM = ExpiringAttention.apply(  # type: ignore[no-untyped-call]
            *(queries.question_BTHQ.to(full_dtype), key, value, queries.position_BTHP),
            *memories.expiry(view, retention.ramp, detach_spans=_taught_by_use(penalty)),
            positions,
            penalty is not None and penalty.asks_for_use and retention.learns,
            penalty is not None and penalty.form == "ramp",
            self.null_memory,
            *(() if queries.projected else memories.h[1:]),
        )
        return _Attended(context_BTHQ, mask_BTGM, attention_BTHM, key if value is None else value)

    def _attend_fused(
        self, queries: _Queries, memories: BlockMemories, view: BlockView, penalty: PenaltyKind | None
    ) -> _Attended:
        """Attention in one kernel, which stores no score."""
        key_BHMK, value_BHMK = self._projected(memories.h, queries.question_BTHQ.dtype)
        position_BHTP = queries.position_BTHP.transpose(1, 2) if self.position_window else None
        birth_BM = memories.birth_BM.masked_fill(memories.no_position_BM(), LONG_AGO)
        context_BTHQ = fused_attention(
            queries.question_BTHQ,
            key_BHMK,
            value_BHMK,
            position_BHTP,
            birth_BM.clamp_min(LONG_AGO).to(torch.int32),
            *memories.expiry(view, self.retention.ramp, detach_spans=_taught_by_use(penalty)),
        )
        return _Attended(context_BTHQ, None, None, value_BHMK)

    def _ablate(
        self, attended: _Attended, memories: BlockMemories, view: BlockView, margin: float
    ) -> tuple[Tensor, Tensor]:
        """What the selected queries read without each head's most attended memory; its span's shortfall."""
        assert attended.attention_BTHM is not None
        row_N, step_N = view.asked_BT.nonzero(as_tuple=True)
        attention_NHM = attended.attention_BTHM[row_N, step_N]
        if self.null_memory:  # it cannot be removed
            attention_NHM[..., -len(view.step_T) - 1] = 0.0
        without_NCHQ, place_NC = leave_one_out(
            attended.context_BTHQ[row_N, step_N], attended.value, attention_NHM, row_N
        )
        span_NC = memories.span_BGM().expand(-1, self.num_heads, -1)[
            row_N.unsqueeze(1), torch.arange(self.num_heads, device=row_N.device), place_NC
        ]
        age_NC = view.step_T[step_N].unsqueeze(1) - memories.birth_BM[row_N].gather(1, place_NC)
        shortfall_NC = span_shortfall(span_NC, age_NC, margin)
        return without_NCHQ, shortfall_NC.masked_fill(attention_NHM.amax(2) == 0.0, 0.0)

    def after_block(self, memory: LayerMemory, h_BTD: Float[Tensor, "B T D"], view: BlockView) -> LayerMemory:
        """What the query after a block would still see, per row; `h_BTD` are the memories written in it."""
        num_steps = h_BTD.shape[1]
        retention = self.retention
        new = view.new_memory(h_BTD.detach())
        pooled = retention.pool(memory, new, view)
        contents, episodes = [memory, new], [torch.zeros_like(memory.birth_BW), view.episode_BT]
        if pooled is not None:
            contents.insert(1, pooled.memory)
            episodes.insert(1, pooled.episode_BP)
        spans = view.limited([retention.spans_of(part) for part in contents])
        everything = LayerMemory.joined(contents)
        remaining_BGM = torch.cat(spans, 2) + (view.relative(everything.birth_BW) - num_steps).unsqueeze(1)
        alive_BM = ~retention.expired(_largest(remaining_BGM))
        return everything.kept(alive_BM & (torch.cat(episodes, 1) == view.episode_BT[:, -1:]))

    def remaining(
        self, memory: Store, clock_B: Int[Tensor, " B"], limit_B1: Float[Tensor, "B 1"] | None
    ) -> Float[Tensor, "F S"]:
        """r_ti of the head that sees a memory longest, for a query at this time; long past where none is."""
        span_FGS = self.retention.spans_of(memory.slots)
        if limit_B1 is not None:
            span_FGS = torch.minimum(span_FGS, memory.for_pages(limit_B1).unsqueeze(1))
        return _largest(span_FGS) - (memory.for_pages(clock_B).unsqueeze(1) - memory.slots.birth_BW)

    def seen(
        self, memory: Store, clock_B: Int[Tensor, " B"], limit_B1: Float[Tensor, "B 1"] | None
    ) -> Bool[Tensor, "F S"]:
        """The slots whose memories a query at this time would see."""
        return ~self.retention.expired(self.remaining(memory, clock_B, limit_B1))

    def compacted(
        self, memory: Store, clock_B: Int[Tensor, " B"], limit_B1: Float[Tensor, "B 1"] | None
    ) -> LayerMemory:
        """Only what a query at this time would see, in the narrowest store."""
        return memory.kept(self.seen(memory, clock_B, limit_B1))

    def paged(self, memory: LayerMemory) -> Store:
        """The same memories in pages (a copy) where that makes steps cheaper, else as they are."""
        # On a GPU a step of a small model is launches, not slots; and pooled memories go from slot to slot.
        in_rows_only = memory.hidden_BWD.device.type != "cpu" or self.retention.pools
        pages = None if in_rows_only else in_pages(memory)
        return memory if pages is None else pages

    def _ask(
        self, h: Float[Tensor, "*N D"], *, projected: bool
    ) -> tuple[Float[Tensor, "*N H Q"], Float[Tensor, "*N H P"]]:
        """What queries ask, scaled by K**-0.5: of keys, or of memories as they are stored; and q_t . p_age.

        The latter for the ages P to 1, in full precision.
        """
        heads, size = self.num_heads, self.head_size
        query = self.query(h).mul(size**-0.5).view(*h.shape[:-1], heads, size)

        def taken_through(weight_HKX: Tensor) -> Tensor:
            query_HNK = query.flatten(0, -3).transpose(0, 1)
            answer_HNX = torch.bmm(query_HNK.to(weight_HKX.dtype), weight_HKX)
            return answer_HNX.transpose(0, 1).contiguous().view(*h.shape[:-1], heads, -1)

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
        key_BHMK, value_BHMK = torch.cat(both, 3)
        return key_BHMK, value_BHMK

    def _out(self, read: Float[Tensor, "*N H Q"], *, projected: bool) -> Float[Tensor, "*N D"]:
        """What was read, from projected values or from memories as they are stored, as the layer adds it."""
        if projected:
            return self.attention_out(read.flatten(-2))
        value_HDK = self.value.weight.view(self.num_heads, self.head_size, -1).transpose(1, 2)
        value_ND = torch.bmm(read.flatten(0, -3).transpose(0, 1), value_HDK).transpose(0, 1).flatten(1)
        return self.attention_out(value_ND.view(*read.shape[:-2], value_ND.shape[1]))

    # -- relative positions ----------------------------------------------------------------------

    def _position_ages(self, age_BW: Int[Tensor, "B W"], memory: LayerMemory) -> Int[Tensor, "B W"]:
        """Ages, but older than the window for pooled memories: they have no position."""
        if not self.retention.pools:
            return age_BW
        return age_BW.masked_fill(memory.pooled_BW, self.position_window + 1)


def _joined(parts: list[AttentionOutput]) -> AttentionOutput:
    """What all rows read, from what groups of them read."""
    if len(parts) == 1:
        return parts[0]
    columns = zip(*parts, strict=True)  # what is None in one part is None in all
    return AttentionOutput(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]


def _taught_by_use(penalty: PenaltyKind | None) -> bool:
    """Whether spans learn from the ablation of memories, and not from the task's loss."""
    return penalty is not None and penalty.use_weight is not None


def _largest(number_BGW: Float[Tensor, "B G W"]) -> Float[Tensor, "B W"]:
    """Span or mask for the head that sees the memory best."""
    return number_BGW.squeeze(1) if number_BGW.shape[1] == 1 else number_BGW.amax(1)


def _log_mask(mask: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log m, so that softmax(a + log m) is equation 4; exactly nothing passes where m is 0."""
    gone = mask <= 0.0
    return mask.masked_fill(gone, 1.0).log().masked_fill(gone, INVISIBLE)
