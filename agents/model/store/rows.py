"""A store with one line of slots per row of the batch.

A slot whose memory has expired is overwritten by the next memory. So every row deletes its memories
independently, and none is moved. The store is as wide as its fullest row (and a little headroom), whatever
the maximum span. Where rows hold very different numbers of memories, acting uses pages (`store.pages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.base import INVISIBLE, SlotIndex, Store

NEVER = -(2**40)
"""Birth of an empty slot: so long ago that every span has passed. Ages stay exact in int64."""
SPARE_SLOTS = 4
"""Number of empty slots that a compaction leaves in the fullest row, so that the next steps need not grow the
store."""


@dataclass(slots=True)
class RowStore(Store):
    """Hidden states of earlier steps, with the time of each."""

    h_BTD: Float[Tensor, "B T D"]
    """h_i: the normalized input of the layer, detached"""
    birth_BT: Int[Tensor, "B T"]
    """clock reading at which the memory was written; `NEVER` marks an empty slot"""
    cue_BT: Int[Tensor, "B T"]
    """the caller's number for the step (0: none); the model never reads it"""
    compressed_BT: Bool[Tensor, "B T"]
    """whether the memory stands for several others; its birth is then no later than that of the youngest"""
    free_slots: int = field(default=0, kw_only=True)
    """lower bound of the number of free slots in every row, as far as it is known on the host (0: unknown).
    Counting them on a GPU would synchronize with it"""

    @property
    def num_rows(self) -> int:
        """B."""
        return self.birth_BT.shape[0]

    @property
    def num_slots(self) -> int:
        """T, the width of the store."""
        return self.birth_BT.shape[1]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All tensors of the store, in the order of the fields."""
        return self.h_BTD, self.birth_BT, self.cue_BT, self.compressed_BT

    def map(self, change: Callable[[Tensor], Tensor]) -> RowStore:
        """Apply the same change to every tensor."""
        return RowStore(*map(change, self.tensors()))

    @staticmethod
    def cat(stores: Sequence[RowStore]) -> RowStore:
        """Concatenate the slots of several stores of the same rows (a copy)."""
        parts = zip(*(store.tensors() for store in stores), strict=True)
        return RowStore(*(torch.cat(part, 1) for part in parts))

    def select(self, rows: Tensor) -> RowStore:
        """See `Store.select`."""
        return self.map(lambda part: part.index_select(0, rows))

    def split(self, size: int) -> list[RowStore]:
        """Split into groups of `size` rows, each as narrow as its fullest row allows (views)."""
        rows = zip(*(torch.split(part, size) for part in self.tensors()), strict=True)
        return [RowStore(*part).trimmed() for part in rows]

    def trimmed(self) -> RowStore:
        """Drop the last slots that no row uses (views)."""
        used = (self.birth_BT != NEVER).any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        return self.map(lambda part: part[:, :end])

    def padded(self, extra: int) -> RowStore:
        """Append `extra` empty slots (a copy)."""
        return RowStore(
            F.pad(self.h_BTD, (0, 0, 0, extra)),
            F.pad(self.birth_BT, (0, extra), value=NEVER),
            F.pad(self.cue_BT, (0, extra)),
            F.pad(self.compressed_BT, (0, extra)),
            free_slots=self.free_slots + extra,
        )

    def clone(self) -> RowStore:
        """See `Store.clone`."""
        return self.map(Tensor.clone)

    def reset_rows(self, rows_B: Bool[Tensor, " B"]) -> RowStore:
        """See `Store.reset_rows`."""
        return replace(self, birth_BT=self.birth_BT.masked_fill(rows_B.unsqueeze(1), NEVER))

    def to_rows(self) -> RowStore:
        """The store itself."""
        return self

    def compacted(self, alive: Bool[Tensor, "B T"]) -> RowStore:
        """See `Store.compacted`; up to `SPARE_SLOTS` slots of the fullest row are empty."""
        fullest = int(alive.sum(1).max()) if alive.numel() else 0
        num_slots = min(self.num_slots, fullest + SPARE_SLOTS)
        birth_BT, order_BT = self.birth_BT.masked_fill(~alive, NEVER).sort(
            dim=1, descending=True, stable=True
        )
        compacted = self.gather(order_BT[:, :num_slots], birth_BT[:, :num_slots])
        return replace(compacted, free_slots=num_slots - fullest)

    def gather(self, slots_BN: Int[Tensor, "B N"], birth_BN: Int[Tensor, "B N"]) -> RowStore:
        """Keep only the given slots of each row, in this order, with these births."""
        batch, num_slots, width = self.h_BTD.shape
        first_B1 = num_slots * torch.arange(batch, device=slots_BN.device).unsqueeze(1)
        source_N = (first_B1 + slots_BN).flatten()  # copying whole vectors is faster than gathering numbers
        return RowStore(
            self.h_BTD.flatten(0, 1).index_select(0, source_N).view(batch, slots_BN.shape[1], width),
            birth_BN,
            self.cue_BT.gather(1, slots_BN),
            self.compressed_BT.gather(1, slots_BN),
        )

    def reserve_slot(self, expired: Bool[Tensor, "B T"], min_free: int) -> tuple[RowStore, SlotIndex]:
        """See `Store.reserve_slot`."""
        store, num_slots = self, self.num_slots
        if store.free_slots == 0:
            store.free_slots = int(expired.sum(1).min()) if num_slots else 0
            if store.free_slots < min_free:
                store = store.padded(max(SPARE_SLOTS, num_slots // 4, min_free))
                expired = F.pad(expired, (0, store.num_slots - num_slots), value=True)
        store.free_slots -= 1  # for every row: a row writes one memory, and expired ones do not return
        row_B = torch.arange(len(expired), device=expired.device)
        return store, (row_B, expired.to(torch.uint8).argmax(1))

    def softmax(
        self, score: Float[Tensor, "B H T"], mask: Float[Tensor, "B G T"], *, null_memory: bool
    ) -> Float[Tensor, "B H T"]:
        """See `Store.softmax`."""
        score += _log_mask(mask)
        if null_memory:
            return F.pad(score, (0, 1)).softmax(-1)[..., :-1]
        return score.softmax(-1) * (mask > 0.0).any(2, keepdim=True)

    # Each row is a page of its own.

    @property
    def slots(self) -> RowStore:
        """The store itself."""
        return self

    def expand_to_pages(self, row_values: Tensor) -> Tensor:
        """See `Store.expand_to_pages`."""
        return row_values

    def sum_pages(self, page_values: Tensor) -> Tensor:
        """See `Store.sum_pages`."""
        return page_values

    def max_pages(self, page_values: Tensor) -> Tensor:
        """See `Store.max_pages`."""
        return page_values


def _log_mask(mask: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log m; `INVISIBLE` where m is 0."""
    expired = mask <= 0.0
    return mask.masked_fill(expired, 1.0).log().masked_fill(expired, INVISIBLE)
