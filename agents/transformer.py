"""A causal transformer whose layers remember earlier steps and let them expire.

Pre-norm layers. Each layer attends over its own earlier inputs h_i, never over the step itself, and
deletes a memory for good once its span has passed. `step` takes one step (acting), `block` takes
many at once (learning, language modelling); they compute the same numbers. Nothing
here knows of reinforcement learning, and no buffer is sized by an episode or by the maximum span.

What query t of a block sees, for W = 2 stored memories (s), T = 4 steps and an episode that begins
at step 2 (1: visible as long as its span lasts):

          s0 s1  0  1  2  3
    t=0    1  1  .  .  .  .
    t=1    1  1  1  .  .  .
    t=2    .  .  .  .  .  .      is_first: nothing from before, nothing of itself
    t=3    .  .  .  .  1  .

Shape letters (logical dimensions, always in this order):
    B  rows of the batch          W  stored memories (slots)
    T  steps in this block        M  all memories of a block, W + T, the stored ones first
    H  heads                      K  size of one head
    D  model width                P  recent steps that have a relative position
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from agents.expire_span import ExpireSpan, PenaltyKind, SpanNoise, ramp_penalty, span_cost, use_discount
from agents.expiring_attention import INVISIBLE, ExpiringAttention
from agents.memory_state import NEVER, LayerMemory, MemoryState

COMPACTION_INTERVAL_STEPS = 64
"""Acting looks this often whether the stores are wider than their fullest row needs."""
SCORES_IN_CACHE = 2**18
"""Scores (one number per query, head and memory) that attention handles at a time on a CPU: one MiB."""
SPARE_SLOTS = 4
"""Empty slots left in the fullest row by a compaction, so that the next steps need not grow it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSettings:
    """Size and memory of a `MemoryTransformer`; the ranges are checked where they are used."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_multiplier: int = 4
    remember: bool = True
    """False: the memory-free control, the same torso without its attention"""
    max_span: int = 1024
    ramp: int = 16
    initial_span_fraction: float = 0.1
    span_divisor: float = 1.0
    position_window: int = 16
    """P: learned relative position keys for so many last steps (0: none)"""
    query_key_gain: float = 1.0
    """factor on the initial query and key weights; more makes the first attention sharper"""
    layer_drop: float = 0.0
    """probability that a block skips a layer in training"""


class StepReport(NamedTuple):
    """What one layer did with its memories in a step."""

    span_B: Float[Tensor, " B"]
    """e_i of the memory written now, in steps"""
    retained_B: Int[Tensor, " B"]
    """memories the step could see"""
    on_ramp_B: Int[Tensor, " B"]
    """those of them that are fading"""
    tagged_B: Int[Tensor, " B"]
    """those of them whose tag is positive"""


class BlockReport(NamedTuple):
    """What one layer did with its memories in a block."""

    span_BT: Float[Tensor, "B T"]
    """e_i of the memories written now, in steps, with gradient"""
    penalty_B: Float[Tensor, " B"] | None
    """the span penalty per row; None unless asked for"""


class StepOutput(NamedTuple):
    """What `step` gives."""

    y_BD: Float[Tensor, "B D"]
    state: MemoryState
    reports: list[StepReport]


class BlockOutput(NamedTuple):
    """What `block` gives."""

    y_BTD: Float[Tensor, "B T D"]
    state: MemoryState | None
    """None if the caller said that it needs none"""
    reports: list[BlockReport]


def orthogonal(linear: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Initialize so that a layer keeps the scale of its input.

    torch's own initialization shrinks it by 1.7. What a policy has to find out is often the product of
    something remembered and something seen, and how soon it leaves that saddle depends on the scale.
    """
    nn.init.orthogonal_(linear.weight, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


class MemoryLayer(nn.Module):
    """Attention over memories, then a feed-forward part, both with a residual."""

    def __init__(self, settings: TransformerSettings) -> None:
        """Build the layer; raises ValueError if the heads do not divide the width."""
        super().__init__()
        width, heads = settings.width, settings.num_heads
        if width % heads:
            raise ValueError(f"num_heads ({heads}) must divide width ({width})")
        self.num_heads = heads
        self.head_size = width // heads
        self.position_window = settings.position_window
        self.remember = settings.remember
        self.feedforward_norm = nn.LayerNorm(width)
        self.widen = orthogonal(nn.Linear(width, settings.feedforward_multiplier * width), gain=2**0.5)
        self.narrow = orthogonal(nn.Linear(settings.feedforward_multiplier * width, width))
        if not settings.remember:
            return
        self.memory_norm = nn.LayerNorm(width)
        self.query = orthogonal(nn.Linear(width, width), settings.query_key_gain)
        # No bias here: one on the keys would cancel in the softmax, one on the values is attention_out's.
        self.key = orthogonal(nn.Linear(width, width, bias=False), settings.query_key_gain)
        self.value = orthogonal(nn.Linear(width, width, bias=False))
        self.attention_out = orthogonal(nn.Linear(width, width))
        self.expire_span = ExpireSpan(
            width,
            max_span=settings.max_span,
            ramp=settings.ramp,
            initial_span_fraction=settings.initial_span_fraction,
            span_divisor=settings.span_divisor,
        )
        if self.position_window:
            # Oldest first: entry j belongs to age P - j, as `_positions_in_block` wants it.
            self.position_HPK = nn.Parameter(torch.zeros(heads, self.position_window, self.head_size))

    def initial_memory(self, batch: int) -> LayerMemory:
        """An empty store."""
        weight = self.feedforward_norm.weight
        integers = torch.zeros(batch, 0, dtype=torch.long, device=weight.device)
        return LayerMemory(weight.new_zeros(batch, 0, weight.shape[0]).detach(), integers, integers.clone())

    def feedforward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """The second half of the layer, residual included."""
        return x + self.narrow(F.relu(self.widen(self.feedforward_norm(x)), inplace=True))

    # -- acting ---------------------------------------------------------------------------------

    def step(
        self,
        x_BD: Float[Tensor, "B D"],
        memory: LayerMemory,
        clock_B: Int[Tensor, " B"],
        noise: SpanNoise | None,
        tag_B: Int[Tensor, " B"] | None,
        *,
        write: bool,
    ) -> tuple[Tensor, LayerMemory, StepReport]:
        """One step; `memory` is updated in place (and returned, since it may have grown)."""
        batch = x_BD.shape[0]
        h_BD = self.memory_norm(x_BD)
        query_BHK, question_BHD = self._queries(h_BD)
        # One pass over the memories gives the scores of all heads and, last, what the spans depend on.
        questions = torch.cat([question_BHD, self.expire_span.predictor.weight.expand(batch, 1, -1)], 1)
        answer = torch.bmm(questions, memory.hidden_BWD.transpose(1, 2))
        score_BHW, span_BW = answer[:, :-1], self.expire_span.span(answer[:, -1])
        if noise is not None:
            span_BW = noise.apply(span_BW, slice(0, 1))
        age_BW = clock_B.unsqueeze(1) - memory.birth_BW
        mask_BW = self.expire_span.mask(span_BW - age_BW)
        alive_BW = mask_BW > 0.0
        retained_B = alive_BW.sum(1)
        if self.position_window:
            score_BHW += self._positions(query_BHK.unsqueeze(2), age_BW.unsqueeze(1)).squeeze(2)
        score_BHW += _log_mask(mask_BW).unsqueeze(1)
        attention_BHW = score_BHW.softmax(-1)  # equation 4: softmax(a + log m) = m exp(a) / sum m exp(a)
        read_BHD = torch.bmm(attention_BHW, memory.hidden_BWD) * (retained_B > 0).view(batch, 1, 1)
        y_BD = self.feedforward(x_BD + self._values(read_BHD))

        span_B = self.expire_span(h_BD.unsqueeze(1)).squeeze(1)
        on_ramp_B = retained_B - (mask_BW == 1.0).sum(1)
        report = StepReport(span_B, retained_B, on_ramp_B, (alive_BW & (memory.tag_BW > 0)).sum(1))
        if write:
            gone_BW = self.expire_span.mask(span_BW - (age_BW + 1)) <= 0.0  # the next query would not see it
            memory = self._write(h_BD, memory, clock_B, gone_BW, tag_B)
        return y_BD, memory, report

    def _write(
        self,
        h_BD: Float[Tensor, "B D"],
        memory: LayerMemory,
        clock_B: Int[Tensor, " B"],
        gone_BW: Bool[Tensor, "B W"],
        tag_B: Int[Tensor, " B"] | None,
    ) -> LayerMemory:
        """Put h_i where an expired memory lay; widen the store if a row has no such slot."""
        num_slots = memory.num_slots
        if num_slots == 0 or not bool(gone_BW.any(1).all()):
            memory = memory.grown(max(SPARE_SLOTS, num_slots // 4))
            gone_BW = F.pad(gone_BW, (0, memory.num_slots - num_slots), value=True)
        slot_B = gone_BW.to(torch.uint8).argmax(1)
        row_B = torch.arange(h_BD.shape[0], device=h_BD.device)
        memory.hidden_BWD[row_B, slot_B] = h_BD
        memory.birth_BW[row_B, slot_B] = clock_B
        memory.tag_BW[row_B, slot_B] = 0 if tag_B is None else tag_B
        return memory

    # -- learning -------------------------------------------------------------------------------

    def block(
        self,
        x_BTD: Float[Tensor, "B T D"],
        memory: LayerMemory,
        view: BlockView,
        penalty: PenaltyKind | None,
    ) -> tuple[Tensor, Tensor, BlockReport]:
        """Many steps at once.

        Returns:
            The layer's output; h_i of the new memories; the report.
        """
        h_BTD = self.memory_norm(x_BTD)
        query_BTHK, question_BTHD = self._queries(h_BTD)
        size = self._rows_at_a_time(view, memory)
        parts = [
            self._read(*part, penalty)
            for part in zip(
                torch.split(query_BTHK, size),
                torch.split(question_BTHD, size),
                torch.split(h_BTD, size),
                memory.split(size),
                view.split(size),
                strict=True,
            )
        ]
        read_BTHD, span_BT, penalty_B = parts[0]
        if len(parts) > 1:
            read_BTHD, span_BT = (
                torch.cat([part[0] for part in parts]),
                torch.cat([part[1] for part in parts]),
            )
            penalties = [part[2] for part in parts if part[2] is not None]
            penalty_B = torch.cat(penalties) if penalties else None
        y_BTD = self.feedforward(x_BTD + self._values(read_BTHD))
        return y_BTD, h_BTD, BlockReport(span_BT, penalty_B)

    def _rows_at_a_time(self, view: BlockView, memory: LayerMemory) -> int:
        """So few that attention's arrays stay in the processor's cache, and a row is padded by its like."""
        batch, num_steps = view.episode_BT.shape
        if memory.hidden_BWD.device.type != "cpu":
            return batch
        scores_per_row = num_steps * self.num_heads * (memory.num_slots + num_steps)
        return min(batch, max(1, SCORES_IN_CACHE // scores_per_row))

    def _read(
        self,
        query_BTHK: Float[Tensor, "B T H K"],
        question_BTHD: Float[Tensor, "B T H D"],
        h_BTD: Float[Tensor, "B T D"],
        memory: LayerMemory,
        view: BlockView,
        penalty: PenaltyKind | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What a block's queries read from memory [B, T, H, D], its spans [B, T], its penalties [B]."""
        ramp = self.expire_span.ramp
        span_BT, stored_span_BW = self.expire_span(h_BTD), self.expire_span(memory.hidden_BWD)
        seen_span_BM = view.seen_spans(stored_span_BW, span_BT)
        birth_BM = view.relative_births(memory)
        near, inside = self._positions_of_block(query_BTHK.transpose(1, 2), view, memory)
        # Seen from step R of the block on, everything stored is older than the ramp.
        late = ramp if penalty is not None and penalty.use_steps else None
        read_BTHD, mask_BTM, late_BW = ExpiringAttention.apply(  # type: ignore[no-untyped-call]
            question_BTHD,
            memory.hidden_BWD,
            h_BTD,
            near,
            inside,
            (seen_span_BM + birth_BM) / ramp + 1.0,
            view.stored_time_BT / ramp,
            view.step_T / ramp,
            view.hidden_BTT,
            late,
        )
        penalty_B = None
        if penalty is not None and penalty.form != "ramp":
            cap_steps = penalty.cap_steps if penalty.form == "capped" else None
            penalty_B = span_cost(span_BT, cap_steps).mean(1)
        elif penalty is not None:
            remaining_BTM = (seen_span_BM + birth_BM).unsqueeze(1) - view.step_T.unsqueeze(1)
            penalty_B = ramp_penalty(remaining_BTM, mask_BTM, ramp)
        if penalty is not None and late_BW is not None:
            penalty_B = (
                penalty_B - use_discount(stored_span_BW, late_BW, penalty.use_steps) / span_BT.shape[1]
            )
        return read_BTHD, span_BT, penalty_B

    def _queries(self, h: Float[Tensor, "*N D"]) -> tuple[Tensor, Tensor]:
        """Queries, scaled [*N, H, K], and the same taken through the key projection [*N, H, D]."""
        query_NHK = self.query(h).mul(self.head_size**-0.5).view(-1, self.num_heads, self.head_size)
        key_HKD = self.key.weight.view(self.num_heads, self.head_size, -1)
        question_NHD = torch.bmm(query_NHK.transpose(0, 1), key_HKD).transpose(0, 1).contiguous()
        return query_NHK.view(*h.shape[:-1], *query_NHK.shape[1:]), question_NHD.view(
            *h.shape[:-1], *question_NHD.shape[1:]
        )

    def _values(self, read: Float[Tensor, "*N H D"]) -> Float[Tensor, "*N D"]:
        """What was read, taken through the value projection of its head, and out of the attention."""
        value_HDK = self.value.weight.view(self.num_heads, self.head_size, -1).transpose(1, 2)
        read_HND = read.flatten(0, -3).transpose(0, 1)
        value_ND = torch.bmm(read_HND, value_HDK).transpose(0, 1).flatten(1)
        return self.attention_out(value_ND.view(*read.shape[:-2], -1))

    # -- relative positions ----------------------------------------------------------------------

    def _positions(
        self, query_BHTK: Float[Tensor, "B H T K"], age_BTM: Int[Tensor, "B T M"]
    ) -> Float[Tensor, "B H T M"]:
        """q_t . p_age for ages 1 to P, zero for older memories; queries come scaled by K**-0.5."""
        score_BHTP = torch.matmul(query_BHTK, self.position_HPK.transpose(1, 2))
        index_BTM = (self.position_window - age_BTM).clamp(0, self.position_window - 1)
        score_BHTM = score_BHTP.gather(3, index_BTM.unsqueeze(1).expand(-1, self.num_heads, -1, -1))
        return score_BHTM * (age_BTM <= self.position_window).unsqueeze(1)

    def _positions_of_block(
        self, query_BHTK: Float[Tensor, "B H T K"], view: BlockView, memory: LayerMemory
    ) -> tuple[Tensor | None, Tensor | None]:
        """The same for a block.

        Returns:
            Scores [B, H, S, C] of the first S queries and C stored memories: none beyond them are as
            near as P steps (stores are ordered newest first when a rollout begins, so C is small); and
            scores [B, H, T, T] inside the block, where ages are known beforehand and need no gather.
        """
        if not self.position_window:
            return None, None
        inside = self._positions_inside(query_BHTK)
        age_BW = view.clock_B.unsqueeze(1) - memory.birth_BW
        near_columns = (age_BW <= self.position_window).any(0).nonzero()
        if not len(near_columns):
            return None, inside
        age_B1C = age_BW[:, None, : int(near_columns[-1]) + 1]
        near = min(self.position_window, query_BHTK.shape[2])
        age_BSC = age_B1C + torch.arange(near, device=age_B1C.device).unsqueeze(1)
        return self._positions(query_BHTK[:, :, :near], age_BSC), inside

    def _positions_inside(self, query_BHTK: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T T"]:
        """q_t . p_(t-i) at [t, i] by the padding trick of Transformer-XL (Dai 2019, appendix B).

        With row t of `score` holding ages P..1 in the columns before the last of T + 1, reading the
        same numbers in rows of T shifts row t left by T - t: column i then holds age t - i.
        """
        batch, heads, num_steps, _ = query_BHTK.shape
        used = min(self.position_window, num_steps - 1)
        if used == 0:
            return query_BHTK.new_zeros(batch, heads, num_steps, num_steps)
        nearest = self.position_HPK[:, -used:].transpose(1, 2)
        score = torch.matmul(query_BHTK, nearest)
        padded = F.pad(score, (num_steps - used, 1))
        return padded.view(batch, heads, num_steps + 1, num_steps)[:, :, 1:]


@dataclass(frozen=True, slots=True)
class BlockView:
    """Who may see whom in a block, shared by its layers."""

    clock_B: Int[Tensor, " B"]
    """clock reading at the first step"""
    step_T: Float[Tensor, " T"]
    """0, 1, 2, ..."""
    episode_BT: Int[Tensor, "B T"]
    """0: the episode that was under way before the block"""
    hidden_BTT: Bool[Tensor, "B T T"]
    """where a query may not look inside the block: True at the dots drawn in the module's docstring"""
    stored_time_BT: Float[Tensor, "B T"]
    """the step; infinite where nothing stored may be seen, so that every stored memory has expired"""
    noise: SpanNoise | None

    @classmethod
    def of(
        cls,
        state: MemoryState,
        is_first_BT: Bool[Tensor, "B T"],
        noise: SpanNoise | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> BlockView:
        """Prepare what does not depend on the layer; times are kept in `dtype`, or better."""
        num_steps = is_first_BT.shape[1]
        device = is_first_BT.device
        step_T = torch.arange(num_steps, device=device, dtype=torch.promote_types(dtype, torch.float32))
        episode_BT = is_first_BT.long().cumsum(1)
        not_later_TT = torch.ones(num_steps, num_steps, dtype=torch.bool, device=device).triu()
        hidden_BTT = not_later_TT | (episode_BT.unsqueeze(2) != episode_BT.unsqueeze(1))
        stored_time_BT = step_T.masked_fill(episode_BT != 0, torch.inf)
        return cls(state.clock_B, step_T, episode_BT, hidden_BTT, stored_time_BT, noise)

    def split(self, size: int) -> list[BlockView]:
        """Views of so many rows each."""
        rows = zip(
            torch.split(self.clock_B, size),
            torch.split(self.episode_BT, size),
            torch.split(self.hidden_BTT, size),
            torch.split(self.stored_time_BT, size),
            strict=True,
        )
        views = [
            BlockView(clock, self.step_T, episode, hidden, time, None)
            for clock, episode, hidden, time in rows
        ]
        if self.noise is None:
            return views
        noises = zip(
            torch.split(self.noise.limit_BT, size), torch.split(self.noise.rate_BT, size), strict=True
        )
        return [replace(view, noise=SpanNoise(*noise)) for view, noise in zip(views, noises, strict=True)]

    def seen_spans(self, stored_BW: Float[Tensor, "B W"], new_BT: Float[Tensor, "B T"]) -> Tensor:
        """Spans of all memories [B, M] as the noise lets them be seen."""
        if self.noise is not None:
            stored_BW = self.noise.apply(stored_BW, slice(0, 1))
            new_BT = self.noise.apply(new_BT, slice(None))
        return torch.cat([stored_BW, new_BT], 1)

    def relative_births(self, memory: LayerMemory) -> Float[Tensor, "B M"]:
        """Births counted from the first step of the block (negative for stored memories)."""
        stored_BW = (memory.birth_BW - self.clock_B.unsqueeze(1)).to(self.step_T.dtype)
        return torch.cat([stored_BW, self.step_T.expand(stored_BW.shape[0], -1)], 1)


class MemoryTransformer(nn.Module):
    """A stack of `MemoryLayer`, with its memory as explicit state."""

    def __init__(self, settings: TransformerSettings) -> None:
        """Build the stack; raises ValueError on settings that contradict each other."""
        super().__init__()
        if not 0.0 <= settings.layer_drop < 1.0:
            raise ValueError(f"layer_drop must lie in [0, 1), got {settings.layer_drop}")
        self.settings = settings
        self.layers: Sequence[MemoryLayer] = nn.ModuleList(  # type: ignore[assignment]
            MemoryLayer(settings) for _ in range(settings.num_layers)
        )
        self.final_norm = nn.LayerNorm(settings.width)

    def initial_state(self, batch: int) -> MemoryState:
        """Empty memories for `batch` rows."""
        device = self.final_norm.weight.device
        layers = [layer.initial_memory(batch) for layer in self._remembering()]
        return MemoryState(torch.zeros(batch, dtype=torch.long, device=device), layers)

    @torch.no_grad()
    def step(
        self,
        x_BD: Float[Tensor, "B D"],
        state: MemoryState,
        is_first_B: Bool[Tensor, " B"],
        noise: SpanNoise | None = None,
        *,
        tag_B: Int[Tensor, " B"] | None = None,
        write: bool = True,
    ) -> StepOutput:
        """Take one step, without gradients.

        Args:
            x_BD: embedded inputs.
            state: memories so far. Used up: it is updated in place; `clone()` it to keep it.
            is_first_B: True where an episode begins with this step; its row forgets everything.
            noise: span noise of this step, parts of shape [B, 1].
            tag_B: a number to store beside each new memory, for the caller's own use.
            write: False leaves the state as it is (to ask what the model would say).
        """
        if write and state.steps_since_compaction >= COMPACTION_INTERVAL_STEPS:
            state = self.compact(state, noise)
        reports = []
        starts = bool(is_first_B.any())
        if starts and not write:
            state = state.clone()
        for index, layer in enumerate(self.layers):
            if not self.settings.remember:
                x_BD = layer.feedforward(x_BD)
                continue
            memory = state.layers[index]
            if starts:
                memory.forget_rows(is_first_B)
            x_BD, memory, report = layer.step(x_BD, memory, state.clock_B, noise, tag_B, write=write)
            if write:
                state.layers[index] = memory
            reports.append(report)
        if write:
            state.clock_B += 1
            state.steps_since_compaction += 1
        return StepOutput(self.final_norm(x_BD), state, reports)

    def block(
        self,
        x_BTD: Float[Tensor, "B T D"],
        state: MemoryState,
        is_first_BT: Bool[Tensor, "B T"],
        noise: SpanNoise | None = None,
        *,
        tag_BT: Int[Tensor, "B T"] | None = None,
        penalty: PenaltyKind | None = None,
        need_state: bool = True,
    ) -> BlockOutput:
        """Take T steps at once, with gradients (cut at the block's beginning).

        Args:
            x_BTD: embedded inputs.
            state: memories before the block; left as it is.
            is_first_BT: True where an episode begins.
            noise: span noise, parts of shape [B, T].
            tag_BT: a number to store beside each new memory.
            penalty: also give the span penalty, of this kind.
            need_state: False saves the work of deleting and storing.
        """
        view = BlockView.of(state, is_first_BT, noise, x_BTD.dtype)
        layers: list[LayerMemory] = []
        reports = []
        for index, layer in enumerate(self.layers):
            skipped = self.training and bool(torch.rand(()) < self.settings.layer_drop)
            if not self.settings.remember:
                x_BTD = x_BTD if skipped else layer.feedforward(x_BTD)
                continue
            memory = state.layers[index]
            y_BTD, h_BTD, report = layer.block(x_BTD, memory, view, penalty)
            x_BTD = x_BTD if skipped else y_BTD
            reports.append(report)
            if need_state:
                layers.append(self._after_block(layer, memory, view, h_BTD, tag_BT))
        new_state = MemoryState(state.clock_B + x_BTD.shape[1], layers) if need_state else None
        return BlockOutput(self.final_norm(x_BTD), new_state, reports)

    @torch.no_grad()
    def compact(self, state: MemoryState, noise: SpanNoise | None = None) -> MemoryState:
        """Narrow every store to its fullest row, expired memories left out, under the present weights."""
        layers = []
        for layer, memory in zip(self._remembering(), state.layers, strict=True):
            span_BW = layer.expire_span(memory.hidden_BWD)
            if noise is not None:
                span_BW = noise.apply(span_BW, slice(0, 1))
            age_BW = state.clock_B.unsqueeze(1) - memory.birth_BW
            layers.append(_keep(memory, layer.expire_span.mask(span_BW - age_BW) > 0.0))
        return MemoryState(state.clock_B, layers)

    @torch.no_grad()
    def _after_block(
        self,
        layer: MemoryLayer,
        memory: LayerMemory,
        view: BlockView,
        h_BTD: Float[Tensor, "B T D"],
        tag_BT: Int[Tensor, "B T"] | None,
    ) -> LayerMemory:
        """What the query after this block would still see, per row."""
        batch, num_steps, _ = h_BTD.shape
        step_BT = torch.arange(num_steps, device=h_BTD.device).expand(batch, -1)
        tag_BT = torch.zeros_like(step_BT) if tag_BT is None else tag_BT
        everything = LayerMemory(
            torch.cat([memory.hidden_BWD, h_BTD.detach()], 1),
            torch.cat([memory.birth_BW, view.clock_B.unsqueeze(1) + step_BT], 1),
            torch.cat([memory.tag_BW, tag_BT], 1),
        )
        span_BM = view.seen_spans(layer.expire_span(memory.hidden_BWD), layer.expire_span(h_BTD))
        remaining_BM = span_BM + view.relative_births(memory) - num_steps
        last_B1 = view.episode_BT[:, -1:]
        episode_BM = torch.cat([torch.zeros_like(memory.birth_BW), view.episode_BT], 1)
        return _keep(everything, (layer.expire_span.mask(remaining_BM) > 0.0) & (episode_BM == last_B1))

    def _remembering(self) -> list[MemoryLayer]:
        """The layers that have a memory: all, or none in the memory-free control."""
        return [layer for layer in self.layers if layer.remember]


def _keep(memory: LayerMemory, alive_BW: Bool[Tensor, "B W"]) -> LayerMemory:
    """Only the memories marked True, newest first, in a store `SPARE_SLOTS` wider than the fullest row."""
    fullest = int(alive_BW.sum(1).max()) if alive_BW.numel() else 0
    num_slots = min(memory.num_slots, fullest + SPARE_SLOTS)
    birth_BW, order_BW = memory.birth_BW.masked_fill(~alive_BW, NEVER).sort(
        dim=1, descending=True, stable=True
    )
    return memory.gather(order_BW[:, :num_slots], birth_BW[:, :num_slots])


def _log_mask(mask: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log m, so that softmax(a + log m) is equation 4; exactly nothing passes where m is 0."""
    gone = mask <= 0.0
    return mask.masked_fill(gone, 1.0).log().masked_fill(gone, INVISIBLE)
