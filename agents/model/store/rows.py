"""What one layer of a memory transformer remembers.

A layer's memories lie in *slots*; a slot whose memory has expired is written over by the next one, so every
row of a batch deletes what it may delete, without moving the others. The store is as wide as its fullest row
(and a little headroom), whatever the maximum span. Where rows hold very different numbers of memories, acting
takes them in pages instead (`agents.model.store.pages`).

Shape letters (logical dimensions, always in this order):
    B  rows of the batch (environments, text streams)
    W  slots of a layer's store
    D  model width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEVER = -(2**40)
"""Birth of an empty slot: so long ago that every span has passed. Ages stay exact in int64."""
SPARE_SLOTS = 4
"""Empty slots left in the fullest row by a compaction, so that the next steps need not grow it."""


@dataclass(slots=True)
class LayerMemory:
    """The memories of one layer: its earlier hidden states, each with its time of birth."""

    hidden_BWD: Float[Tensor, "B W D"]
    """h_i: the normalized input of the layer, detached"""
    birth_BW: Int[Tensor, "B W"]
    """clock reading at which the memory was written; `NEVER` marks an empty slot"""
    tag_BW: Int[Tensor, "B W"]
    """what the caller said about the step (0: nothing); never read by the model"""
    pooled_BW: Bool[Tensor, "B W"]
    """whether it has taken the place of several others; then its birth is that of the youngest, at most"""
    free_slots: int = field(default=0, kw_only=True)
    """at least so many slots of every row are free, as far as is known without a look: a look at a GPU is a
    wait for it. A store made from others knows nothing (0)"""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.birth_BW.shape[0]

    @property
    def num_slots(self) -> int:
        """W, the width of the store."""
        return self.birth_BW.shape[1]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every tensor that takes memory."""
        return self.hidden_BWD, self.birth_BW, self.tag_BW, self.pooled_BW

    def each(self, change: Callable[[Tensor], Tensor]) -> LayerMemory:
        """The same change made to every tensor."""
        return LayerMemory(*map(change, self.tensors()))

    @staticmethod
    def joined(memories: Sequence[LayerMemory]) -> LayerMemory:
        """The slots of several stores side by side (a copy)."""
        parts = zip(*(memory.tensors() for memory in memories), strict=True)
        return LayerMemory(*(torch.cat(part, 1) for part in parts))

    def select(self, rows: Tensor) -> LayerMemory:
        """The same memories for some rows only (a copy)."""
        return self.each(lambda part: part.index_select(0, rows))

    def split(self, size: int) -> list[LayerMemory]:
        """So many rows each, every part as narrow as its fullest row allows (views)."""
        rows = zip(*(torch.split(part, size) for part in self.tensors()), strict=True)
        return [LayerMemory(*part).trimmed() for part in rows]

    def trimmed(self) -> LayerMemory:
        """Without the last slots that no row uses (views)."""
        used = (self.birth_BW != NEVER).any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        return self.each(lambda part: part[:, :end])

    def clone(self) -> LayerMemory:
        """A copy that shares no storage."""
        return self.each(Tensor.clone)

    def without_rows(self, rows_B: Bool[Tensor, " B"]) -> LayerMemory:
        """With every slot of the rows marked True empty (an episode begins there); the rest is shared."""
        return replace(self, birth_BW=self.birth_BW.masked_fill(rows_B.unsqueeze(1), NEVER))

    def in_rows(self) -> LayerMemory:
        """Itself; of pages, the rows they are of."""
        return self

    def kept(self, alive_BW: Bool[Tensor, "B W"]) -> LayerMemory:
        """Only the memories marked True, newest first, with up to `SPARE_SLOTS` slots to spare."""
        fullest = int(alive_BW.sum(1).max()) if alive_BW.numel() else 0
        num_slots = min(self.num_slots, fullest + SPARE_SLOTS)
        birth_BW, order_BW = self.birth_BW.masked_fill(~alive_BW, NEVER).sort(
            dim=1, descending=True, stable=True
        )
        kept = self.gather(order_BW[:, :num_slots], birth_BW[:, :num_slots])
        return replace(kept, free_slots=num_slots - fullest)

    def with_room(self, gone_BW: Bool[Tensor, "B W"], enough: int) -> tuple[LayerMemory, Tensor, Tensor]:
        """A slot in each row for one more memory; the store is wider if a row had none.

        Args:
            gone_BW: slots that may be written over.
            enough: for so many memories room is made when it is made.

        Returns:
            The store, with one free slot less in each row, and the place of the slots in `slots`.
        """
        memory, num_slots = self, self.num_slots
        if memory.free_slots == 0:
            memory.free_slots = int(gone_BW.sum(1).min()) if num_slots else 0
            if memory.free_slots < enough:
                memory = memory.grown(max(SPARE_SLOTS, num_slots // 4, enough))
                gone_BW = F.pad(gone_BW, (0, memory.num_slots - num_slots), value=True)
        memory.free_slots -= 1  # of every row: none writes more, and what has expired does not return
        row_B = torch.arange(len(gone_BW), device=gone_BW.device)
        return memory, row_B, gone_BW.to(torch.uint8).argmax(1)

    def gather(self, slots_BV: Int[Tensor, "B V"], birth_BV: Int[Tensor, "B V"]) -> LayerMemory:
        """Keep only the given slots of each row, in that order, with these times of birth."""
        batch, num_slots, width = self.hidden_BWD.shape
        first_B1 = num_slots * torch.arange(batch, device=slots_BV.device).unsqueeze(1)
        place_N = (first_B1 + slots_BV).flatten()  # whole rows are copied faster than numbers are gathered
        return LayerMemory(
            self.hidden_BWD.flatten(0, 1).index_select(0, place_N).view(batch, slots_BV.shape[1], width),
            birth_BV,
            self.tag_BW.gather(1, slots_BV),
            self.pooled_BW.gather(1, slots_BV),
        )

    def grown(self, extra: int) -> LayerMemory:
        """The same memories with `extra` empty slots behind them."""
        return LayerMemory(
            F.pad(self.hidden_BWD, (0, 0, 0, extra)),
            F.pad(self.birth_BW, (0, extra), value=NEVER),
            F.pad(self.tag_BW, (0, extra)),
            F.pad(self.pooled_BW, (0, extra)),
            free_slots=self.free_slots + extra,
        )

    # As pages see it (`agents.model.store.pages`): each row is a page of its own.

    @property
    def slots(self) -> LayerMemory:
        """The slots themselves, by page."""
        return self

    def for_pages(self, of_rows: Tensor) -> Tensor:
        """What belongs to rows, for the pages of each."""
        return of_rows

    def sum_of_pages(self, of_pages: Tensor) -> Tensor:
        """For each row, the sum over its pages."""
        return of_pages

    def largest_of_pages(self, of_pages: Tensor) -> Tensor:
        """For each row, the largest number of its pages."""
        return of_pages
