"""Visibility of memories in a block of steps, whatever the kind of memory.

Memories that query t of a block sees, for 2 stored memories (s), W = 4 steps and an episode that begins
at step 2 (1: visible as long as its span lasts):

          s0 s1  0  1  2  3
    t=0    1  1  .  .  .  .
    t=1    1  1  1  .  .  .
    t=2    .  .  .  .  .  .      episode start: nothing from before, not itself
    t=3    .  .  .  .  1  .
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.rows import RowStore
from memory_suite.agents.model.store.state import MemoryState


@dataclass(frozen=True, slots=True)
class BlockView:
    """Clocks, episodes and visibility of a block, the same for all layers."""

    clock_B: Int[Tensor, " B"]
    """clock reading at the first step"""
    step_W: Float[Tensor, " W"]
    """0, 1, 2, ...: time relative to the block"""
    birth_BW: Int[Tensor, "B W"]
    """clock reading of every step"""
    cue_BW: Int[Tensor, "B W"]
    """the caller's number for every step"""
    episode_BW: Int[Tensor, "B W"]
    """number of the episode; 0: the one that began before the block"""
    blocked_BWW: Bool[Tensor, "B W W"]
    """where a query must not see a memory of the block: the dots in the module's docstring"""
    stored_time_BW: Float[Tensor, "B W"]
    """the step; infinite where nothing stored must be seen, so that every stored memory has expired"""
    ablation_mask_BW: Bool[Tensor, "B W"]
    """steps at which memories are ablated, if the penalty needs it"""
    span_limit_BW: Float[Tensor, "B W"] | None
    """random span shortening: upper bound of e_i, in steps"""
    span_floor_B: Float[Tensor, " B"] | None
    """lower bound of e_i, in steps, which wins over the upper one"""
    detach_spans: bool
    """whether the block's output passes no gradient to spans"""

    @classmethod
    def of(
        cls,
        state: MemoryState,
        episode_start_BW: Bool[Tensor, "B W"],
        span_limit_BW: Float[Tensor, "B W"] | None = None,
        cue_BW: Int[Tensor, "B W"] | None = None,
        ablation_mask_BW: Bool[Tensor, "B W"] | None = None,
        *,
        detach_spans: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> BlockView:
        """Build the view; times have `dtype`, or float32 if that is more precise."""
        num_steps = episode_start_BW.shape[1]
        device = episode_start_BW.device
        step_W = torch.arange(num_steps, device=device, dtype=torch.promote_types(dtype, torch.float32))
        birth_BW = state.clock_B.unsqueeze(1) + torch.arange(num_steps, device=device)
        cue_BW = torch.zeros_like(birth_BW) if cue_BW is None else cue_BW
        episode_BW = episode_start_BW.long().cumsum(1)
        not_later_WW = torch.ones(num_steps, num_steps, dtype=torch.bool, device=device).triu()
        blocked_BWW = not_later_WW | (episode_BW.unsqueeze(2) != episode_BW.unsqueeze(1))
        stored_time_BW = step_W.masked_fill(episode_BW != 0, torch.inf)
        ablation_mask_BW = torch.ones_like(episode_start_BW) if ablation_mask_BW is None else ablation_mask_BW
        return cls(
            state.clock_B,
            step_W,
            birth_BW,
            cue_BW,
            episode_BW,
            blocked_BWW,
            stored_time_BW,
            ablation_mask_BW,
            span_limit_BW,
            state.span_floor_B,
            detach_spans,
        )

    def split(self, size: int) -> list[BlockView]:
        """Split into views of `size` rows each."""
        parts = (
            self.clock_B,
            self.birth_BW,
            self.cue_BW,
            self.episode_BW,
            self.blocked_BWW,
            self.stored_time_BW,
            self.ablation_mask_BW,
        )
        rows = zip(*(torch.split(part, size) for part in parts), strict=True)
        count = -(-len(self.clock_B) // size)
        limits, floors = (
            [None] * count if bound is None else torch.split(bound, size)
            for bound in (self.span_limit_BW, self.span_floor_B)
        )
        return [
            BlockView(
                clock,
                self.step_W,
                birth,
                cue,
                episode,
                blocked,
                time,
                ablated,
                limit,
                floor,
                self.detach_spans,
            )
            for (clock, birth, cue, episode, blocked, time, ablated), limit, floor in zip(
                rows, limits, floors, strict=True
            )
        ]

    def new_memory(self, h_BWD: Float[Tensor, "B W D"]) -> RowStore:
        """The memories that the block writes, with these hidden states."""
        return RowStore(h_BWD, self.birth_BW, self.cue_BW, torch.zeros_like(self.cue_BW, dtype=torch.bool))

    def limited(self, spans: list[Tensor]) -> list[Tensor]:
        """Apply the bounds to the spans of stored, compressed (if any) and new memories."""
        assert len(spans) == 2 or (self.span_limit_BW is None and self.span_floor_B is None)  # not learned
        if self.span_limit_BW is not None:
            stored_BGT, new_BGW = spans
            limit_B1W = self.span_limit_BW.unsqueeze(1)
            spans = [torch.minimum(stored_BGT, limit_B1W[..., :1]), torch.minimum(new_BGW, limit_B1W)]
        if self.span_floor_B is not None:
            floor_B11 = self.span_floor_B.view(-1, 1, 1)
            spans = [torch.maximum(span_BGT, floor_B11) for span_BGT in spans]
        return spans

    def relative(self, birth_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Births relative to the block (negative for stored memories)."""
        return (birth_BT - self.clock_B.unsqueeze(1)).to(self.step_W.dtype)
