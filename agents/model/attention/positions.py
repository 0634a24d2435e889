"""Scores of recent memories by their age alone: q_t . p_age for ages 1 to P, nothing for older ones.

The addition depends on the age but not on the memory, so a query and head have P numbers. They are ordered
oldest first, entry j for age P - j: query t of a block adds its P numbers to the memories of steps t - P to
t - 1. With strides that move one column per query, these are a single view of the scores. Only the first P
queries (N of them) are near to memories from before the block; for them, each score is looked up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def positions_of_ages(
    position_BHP: Float[Tensor, "B H P"], age_BT: Int[Tensor, "B T"]
) -> Float[Tensor, "B H T"]:
    """Additions of one query to the scores of memories of these ages, 1 or more."""
    window = position_BHP.shape[2]
    index_BT = (window + 1 - age_BT).clamp_min(0)  # 0: too old
    return F.pad(position_BHP, (1, 0)).gather(2, index_BT.unsqueeze(1).expand(-1, position_BHP.shape[1], -1))


class BlockPositions(NamedTuple):
    """Where the position numbers of a block's queries are added."""

    index_BNT: Int[Tensor, "B N T"]
    """which of a query's P numbers is added to a memory (P: none), for the first N queries; T counts the
    first stored memories (none beyond them is near) and then the first N of the block"""
    window: int
    """P"""

    @classmethod
    def of(cls, age_BT: Int[Tensor, "B T"], *, num_steps: int, window: int) -> BlockPositions:
        """Compute the indices, which do not depend on the queries.

        Args:
            age_BT: ages of the stored memories at the first query. Stores are ordered newest first when a
                rollout begins, so that few of them are looked up.
            num_steps: W.
            window: P.
        """
        near_columns = (age_BT <= window).any(0).nonzero()
        num_columns = int(near_columns[-1]) + 1 if len(near_columns) else 0
        step_N = torch.arange(min(window, num_steps), device=age_BT.device)
        stored_age_BNT = age_BT[:, None, :num_columns] + step_N.unsqueeze(1)
        written_age_BNN = (step_N.unsqueeze(1) - step_N).expand(len(age_BT), -1, -1)
        age_BNT = torch.cat([stored_age_BNT, written_age_BNN], 2)
        has_position_BNT = (age_BNT >= 1) & (age_BNT <= window)
        return cls(torch.where(has_position_BNT, window - age_BNT, window), window)

    def add_to(self, score_BWHT: Float[Tensor, "B W H T"], position_BWHP: Float[Tensor, "B W H P"]) -> None:
        """Add to the scores, in place."""
        early_BNHP = F.pad(position_BWHP[:, : self.index_BNT.shape[1]], (0, 1))
        early_BNHT = early_BNHP.gather(3, self._index_for(position_BWHP.shape[2]))
        stored_BNHT, written_BNHN = self._looked_up(score_BWHT)
        num_columns = stored_BNHT.shape[3]
        stored_BNHT += early_BNHT[..., :num_columns]
        written_BNHN += early_BNHT[..., num_columns:]
        if score_BWHT.shape[1] > self.window:
            _shifted(score_BWHT, self.window).add_(position_BWHP[:, self.window :])

    def gradient(self, grad_score_BWHT: Float[Tensor, "B W H T"]) -> Float[Tensor, "B W H P"]:
        """Gradient of the positions through `add_to`."""
        early_BNHT = torch.cat(self._looked_up(grad_score_BWHT), 3)
        early_BNHP = early_BNHT.new_zeros(*early_BNHT.shape[:3], self.window + 1)
        # No sum: the memories that a query sees have different ages.
        early_BNHP.scatter_(3, self._index_for(early_BNHT.shape[2]), early_BNHT)
        early_BNHP = early_BNHP[..., : self.window]
        if grad_score_BWHT.shape[1] <= self.window:
            return early_BNHP
        return torch.cat([early_BNHP, _shifted(grad_score_BWHT, self.window)], 1)

    def _index_for(self, heads: int) -> Int[Tensor, "B N H T"]:
        return self.index_BNT.unsqueeze(2).expand(-1, -1, heads, -1)

    def _looked_up(self, score_BWHT: Tensor) -> tuple[Tensor, Tensor]:
        """Views of the scores that are looked up: stored memories, and memories of the block."""
        num_steps, num_memories = score_BWHT.shape[1], score_BWHT.shape[3]
        num_queries = self.index_BNT.shape[1]
        score_BNHT = score_BWHT[:, :num_queries]
        first = num_memories - num_steps
        num_columns = self.index_BNT.shape[2] - num_queries
        return score_BNHT[..., :num_columns], score_BNHT[..., first : first + num_queries]


def _shifted(score_BWHT: Tensor, window: int) -> Tensor:
    """For queries from P on, the scores of the memories of the last P steps, oldest first (a view)."""
    batch, num_steps, heads, num_memories = score_BWHT.shape
    stride_B, stride_W, stride_H, stride_T = score_BWHT.stride()
    first = score_BWHT.storage_offset() + window * stride_W + (num_memories - num_steps) * stride_T
    return score_BWHT.as_strided(
        (batch, num_steps - window, heads, window),
        (stride_B, stride_W + stride_T, stride_H, stride_T),
        first,
    )
