"""Old memories are averaged, several into one, instead of deleted.

Compressive Transformer: Rae et al., "Compressive Transformers for Long-Range Sequence Modelling", ICLR
2020, https://arxiv.org/abs/1911.05507, with the mean as the compression function.

A row's clock divides its steps into groups of c. A memory stays as it is, *raw*, until every step of its
group is older than S steps; then the mean of the group takes the place of its members, for c * N steps.
So there are S to S + c - 1 raw memories and N compressed ones, which reach back S + c * N steps. Members of
an earlier episode are left out of the mean. S = 3, c = 2, N = 2 (digits: steps; a letter: the mean of two):

    query   sees
      4     0 1 2 3
      5     A   2 3 4          step 1, the last of its group, is older than S: A = mean(0, 1)
      6     A   2 3 4 5
      7     A   B   4 5 6
      8     A   B   4 5 6 7
      9         B   C   6 7 8  A has been there for c * N = 4 queries
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.retention.base import CompressedMemories, FixedSpan
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import NEVER, RowStore


class Compressive(FixedSpan):
    """S raw steps, then N means of c steps each."""

    compresses = True

    def __init__(self, *, size: int, compressed_size: int, compression_rate: int) -> None:
        """Keep the settings.

        Args:
            size: S, number of steps for which a memory stays raw, at least.
            compressed_size: N, number of compressed memories.
            compression_rate: c, number of memories that one compressed memory stands for.

        Raises:
            ValueError: one of them is not at least 1.
        """
        super().__init__(size=size)
        for name, value in (("compressed_size", compressed_size), ("compression_rate", compression_rate)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.compressed_size = compressed_size
        self.compression_rate = compression_rate

    def group_end(self, clock: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The last step of a step's group."""
        return clock - clock.remainder(self.compression_rate) + (self.compression_rate - 1)

    def spans(
        self,
        span_logits_BNT: Float[Tensor, "B N T"],
        birth_BT: Int[Tensor, "B T"],
        compressed_BT: Bool[Tensor, "B T"] | None,
    ) -> Float[Tensor, "B G T"]:
        """S steps from the end of the group; c * N more for compressed memories, which are born there."""
        span_BT = self.group_end(birth_BT) - birth_BT + self.size
        if compressed_BT is not None:
            span_BT += compressed_BT * (self.compression_rate * self.compressed_size)
        return span_BT.to(span_logits_BNT.dtype).unsqueeze(1)

    def compress_step(self, memory: RowStore, expired_BT: Bool[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
        """Replace a group of raw memories, which expire together, by their mean in one of their slots."""
        if memory.num_slots == 0:
            return expired_BT
        # Computed for all rows, though few have one: checking which would synchronize with the GPU.
        leaving_BT = expired_BT & ~memory.compressed_BT & (memory.birth_BT != NEVER)
        leaves_B = leaving_BT.any(1)
        row_B = torch.arange(len(leaves_B), device=leaves_B.device)
        place = row_B, leaving_BT.to(torch.uint8).argmax(1)
        mean_BD = _mean(leaving_BT.unsqueeze(1), memory.h_BTD).squeeze(1)
        cue_B = memory.cue_BT.masked_fill(~leaving_BT, 0).amax(1)
        birth_B = memory.birth_BT[place]
        memory.h_BTD[place] = torch.where(leaves_B.unsqueeze(1), mean_BD, memory.h_BTD[place])
        memory.cue_BT[place] = torch.where(leaves_B, cue_B, memory.cue_BT[place])
        memory.compressed_BT[place] |= leaves_B
        memory.birth_BT.masked_fill_(leaving_BT, NEVER)
        memory.birth_BT[place] = torch.where(leaves_B, self.group_end(birth_B), birth_B)
        expired_BT[place] &= ~leaves_B
        return expired_BT

    def compress_block(self, memory: RowStore, new: RowStore, view: BlockView) -> CompressedMemories:
        """The means of the groups that become older than S at a query after the first of the block."""
        num_steps = view.episode_BW.shape[1]
        all_memories = RowStore.cat([memory, new])
        episode_BT = torch.cat([torch.zeros_like(memory.birth_BT), view.episode_BW], 1)
        # Each step whose age is S at a query of the block may be the last of a group.
        ordinal_N = torch.arange(-(-num_steps // self.compression_rate), device=view.clock_B.device)
        end_BN = self.group_end(view.clock_B - self.size).unsqueeze(1) + ordinal_N * self.compression_rate
        relative_end_BN = end_BN - view.clock_B.unsqueeze(1)
        opens_BN = relative_end_BN + self.size + 1
        # The last step decides the episode of the group: later queries see no earlier episode.
        episode_BN = view.episode_BW.gather(1, relative_end_BN.clamp(0, num_steps - 1))
        episode_BN = episode_BN.masked_fill(relative_end_BN < 0, 0)
        member_BNT = self.group_end(all_memories.birth_BT).unsqueeze(1) == end_BN.unsqueeze(2)
        member_BNT &= episode_BT.unsqueeze(1) == episode_BN.unsqueeze(2)
        member_BNT &= ~all_memories.compressed_BT.unsqueeze(1)
        member_BNT &= (opens_BN <= num_steps).unsqueeze(2)
        compressed = RowStore(
            _mean(member_BNT, all_memories.h_BTD),
            end_BN.masked_fill(~member_BNT.any(2), NEVER),
            all_memories.cue_BT.unsqueeze(1).masked_fill(~member_BNT, 0).amax(2),
            torch.ones_like(end_BN, dtype=torch.bool),
        )
        not_yet_BWN = view.step_W.unsqueeze(1) < opens_BN.unsqueeze(1)
        return CompressedMemories(
            compressed, episode_BN, not_yet_BWN | (view.episode_BW.unsqueeze(2) != episode_BN.unsqueeze(1))
        )


def _mean(member_BNT: Bool[Tensor, "B N T"], h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B N D"]:
    """Mean of the members of each group; 0 for an empty group."""
    share_BNT = member_BNT.to(h_BTD.dtype) / member_BNT.sum(2, keepdim=True).clamp_min(1)
    return torch.bmm(share_BNT, h_BTD)
