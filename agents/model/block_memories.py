"""The memories that the queries of a block attend to: stored ones, compressed ones and those of the block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memory_suite.agents.model.retention.base import Retention
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import RowStore


class BlockMemories(NamedTuple):
    """Memories of a block in the order of attention's columns.

    The stored ones come first, then those that compression makes in the block, then a null memory (of zeros,
    it never expires) if the layer has one, last the memories that the block's steps write.
    """

    contents: list[RowStore]
    """the memories, without the null memory"""
    h: list[Tensor]
    """their hidden states [B, _, D], with the null memory"""
    spans: list[Tensor]
    """e_i [B, G, _] of `contents`, without the upper bounds of single rows"""
    end_BGT: Float[Tensor, "B G T"]
    """time, relative to the block, at which the span of each memory ends"""
    birth_BT: Float[Tensor, "B T"]
    """time, relative to the block, at which each memory was written"""
    blocked_BWN: Bool[Tensor, "B W N"]
    """where a query may not see one of the memories that are new in the block"""
    null_memory: bool

    @classmethod
    def gather(
        cls,
        retention: Retention,
        memory: RowStore,
        view: BlockView,
        h_BWD: Float[Tensor, "B W D"],
        *,
        null_memory: bool,
    ) -> BlockMemories:
        """Collect the memories of a block.

        Args:
            retention: the rule that gives spans and compresses.
            memory: memories stored before the block.
            view: the block.
            h_BWD: hidden states that the block's steps write.
            null_memory: add a memory of zeros.
        """
        new = view.new_memory(h_BWD)
        compressed = retention.compress_block(memory, new, view)
        contents = [memory, new] if compressed is None else [memory, compressed.memory, new]
        spans = [retention.spans_of(part) for part in contents]
        birth_BT = view.relative(torch.cat([part.birth_BT for part in contents], 1))
        end_BGT = torch.cat(view.limited(spans), 2) + birth_BT.unsqueeze(1)
        blocked_BWN = view.blocked_BWW
        if compressed is not None:
            blocked_BWN = torch.cat([compressed.blocked_BWN, blocked_BWN], 2)
        memories = cls(
            contents,
            [part.h_BTD for part in contents],
            spans,
            end_BGT,
            birth_BT,
            blocked_BWN,
            null_memory=null_memory,
        )
        return memories._with_null(h_BWD) if null_memory else memories

    def _with_null(self, h_BWD: Tensor) -> BlockMemories:
        return self._replace(
            h=[*self.h[:-1], torch.zeros_like(h_BWD[:, :1]), self.h[-1]],
            end_BGT=self._with_null_column(self.end_BGT, torch.inf),
            birth_BT=self._with_null_column(self.birth_BT, -torch.inf),
            blocked_BWN=self._with_null_column(self.blocked_BWN, False),
        )

    def _with_null_column(self, part: Tensor, value: float | bool) -> Tensor:
        """Insert the null memory's column before those of the block's steps, if there is a null memory."""
        if not self.null_memory:
            return part
        num_new = self.contents[-1].num_slots
        column = part.new_full((*part.shape[:-1], 1), value)
        return torch.cat([part[..., :-num_new], column, part[..., -num_new:]], -1)

    @property
    def span_BGW(self) -> Tensor:
        """e_i of the memories that the block's steps write."""
        return self.spans[-1]

    def span_BGT(self) -> Tensor:
        """e_i of all memories, without the upper bounds of single rows."""
        return self._with_null_column(torch.cat(self.spans, 2), torch.inf)

    def no_position_BT(self) -> Tensor:
        """Where a memory has no position: the null memory and compressed ones."""
        return self._with_null_column(torch.cat([part.compressed_BT for part in self.contents], 1), True)

    def expiry(
        self, view: BlockView, ramp: int, *, detach_spans: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of attention that say when memories expire, in units of the ramp R.

        Equation 3 with them: m_ti = clamp(end_i / R + 1 - t / R, 0, 1).

        Args:
            view: the block.
            ramp: R.
            detach_spans: pass no gradient to spans.

        Returns:
            End of the ramp per memory, time at which rows look at stored memories, time of each step, and
            `blocked_BWN`.
        """
        end_BGT = self.end_BGT.detach() if detach_spans else self.end_BGT
        return end_BGT / ramp + 1.0, view.stored_time_BW / ramp, view.step_W / ramp, self.blocked_BWN
