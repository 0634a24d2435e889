"""A store whose rows hold very different numbers of memories, in pages of so many slots.

What a step costs is then what all rows remember together; in a store as wide as its fullest row it is what
that one remembers, times the rows. Before an agent has learned to forget, that is several times as much.

Acting alone uses it: pages are made of a store when a rollout begins (`to_pages`), and it becomes one again
(`PagedStore.compacted`) before the weights change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.rows import NEVER, SPARE_SLOTS, RowStore

PAGE_SLOTS = 32
"""S. Half a page of each row is empty in the mean, and each row has at least one."""
MIN_SLOTS = 2**13
"""Stores of fewer slots stay as they are: to look up pages costs more than empty slots do."""
MIN_SAVING_RATIO = 1.5
"""So many times as many slots a store must have as its pages would have."""


@dataclass(slots=True)
class PagedStore:
    """The memories of one layer, in pages. Like a `RowStore`, a step uses it up."""

    slots: RowStore
    """of F rows, the pages"""
    row_F: Int[Tensor, " F"]
    """the row that each page is of"""
    num_rows: int
    """B"""
    buffer_FTD: Float[Tensor, "_ T D"]
    """what `slots.h_BTD` is the beginning of: contents of pages to come"""
    free_slots: int = 0
    """see `RowStore`"""

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that takes memory."""
        return self.buffer_FTD, *self.slots.tensors()[1:], self.row_F

    def to_rows(self) -> RowStore:
        """The same memories in a store, newest first."""
        return self.compacted(self.slots.birth_BT != NEVER)

    def compacted(self, alive_FT: Bool[Tensor, "F T"]) -> RowStore:
        """See `RowStore.compacted`."""
        page_N, slot_N = alive_FT.nonzero(as_tuple=True)
        place_N = PAGE_SLOTS * page_N + slot_N
        birth_N = self.slots.birth_BT.flatten()[place_N]
        newest_first_N = birth_N.argsort(descending=True, stable=True)
        row_N, order_N = self.row_F[page_N[newest_first_N]].sort(stable=True)
        source_N = place_N[newest_first_N[order_N]]
        count_B = row_N.bincount(minlength=self.num_rows)
        num_slots = int(count_B.max()) + SPARE_SLOTS
        target_N = num_slots * row_N + _rank_in_group(row_N, count_B)

        def moved(part: Tensor, nothing: int = 0) -> Tensor:
            return _moved(part, source_N, target_N, (self.num_rows, num_slots), nothing)

        slots = self.slots
        return RowStore(
            moved(slots.h_BTD),
            moved(slots.birth_BT, NEVER),
            moved(slots.cue_BT),
            moved(slots.compressed_BT),
            free_slots=SPARE_SLOTS,
        )

    def select(self, rows: Tensor) -> PagedStore:
        """The same memories for some rows only (a copy)."""
        row_F, page_F = (rows.unsqueeze(1) == self.row_F).nonzero(as_tuple=True)
        slots = self.slots.select(page_F)
        return PagedStore(slots, row_F, len(rows), slots.h_BTD)

    def clone(self) -> PagedStore:
        """A copy that shares no storage."""
        slots = self.slots.clone()
        return replace(self, slots=slots, row_F=self.row_F.clone(), buffer_FTD=slots.h_BTD)

    def reset_rows(self, rows_B: Bool[Tensor, " B"]) -> PagedStore:
        """See `RowStore.reset_rows`."""
        return replace(self, slots=self.slots.reset_rows(self.expand_to_pages(rows_B)))

    def expand_to_pages(self, row_values: Tensor) -> Tensor:
        """What belongs to rows, for the pages of each."""
        return row_values.index_select(0, self.row_F)

    def sum_pages(self, page_values: Tensor) -> Tensor:
        """For each row, the sum over its pages."""
        total = page_values.new_zeros(self.num_rows, *page_values.shape[1:])
        return total.index_add_(0, self.row_F, page_values)

    def max_pages(self, page_values: Tensor) -> Tensor:
        """For each row, the largest number of its pages; every row has one."""
        largest = page_values.new_empty(self.num_rows, *page_values.shape[1:])
        index = self.row_F.view(-1, *[1] * (page_values.dim() - 1)).expand_as(page_values)
        return largest.scatter_reduce_(0, index, page_values, "amax", include_self=False)

    def reserve_slot(self, expired_FT: Bool[Tensor, "F T"], enough: int) -> tuple[PagedStore, Tensor, Tensor]:
        """See `RowStore.reserve_slot`; a row that has too few free slots gets one more page."""
        memory = self
        if memory.free_slots == 0:
            free_B = memory.sum_pages(expired_FT.sum(1))
            full = (free_B < enough).nonzero().squeeze(1)
            if len(full):
                memory = memory._with_new_pages(full)
                expired_FT = torch.cat([expired_FT, expired_FT.new_ones(len(full), PAGE_SLOTS)])
                free_B[full] += PAGE_SLOTS
            memory.free_slots = int(free_B.min())
        memory.free_slots -= 1
        num_pages = len(expired_FT)
        number_F = torch.arange(num_pages, device=expired_FT.device)
        # A page of its own even if all are full, should more have been known to be free than is.
        page_B = memory.max_pages(number_F + num_pages * expired_FT.any(1)) % num_pages
        return memory, page_B, expired_FT[page_B].to(torch.uint8).argmax(1)

    def _with_new_pages(self, rows: Tensor) -> PagedStore:
        """With one more page for each of these rows."""
        num_pages = self.slots.num_rows + len(rows)
        buffer_FTD = self.buffer_FTD
        if num_pages > len(buffer_FTD):
            buffer_FTD = buffer_FTD.new_zeros(num_pages + self.num_rows, *buffer_FTD.shape[1:])
            buffer_FTD[: self.slots.num_rows] = self.slots.h_BTD
        empty = (len(rows), PAGE_SLOTS)
        slots = self.slots
        slots = RowStore(
            buffer_FTD[:num_pages],
            torch.cat([slots.birth_BT, slots.birth_BT.new_full(empty, NEVER)]),
            torch.cat([slots.cue_BT, slots.cue_BT.new_zeros(empty)]),
            torch.cat([slots.compressed_BT, slots.compressed_BT.new_zeros(empty)]),
        )
        return PagedStore(slots, torch.cat([self.row_F, rows]), self.num_rows, buffer_FTD)


Store = RowStore | PagedStore
"""A layer's memories, in rows or in pages."""


def to_pages(memory: RowStore) -> PagedStore | None:
    """The same memories in pages (a copy); None if that would not save enough.

    What it does depends on the memories alone, not on the width of their store, so that training that is
    resumed goes on as it would have gone on.
    """
    if memory.num_rows * memory.num_slots < MIN_SLOTS:
        return None  # without a look at them
    used_BT = memory.birth_BT != NEVER
    count_B = used_BT.sum(1)
    pages_B = count_B // PAGE_SLOTS + 1  # room for one more memory in each row
    num_pages = int(pages_B.sum())
    slots_in_rows = memory.num_rows * int(count_B.max())
    if slots_in_rows < max(MIN_SLOTS, MIN_SAVING_RATIO * num_pages * PAGE_SLOTS):
        return None
    row_N, slot_N = used_BT.nonzero(as_tuple=True)
    first_page_B = pages_B.cumsum(0) - pages_B
    target_N = PAGE_SLOTS * first_page_B[row_N] + _rank_in_group(row_N, count_B)
    source_N = memory.num_slots * row_N + slot_N

    def moved(part: Tensor, pages: int = num_pages, nothing: int = 0) -> Tensor:
        return _moved(part, source_N, target_N, (pages, PAGE_SLOTS), nothing)

    buffer_FTD = moved(memory.h_BTD, num_pages + memory.num_rows)
    slots = RowStore(
        buffer_FTD[:num_pages],
        moved(memory.birth_BT, nothing=NEVER),
        moved(memory.cue_BT),
        moved(memory.compressed_BT),
    )
    row_F = torch.arange(memory.num_rows, device=pages_B.device).repeat_interleave(pages_B)
    return PagedStore(slots, row_F, memory.num_rows, buffer_FTD)


def _moved(part: Tensor, source_N: Tensor, target_N: Tensor, sizes: tuple[int, int], nothing: int) -> Tensor:
    """A tensor of so many rows and slots with some slots of another, by their places in the flat ones."""
    flat_sizes = (sizes[0] * sizes[1], *part.shape[2:])
    flat = part.new_full(flat_sizes, nothing) if nothing else part.new_zeros(flat_sizes)  # these take no time
    flat.index_copy_(0, target_N, part.flatten(0, 1).index_select(0, source_N))
    return flat.view(*sizes, *part.shape[2:])


def _rank_in_group(group_N: Int[Tensor, " N"], count_B: Int[Tensor, " B"]) -> Int[Tensor, " N"]:
    """How many of the same group come before, where groups follow one another in order."""
    first_B = count_B.cumsum(0) - count_B
    return torch.arange(len(group_N), device=group_N.device) - first_B[group_N]
