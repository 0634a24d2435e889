"""Scores of recent memories by their age alone: q_t . p_age for ages 1 to P, nothing for older ones.

What a query wants of an age does not depend on the memory, so P numbers for each query and head say it all.
They come oldest first, entry j for age P - j: what query t of a block adds to the memories written in it are
its P numbers, beginning at the memory of step t - P. In one that starts a column later in each row, all of
them are a single view of the scores. Only the first P queries are near to memories from before the block:
for them, each score is looked up.

Shape letters:
    B  rows of the batch     T  queries      H  heads         P  ages that have a position
    W  stored memories       M  all memories of a block, those written in it last
    N  the first queries of a block, P at most
    C  the first stored memories: none beyond them is as near as P steps to any query
    E  these and the first N that are written in the block
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def positions_of_ages(
    position_BHP: Float[Tensor, "B H P"], age_BW: Int[Tensor, "B W"]
) -> Float[Tensor, "B H W"]:
    """What one query adds to memories of these ages, 1 or more."""
    window = position_BHP.shape[2]
    index_BW = (window + 1 - age_BW).clamp_min(0)  # 0: too old
    return F.pad(position_BHP, (1, 0)).gather(2, index_BW.unsqueeze(1).expand(-1, position_BHP.shape[1], -1))


class BlockPositions(NamedTuple):
    """Where what the queries of a block want of each age belongs."""

    index_BNE: Int[Tensor, "B N E"]
    """which of a query's P numbers a memory gains; P: none"""
    window: int
    """P"""

    @classmethod
    def of(cls, age_BW: Int[Tensor, "B W"], *, num_steps: int, window: int) -> BlockPositions:
        """Prepare what does not depend on the queries.

        Args:
            age_BW: of the stored memories, to the first query. Stores are ordered newest first when a
                rollout begins, so that C is small.
            num_steps: T.
            window: P.
        """
        near_columns = (age_BW <= window).any(0).nonzero()
        num_columns = int(near_columns[-1]) + 1 if len(near_columns) else 0
        step_N = torch.arange(min(window, num_steps), device=age_BW.device)
        age_BNC = age_BW[:, None, :num_columns] + step_N.unsqueeze(1)
        age_BNN = (step_N.unsqueeze(1) - step_N).expand(len(age_BW), -1, -1)
        age_BNE = torch.cat([age_BNC, age_BNN], 2)
        has_one_BNE = (age_BNE >= 1) & (age_BNE <= window)
        return cls(torch.where(has_one_BNE, window - age_BNE, window), window)

    def add_to(self, score_BTHM: Float[Tensor, "B T H M"], position_BTHP: Float[Tensor, "B T H P"]) -> None:
        """Add to the scores, in place."""
        early_BNHP = F.pad(position_BTHP[:, : self.index_BNE.shape[1]], (0, 1))
        early_BNHE = early_BNHP.gather(3, self._index_for(position_BTHP.shape[2]))
        stored_BNHC, written_BNHN = self._looked_up(score_BTHM)
        num_columns = stored_BNHC.shape[3]
        stored_BNHC += early_BNHE[..., :num_columns]
        written_BNHN += early_BNHE[..., num_columns:]
        if score_BTHM.shape[1] > self.window:
            _shifted(score_BTHM, self.window).add_(position_BTHP[:, self.window :])

    def gradient(self, grad_score_BTHM: Float[Tensor, "B T H M"]) -> Float[Tensor, "B T H P"]:
        """What `add_to` passes on to the positions."""
        early_BNHE = torch.cat(self._looked_up(grad_score_BTHM), 3)
        early_BNHP = early_BNHE.new_zeros(*early_BNHE.shape[:3], self.window + 1)
        # No sum: of the memories that a query sees, each has another age.
        early_BNHP.scatter_(3, self._index_for(early_BNHE.shape[2]), early_BNHE)
        early_BNHP = early_BNHP[..., : self.window]
        if grad_score_BTHM.shape[1] <= self.window:
            return early_BNHP
        return torch.cat([early_BNHP, _shifted(grad_score_BTHM, self.window)], 1)

    def _index_for(self, heads: int) -> Int[Tensor, "B N H E"]:
        return self.index_BNE.unsqueeze(2).expand(-1, -1, heads, -1)

    def _looked_up(self, score_BTHM: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the scores that are looked up: of stored memories, and of those written in the block."""
        num_steps, num_memories = score_BTHM.shape[1], score_BTHM.shape[3]
        num_queries = self.index_BNE.shape[1]
        score_BNHM = score_BTHM[:, :num_queries]
        first = num_memories - num_steps
        num_columns = self.index_BNE.shape[2] - num_queries
        return score_BNHM[..., :num_columns], score_BNHM[..., first : first + num_queries]


def _shifted(score_BTHM: Tensor, window: int) -> Tensor:
    """For queries from P on, the scores of the memories of the last P steps, oldest first (a view)."""
    batch, num_steps, heads, num_memories = score_BTHM.shape
    stride_B, stride_T, stride_H, stride_M = score_BTHM.stride()
    first = score_BTHM.storage_offset() + window * stride_T + (num_memories - num_steps) * stride_M
    return score_BTHM.as_strided(
        (batch, num_steps - window, heads, window),
        (stride_B, stride_T + stride_M, stride_H, stride_M),
        first,
    )
