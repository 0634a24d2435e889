"""The memories that the queries of a block attend to: stored ones, compressed ones and those of the block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memory_suite.agents.model.retention.base import Retention
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import LayerMemory


class BlockMemories(NamedTuple):
    """Memories of a block in the order of attention's columns.

    The stored ones come first, then those that compression makes in the block, then a null memory (of zeros,
    it never expires) if the layer has one, last the memories that the block's steps write.
    """

    contents: list[LayerMemory]
    """the memories, without the null memory"""
    h: list[Tensor]
    """their hidden states [B, _, D], with the null memory"""
    spans: list[Tensor]
    """e_i [B, G, _] of `contents`, without the upper bounds of single rows"""
    end_BGM: Float[Tensor, "B G M"]
    """time, relative to the block, at which the span of each memory ends"""
    birth_BM: Float[Tensor, "B M"]
    """time, relative to the block, at which each memory was written"""
    blocked_BTN: Bool[Tensor, "B T N"]
    """where a query may not see one of the memories that are new in the block"""
    null_memory: bool

    @classmethod
    def gather(
        cls,
        retention: Retention,
        memory: LayerMemory,
        view: BlockView,
        h_BTD: Float[Tensor, "B T D"],
        *,
        null_memory: bool,
    ) -> BlockMemories:
        """Collect the memories of a block.

        Args:
            retention: gives spans, and compresses.
            memory: what was stored before the block.
            view: of the block.
            h_BTD: hidden states that the block's steps write.
            null_memory: add a memory of zeros.
        """
        new = view.new_memory(h_BTD)
        compressed = retention.pool(memory, new, view)
        contents = [memory, new] if compressed is None else [memory, compressed.memory, new]
        spans = [retention.spans_of(part) for part in contents]
        birth_BM = view.relative(torch.cat([part.birth_BW for part in contents], 1))
        end_BGM = torch.cat(view.limited(spans), 2) + birth_BM.unsqueeze(1)
        blocked_BTN = view.blocked_BTT
        if compressed is not None:
            blocked_BTN = torch.cat([compressed.blocked_BTP, blocked_BTN], 2)
        memories = cls(
            contents,
            [part.hidden_BWD for part in contents],
            spans,
            end_BGM,
            birth_BM,
            blocked_BTN,
            null_memory=null_memory,
        )
        return memories._with_null(h_BTD) if null_memory else memories

    def _with_null(self, h_BTD: Tensor) -> BlockMemories:
        return self._replace(
            h=[*self.h[:-1], torch.zeros_like(h_BTD[:, :1]), self.h[-1]],
            end_BGM=self._with_null_column(self.end_BGM, torch.inf),
            birth_BM=self._with_null_column(self.birth_BM, -torch.inf),
            blocked_BTN=self._with_null_column(self.blocked_BTN, False),
        )

    def _with_null_column(self, part: Tensor, value: float | bool) -> Tensor:
        """Insert the null memory's column before those of the block's steps, if there is a null memory."""
        if not self.null_memory:
            return part
        num_new = self.contents[-1].num_slots
        column = part.new_full((*part.shape[:-1], 1), value)
        return torch.cat([part[..., :-num_new], column, part[..., -num_new:]], -1)

    @property
    def span_BGT(self) -> Tensor:
        """e_i of the memories that the block's steps write."""
        return self.spans[-1]

    def span_BGM(self) -> Tensor:
        """e_i of all memories, without the upper bounds of single rows."""
        return self._with_null_column(torch.cat(self.spans, 2), torch.inf)

    def no_position_BM(self) -> Tensor:
        """Where a memory has no position: the null memory and compressed ones."""
        return self._with_null_column(torch.cat([part.pooled_BW for part in self.contents], 1), True)

    def expiry(
        self, view: BlockView, ramp: int, *, detach_spans: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Arguments of attention that say when memories expire, in units of the ramp R.

        Equation 3 with them: m_ti = clamp(end_i / R + 1 - t / R, 0, 1).

        Args:
            view: of the block.
            ramp: R.
            detach_spans: pass no gradient to spans.

        Returns:
            End of the ramp per memory, time at which rows look at stored memories, time of each step, and
            `blocked_BTN`.
        """
        end_BGM = self.end_BGM.detach() if detach_spans else self.end_BGM
        return end_BGM / ramp + 1.0, view.stored_time_BT / ramp, view.step_T / ramp, self.blocked_BTN
