"""What one layer of a memory transformer remembers.

A layer's memories lie in *slots*; a slot whose memory has expired is written over by the next one, so every
row of a batch deletes what it may delete, without moving the others. The store is as wide as its fullest row
(and a little headroom), whatever the maximum span. Where rows hold very different numbers of memories, acting
takes them in pages instead (`agents.model.store.pages`).
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
class RowStore:
    """The memories of one layer: its earlier hidden states, each with its time of birth."""

    h_BTD: Float[Tensor, "B T D"]
    """h_i: the normalized input of the layer, detached"""
    birth_BT: Int[Tensor, "B T"]
    """clock reading at which the memory was written; `NEVER` marks an empty slot"""
    cue_BT: Int[Tensor, "B T"]
    """what the caller said about the step (0: nothing); never read by the model"""
    compressed_BT: Bool[Tensor, "B T"]
    """whether it has taken the place of several others; then its birth is that of the youngest, at most"""
    free_slots: int = field(default=0, kw_only=True)
    """at least so many slots of every row are free, as far as is known without a look: a look at a GPU is a
    wait for it. A store made from others knows nothing (0)"""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.birth_BT.shape[0]

    @property
    def num_slots(self) -> int:
        """W, the width of the store."""
        return self.birth_BT.shape[1]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every tensor that takes memory."""
        return self.h_BTD, self.birth_BT, self.cue_BT, self.compressed_BT

    def map(self, change: Callable[[Tensor], Tensor]) -> RowStore:
        """The same change made to every tensor."""
        return RowStore(*map(change, self.tensors()))

    @staticmethod
    def cat(memories: Sequence[RowStore]) -> RowStore:
        """The slots of several stores side by side (a copy)."""
        parts = zip(*(memory.tensors() for memory in memories), strict=True)
        return RowStore(*(torch.cat(part, 1) for part in parts))

    def select(self, rows: Tensor) -> RowStore:
        """The same memories for some rows only (a copy)."""
        return self.map(lambda part: part.index_select(0, rows))

    def split(self, size: int) -> list[RowStore]:
        """So many rows each, every part as narrow as its fullest row allows (views)."""
        rows = zip(*(torch.split(part, size) for part in self.tensors()), strict=True)
        return [RowStore(*part).trimmed() for part in rows]

    def trimmed(self) -> RowStore:
        """Without the last slots that no row uses (views)."""
        used = (self.birth_BT != NEVER).any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        return self.map(lambda part: part[:, :end])

    def clone(self) -> RowStore:
        """A copy that shares no storage."""
        return self.map(Tensor.clone)

    def reset_rows(self, rows_B: Bool[Tensor, " B"]) -> RowStore:
        """With every slot of the rows marked True empty (an episode begins there); the rest is shared."""
        return replace(self, birth_BT=self.birth_BT.masked_fill(rows_B.unsqueeze(1), NEVER))

    def to_rows(self) -> RowStore:
        """Itself; of pages, the rows they are of."""
        return self

    def compacted(self, alive_BT: Bool[Tensor, "B T"]) -> RowStore:
        """Only the memories marked True, newest first, with up to `SPARE_SLOTS` slots to spare."""
        fullest = int(alive_BT.sum(1).max()) if alive_BT.numel() else 0
        num_slots = min(self.num_slots, fullest + SPARE_SLOTS)
        birth_BT, order_BT = self.birth_BT.masked_fill(~alive_BT, NEVER).sort(
            dim=1, descending=True, stable=True
        )
        kept = self.gather(order_BT[:, :num_slots], birth_BT[:, :num_slots])
        return replace(kept, free_slots=num_slots - fullest)

    def reserve_slot(self, expired_BT: Bool[Tensor, "B T"], enough: int) -> tuple[RowStore, Tensor, Tensor]:
        """A slot in each row for one more memory; the store is wider if a row had none.

        Args:
            expired_BT: slots that may be written over.
            enough: for so many memories room is made when it is made.

        Returns:
            The store, with one free slot less in each row, and the place of the slots in `slots`.
        """
        memory, num_slots = self, self.num_slots
        if memory.free_slots == 0:
            memory.free_slots = int(expired_BT.sum(1).min()) if num_slots else 0
            if memory.free_slots < enough:
                memory = memory.padded(max(SPARE_SLOTS, num_slots // 4, enough))
                expired_BT = F.pad(expired_BT, (0, memory.num_slots - num_slots), value=True)
        memory.free_slots -= 1  # of every row: none writes more, and what has expired does not return
        row_B = torch.arange(len(expired_BT), device=expired_BT.device)
        return memory, row_B, expired_BT.to(torch.uint8).argmax(1)

    def gather(self, slots_BN: Int[Tensor, "B N"], birth_BN: Int[Tensor, "B N"]) -> RowStore:
        """Keep only the given slots of each row, in that order, with these times of birth."""
        batch, num_slots, width = self.h_BTD.shape
        first_B1 = num_slots * torch.arange(batch, device=slots_BN.device).unsqueeze(1)
        place_N = (first_B1 + slots_BN).flatten()  # whole rows are copied faster than numbers are gathered
        return RowStore(
            self.h_BTD.flatten(0, 1).index_select(0, place_N).view(batch, slots_BN.shape[1], width),
            birth_BN,
            self.cue_BT.gather(1, slots_BN),
            self.compressed_BT.gather(1, slots_BN),
        )

    def padded(self, extra: int) -> RowStore:
        """The same memories with `extra` empty slots behind them."""
        return RowStore(
            F.pad(self.h_BTD, (0, 0, 0, extra)),
            F.pad(self.birth_BT, (0, extra), value=NEVER),
            F.pad(self.cue_BT, (0, extra)),
            F.pad(self.compressed_BT, (0, extra)),
            free_slots=self.free_slots + extra,
        )

    # As pages see it (`agents.model.store.pages`): each row is a page of its own.

    @property
    def slots(self) -> RowStore:
        """The slots themselves, by page."""
        return self

    def expand_to_pages(self, row_values: Tensor) -> Tensor:
        """What belongs to rows, for the pages of each."""
        return row_values

    def sum_pages(self, page_values: Tensor) -> Tensor:
        """For each row, the sum over its pages."""
        return page_values

    def max_pages(self, page_values: Tensor) -> Tensor:
        """For each row, the largest number of its pages."""
        return page_values
