"""A store whose rows hold very different numbers of memories, in pages of so many slots.

What a step costs is then what all rows remember together; in a store as wide as its fullest row it is what
that one remembers, times the rows. Before an agent has learned to forget, that is several times as much.

Acting alone uses it: pages are made of a store when a rollout begins (`in_pages`), and it becomes one again
(`PagedMemory.kept`) before the weights change.

Shape letters (logical dimensions, always in this order):
    B  rows of the batch     F  pages, of any row; in `slots` they are what rows are in a store
    W  slots of a store      S  slots of a page
    D  model width           N  memories, of any row
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.rows import NEVER, SPARE_SLOTS, LayerMemory

PAGE_SLOTS = 32
"""S. Half a page of each row is empty in the mean, and each row has at least one."""
LEAST_SLOTS = 2**13
"""Stores of fewer slots stay as they are: to look up pages costs more than empty slots do."""
LEAST_SAVING = 1.5
"""So many times as many slots a store must have as its pages would have."""


@dataclass(slots=True)
class PagedMemory:
    """The memories of one layer, in pages. Like a `LayerMemory`, a step uses it up."""

    slots: LayerMemory
    """of F rows, the pages"""
    row_F: Int[Tensor, " F"]
    """the row that each page is of"""
    num_rows: int
    """B"""
    room_FSD: Float[Tensor, "_ S D"]
    """what `slots.hidden_BWD` is the beginning of: contents of pages to come"""
    free_slots: int = 0
    """see `LayerMemory`"""

    def tensors(self) -> tuple[Tensor, ...]:
        """Every tensor that takes memory."""
        return self.room_FSD, *self.slots.tensors()[1:], self.row_F

    def in_rows(self) -> LayerMemory:
        """The same memories in a store, newest first."""
        return self.kept(self.slots.birth_BW != NEVER)

    def kept(self, alive_FS: Bool[Tensor, "F S"]) -> LayerMemory:
        """See `LayerMemory.kept`."""
        page_N, slot_N = alive_FS.nonzero(as_tuple=True)
        place_N = PAGE_SLOTS * page_N + slot_N
        birth_N = self.slots.birth_BW.flatten()[place_N]
        newest_first_N = birth_N.argsort(descending=True, stable=True)
        row_N, order_N = self.row_F[page_N[newest_first_N]].sort(stable=True)
        source_N = place_N[newest_first_N[order_N]]
        count_B = row_N.bincount(minlength=self.num_rows)
        num_slots = int(count_B.max()) + SPARE_SLOTS
        target_N = num_slots * row_N + _rank_in_group(row_N, count_B)

        def moved(part: Tensor, nothing: int = 0) -> Tensor:
            return _moved(part, source_N, target_N, (self.num_rows, num_slots), nothing)

        slots = self.slots
        return LayerMemory(
            moved(slots.hidden_BWD),
            moved(slots.birth_BW, NEVER),
            moved(slots.tag_BW),
            moved(slots.pooled_BW),
            free_slots=SPARE_SLOTS,
        )

    def select(self, rows: Tensor) -> PagedMemory:
        """The same memories for some rows only (a copy)."""
        row_F, page_F = (rows.unsqueeze(1) == self.row_F).nonzero(as_tuple=True)
        slots = self.slots.select(page_F)
        return PagedMemory(slots, row_F, len(rows), slots.hidden_BWD)

    def clone(self) -> PagedMemory:
        """A copy that shares no storage."""
        slots = self.slots.clone()
        return replace(self, slots=slots, row_F=self.row_F.clone(), room_FSD=slots.hidden_BWD)

    def without_rows(self, rows_B: Bool[Tensor, " B"]) -> PagedMemory:
        """See `LayerMemory.without_rows`."""
        return replace(self, slots=self.slots.without_rows(self.for_pages(rows_B)))

    def for_pages(self, of_rows: Tensor) -> Tensor:
        """What belongs to rows, for the pages of each."""
        return of_rows.index_select(0, self.row_F)

    def sum_of_pages(self, of_pages: Tensor) -> Tensor:
        """For each row, the sum over its pages."""
        total = of_pages.new_zeros(self.num_rows, *of_pages.shape[1:])
        return total.index_add_(0, self.row_F, of_pages)

    def largest_of_pages(self, of_pages: Tensor) -> Tensor:
        """For each row, the largest number of its pages; every row has one."""
        largest = of_pages.new_empty(self.num_rows, *of_pages.shape[1:])
        index = self.row_F.view(-1, *[1] * (of_pages.dim() - 1)).expand_as(of_pages)
        return largest.scatter_reduce_(0, index, of_pages, "amax", include_self=False)

    def with_room(self, gone_FS: Bool[Tensor, "F S"], enough: int) -> tuple[PagedMemory, Tensor, Tensor]:
        """See `LayerMemory.with_room`; a row that has too few free slots gets one more page."""
        memory = self
        if memory.free_slots == 0:
            free_B = memory.sum_of_pages(gone_FS.sum(1))
            full = (free_B < enough).nonzero().squeeze(1)
            if len(full):
                memory = memory._grown(full)
                gone_FS = torch.cat([gone_FS, gone_FS.new_ones(len(full), PAGE_SLOTS)])
                free_B[full] += PAGE_SLOTS
            memory.free_slots = int(free_B.min())
        memory.free_slots -= 1
        num_pages = len(gone_FS)
        number_F = torch.arange(num_pages, device=gone_FS.device)
        # A page of its own even if all are full, should more have been known to be free than is.
        page_B = memory.largest_of_pages(number_F + num_pages * gone_FS.any(1)) % num_pages
        return memory, page_B, gone_FS[page_B].to(torch.uint8).argmax(1)

    def _grown(self, rows: Tensor) -> PagedMemory:
        """With one more page for each of these rows."""
        num_pages = self.slots.num_rows + len(rows)
        room_FSD = self.room_FSD
        if num_pages > len(room_FSD):
            room_FSD = room_FSD.new_zeros(num_pages + self.num_rows, *room_FSD.shape[1:])
            room_FSD[: self.slots.num_rows] = self.slots.hidden_BWD
        empty = (len(rows), PAGE_SLOTS)
        slots = self.slots
        slots = LayerMemory(
            room_FSD[:num_pages],
            torch.cat([slots.birth_BW, slots.birth_BW.new_full(empty, NEVER)]),
            torch.cat([slots.tag_BW, slots.tag_BW.new_zeros(empty)]),
            torch.cat([slots.pooled_BW, slots.pooled_BW.new_zeros(empty)]),
        )
        return PagedMemory(slots, torch.cat([self.row_F, rows]), self.num_rows, room_FSD)


Store = LayerMemory | PagedMemory
"""A layer's memories, in rows or in pages."""


def in_pages(memory: LayerMemory) -> PagedMemory | None:
    """The same memories in pages (a copy); None if that would not save enough.

    What it does depends on the memories alone, not on the width of their store, so that training that is
    resumed goes on as it would have gone on.
    """
    if memory.num_rows * memory.num_slots < LEAST_SLOTS:
        return None  # without a look at them
    used_BW = memory.birth_BW != NEVER
    count_B = used_BW.sum(1)
    pages_B = count_B // PAGE_SLOTS + 1  # room for one more memory in each row
    num_pages = int(pages_B.sum())
    slots_in_rows = memory.num_rows * int(count_B.max())
    if slots_in_rows < max(LEAST_SLOTS, LEAST_SAVING * num_pages * PAGE_SLOTS):
        return None
    row_N, slot_N = used_BW.nonzero(as_tuple=True)
    first_page_B = pages_B.cumsum(0) - pages_B
    target_N = PAGE_SLOTS * first_page_B[row_N] + _rank_in_group(row_N, count_B)
    source_N = memory.num_slots * row_N + slot_N

    def moved(part: Tensor, pages: int = num_pages, nothing: int = 0) -> Tensor:
        return _moved(part, source_N, target_N, (pages, PAGE_SLOTS), nothing)

    room_FSD = moved(memory.hidden_BWD, num_pages + memory.num_rows)
    slots = LayerMemory(
        room_FSD[:num_pages],
        moved(memory.birth_BW, nothing=NEVER),
        moved(memory.tag_BW),
        moved(memory.pooled_BW),
    )
    row_F = torch.arange(memory.num_rows, device=pages_B.device).repeat_interleave(pages_B)
    return PagedMemory(slots, row_F, memory.num_rows, room_FSD)


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
