"""Who may see whom in a block of steps, whatever the kind of memory.

What query t of a block sees, for W = 2 stored memories (s), T = 4 steps and an episode that begins
at step 2 (1: visible as long as its span lasts):

          s0 s1  0  1  2  3
    t=0    1  1  .  .  .  .
    t=1    1  1  1  .  .  .
    t=2    .  .  .  .  .  .      is_first: nothing from before, nothing of itself
    t=3    .  .  .  .  1  .

Shape letters:
    B  rows of the batch     T  steps in this block     W  stored memories
    G  spans of a memory     M  memories                D  model width
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.rows import LayerMemory
from memory_suite.agents.model.store.state import MemoryState


@dataclass(frozen=True, slots=True)
class BlockView:
    """Clocks, episodes and visibility of a block, shared by its layers."""

    clock_B: Int[Tensor, " B"]
    """clock reading at the first step"""
    step_T: Float[Tensor, " T"]
    """0, 1, 2, ...: the block's clock"""
    birth_BT: Int[Tensor, "B T"]
    """clock reading of every step"""
    tag_BT: Int[Tensor, "B T"]
    """the caller's number for every step"""
    episode_BT: Int[Tensor, "B T"]
    """0: the episode that was under way before the block"""
    blocked_BTT: Bool[Tensor, "B T T"]
    """where a query may not look inside the block: True at the dots drawn in the module's docstring"""
    stored_time_BT: Float[Tensor, "B T"]
    """the step; infinite where nothing stored may be seen, so that every stored memory has expired"""
    asked_BT: Bool[Tensor, "B T"]
    """where memories count that are of use, if the penalty asks for their use"""
    limit_BT: Float[Tensor, "B T"] | None
    """random span shortening: e_i of memories written before counts for at most so many steps"""

    @classmethod
    def of(
        cls,
        state: MemoryState,
        is_first_BT: Bool[Tensor, "B T"],
        limit_BT: Float[Tensor, "B T"] | None = None,
        tag_BT: Int[Tensor, "B T"] | None = None,
        asked_BT: Bool[Tensor, "B T"] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> BlockView:
        """Prepare what does not depend on the layer; times are kept in `dtype`, or better."""
        num_steps = is_first_BT.shape[1]
        device = is_first_BT.device
        step_T = torch.arange(num_steps, device=device, dtype=torch.promote_types(dtype, torch.float32))
        birth_BT = state.clock_B.unsqueeze(1) + torch.arange(num_steps, device=device)
        tag_BT = torch.zeros_like(birth_BT) if tag_BT is None else tag_BT
        episode_BT = is_first_BT.long().cumsum(1)
        not_later_TT = torch.ones(num_steps, num_steps, dtype=torch.bool, device=device).triu()
        blocked_BTT = not_later_TT | (episode_BT.unsqueeze(2) != episode_BT.unsqueeze(1))
        stored_time_BT = step_T.masked_fill(episode_BT != 0, torch.inf)
        asked_BT = torch.ones_like(is_first_BT) if asked_BT is None else asked_BT
        return cls(
            state.clock_B,
            step_T,
            birth_BT,
            tag_BT,
            episode_BT,
            blocked_BTT,
            stored_time_BT,
            asked_BT,
            limit_BT,
        )

    def split(self, size: int) -> list[BlockView]:
        """Views of so many rows each."""
        parts = (
            self.clock_B,
            self.birth_BT,
            self.tag_BT,
            self.episode_BT,
            self.blocked_BTT,
            self.stored_time_BT,
            self.asked_BT,
        )
        rows = zip(*(torch.split(part, size) for part in parts), strict=True)
        count = -(-len(self.clock_B) // size)
        limits = [None] * count if self.limit_BT is None else torch.split(self.limit_BT, size)
        return [
            BlockView(clock, self.step_T, birth, tag, episode, hidden, time, asked, limit)
            for (clock, birth, tag, episode, hidden, time, asked), limit in zip(rows, limits, strict=True)
        ]

    def new_memory(self, h_BTD: Float[Tensor, "B T D"]) -> LayerMemory:
        """The memories written in the block, whose hidden states are given."""
        return LayerMemory(h_BTD, self.birth_BT, self.tag_BT, torch.zeros_like(self.tag_BT, dtype=torch.bool))

    def limited(self, spans: list[Tensor]) -> list[Tensor]:
        """Spans of the stored, of any pooled and of the new memories, shortened."""
        if self.limit_BT is None:
            return spans
        stored_BGW, *pooled, new_BGT = spans
        assert not pooled  # their spans are not learned
        limit_B1T = self.limit_BT.unsqueeze(1)
        return [torch.minimum(stored_BGW, limit_B1T[..., :1]), torch.minimum(new_BGT, limit_B1T)]

    def relative(self, birth_BM: Int[Tensor, "B M"]) -> Float[Tensor, "B M"]:
        """Births on the block's clock (negative for stored memories)."""
        return (birth_BM - self.clock_B.unsqueeze(1)).to(self.step_T.dtype)
