"""Old memories are not dropped but averaged, several into one.

Compressive Transformer: Rae et al., "Compressive Transformers for Long-Range Sequence Modelling", ICLR
2020, https://arxiv.org/abs/1911.05507, with mean pooling as the compression function.

A row's clock divides its steps into groups of c. A memory stays as it is, *raw*, until every step of its
group is older than S steps; then the mean of the group takes the place of its members, for c * N steps.
So there are S to S + c - 1 raw memories and N pooled ones, which reach back S + c * N steps. Members of an
earlier episode are left out of the mean. S = 3, c = 2, N = 2 (digits: steps; a letter: the mean of two):

    query   sees
      4     0 1 2 3
      5     A   2 3 4          step 1, the last of its group, is older than S: A = mean(0, 1)
      6     A   2 3 4 5
      7     A   B   4 5 6
      8     A   B   4 5 6 7
      9         B   C   6 7 8  A has been there for c * N = 4 queries

Shape letters used in this file (logical dimensions, always in this order):
    B  rows of the batch     T  steps of a block        P  groups that come up in a block
    R  rows with a group     W  stored memories         M  memories, the stored ones first
    G  spans of a memory: 1 here, the heads share it    X  probes: 0 here      D  model width
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.retention.base import FixedSpan, Pooled
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import NEVER, LayerMemory


class Compressive(FixedSpan):
    """S steps as they were, then N means of c steps each."""

    pools = True

    def __init__(self, *, size: int, compressed_size: int, compression_rate: int) -> None:
        """Keep the settings.

        Args:
            size: S, steps for which a memory stays as it is, at least.
            compressed_size: N, pooled memories.
            compression_rate: c, memories that one pooled memory stands for.

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
        product_BXM: Float[Tensor, "B X M"],
        birth_BM: Int[Tensor, "B M"],
        pooled_BM: Bool[Tensor, "B M"] | None,
    ) -> Float[Tensor, "B G M"]:
        """S steps from the end of the group, and c * N more for pooled memories, which are born there."""
        span_BM = self.group_end(birth_BM) - birth_BM + self.size
        if pooled_BM is not None:
            span_BM += pooled_BM * (self.compression_rate * self.compressed_size)
        return span_BM.to(product_BXM.dtype).unsqueeze(1)

    def merge(self, memory: LayerMemory, gone_BW: Bool[Tensor, "B W"]) -> Bool[Tensor, "B W"]:
        """The raw memories that go are those of one group (they go together); their mean takes one slot."""
        if memory.num_slots == 0:
            return gone_BW
        # For all rows, though in few steps any goes: to ask which is to wait for the device.
        leaving_BW = gone_BW & ~memory.pooled_BW & (memory.birth_BW != NEVER)
        leaves_B = leaving_BW.any(1)
        row_B = torch.arange(len(leaves_B), device=leaves_B.device)
        place = row_B, leaving_BW.to(torch.uint8).argmax(1)
        mean_BD = _mean(leaving_BW.unsqueeze(1), memory.hidden_BWD).squeeze(1)
        tag_B = memory.tag_BW.masked_fill(~leaving_BW, 0).amax(1)
        birth_B = memory.birth_BW[place]
        memory.hidden_BWD[place] = torch.where(leaves_B.unsqueeze(1), mean_BD, memory.hidden_BWD[place])
        memory.tag_BW[place] = torch.where(leaves_B, tag_B, memory.tag_BW[place])
        memory.pooled_BW[place] |= leaves_B
        memory.birth_BW.masked_fill_(leaving_BW, NEVER)
        memory.birth_BW[place] = torch.where(leaves_B, self.group_end(birth_B), birth_B)
        gone_BW[place] &= ~leaves_B
        return gone_BW

    def pool(self, memory: LayerMemory, new: LayerMemory, view: BlockView) -> Pooled:
        """The means of the groups that become older than S at one of the queries 1 to T of the block."""
        num_steps = view.episode_BT.shape[1]
        everything = LayerMemory.joined([memory, new])
        episode_BM = torch.cat([torch.zeros_like(memory.birth_BW), view.episode_BT], 1)
        # Each of the T steps whose age is S at a query of the block may be the last one of a group.
        ordinal_P = torch.arange(-(-num_steps // self.compression_rate), device=view.clock_B.device)
        end_BP = self.group_end(view.clock_B - self.size).unsqueeze(1) + ordinal_P * self.compression_rate
        relative_end_BP = end_BP - view.clock_B.unsqueeze(1)
        opens_BP = relative_end_BP + self.size + 1
        # The last step decides which episode the group is of: later queries see no earlier one.
        episode_BP = view.episode_BT.gather(1, relative_end_BP.clamp(0, num_steps - 1))
        episode_BP = episode_BP.masked_fill(relative_end_BP < 0, 0)
        member_BPM = self.group_end(everything.birth_BW).unsqueeze(1) == end_BP.unsqueeze(2)
        member_BPM &= episode_BM.unsqueeze(1) == episode_BP.unsqueeze(2)
        member_BPM &= ~everything.pooled_BW.unsqueeze(1)
        member_BPM &= (opens_BP <= num_steps).unsqueeze(2)
        pooled = LayerMemory(
            _mean(member_BPM, everything.hidden_BWD),
            end_BP.masked_fill(~member_BPM.any(2), NEVER),
            everything.tag_BW.unsqueeze(1).masked_fill(~member_BPM, 0).amax(2),
            torch.ones_like(end_BP, dtype=torch.bool),
        )
        not_yet_BTP = view.step_T.unsqueeze(1) < opens_BP.unsqueeze(1)
        return Pooled(
            pooled, episode_BP, not_yet_BTP | (view.episode_BT.unsqueeze(2) != episode_BP.unsqueeze(1))
        )


def _mean(member_BPM: Bool[Tensor, "B P M"], hidden_BMD: Float[Tensor, "B M D"]) -> Float[Tensor, "B P D"]:
    """Of the members of each group; zero for an empty one."""
    share_BPM = member_BPM.to(hidden_BMD.dtype) / member_BPM.sum(2, keepdim=True).clamp_min(1)
    return torch.bmm(share_BPM, hidden_BMD)
