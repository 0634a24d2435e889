"""A store in pages of a fixed number of slots, for rows that hold very different numbers of memories.

The cost of a step is proportional to what all rows hold together. A `RowStore` is as wide as its fullest row,
so its cost is proportional to what this row holds, times the number of rows. Before an agent has learned to
forget, that is several times as much.

Only acting uses pages: `to_pages` makes them when a rollout begins, and `PagedStore.compacted` turns them
into rows again before the weights change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.store.base import INVISIBLE, SlotIndex, Store
from memory_suite.agents.model.store.rows import NEVER, SPARE_SLOTS, RowStore

PAGE_SLOTS = 32
"""Number of slots of a page. Each row has at least one page, and half a page of it is empty on average."""
MIN_SLOTS = 2**13
"""Smaller stores keep their rows: looking up pages costs more than empty slots."""
MIN_SAVING_RATIO = 1.5
"""Use pages only if they save at least this factor in slots."""


@dataclass(slots=True)
class PagedStore(Store):
    """The memories of one layer, in pages."""

    pages: RowStore
    """the pages: each is a row of this table"""
    row_F: Int[Tensor, " F"]
    """the row of the batch that each page belongs to"""
    num_rows: int
    """B"""
    buffer_FTD: Float[Tensor, "_ T D"]
    """storage of `pages.h_BTD`, which is its beginning; the rest is for further pages"""
    free_slots: int = 0
    """see `RowStore`"""

    @property
    def slots(self) -> RowStore:
        """The pages."""
        return self.pages

    def tensors(self) -> tuple[Tensor, ...]:
        """See `Store.tensors`."""
        return self.buffer_FTD, *self.pages.tensors()[1:], self.row_F

    def to_rows(self) -> RowStore:
        """See `Store.to_rows`; the memories of each row are sorted, newest first."""
        return self.compacted(self.pages.birth_BT != NEVER)

    def compacted(self, alive: Bool[Tensor, "F T"]) -> RowStore:
        """See `Store.compacted`."""
        page_N, slot_N = alive.nonzero(as_tuple=True)
        source_N = PAGE_SLOTS * page_N + slot_N
        birth_N = self.pages.birth_BT.flatten()[source_N]
        newest_first_N = birth_N.argsort(descending=True, stable=True)
        row_N, order_N = self.row_F[page_N[newest_first_N]].sort(stable=True)
        source_N = source_N[newest_first_N[order_N]]
        count_B = row_N.bincount(minlength=self.num_rows)
        num_slots = int(count_B.max()) + SPARE_SLOTS
        target_N = num_slots * row_N + _rank_in_group(row_N, count_B)

        def moved(part: Tensor, fill_value: int = 0) -> Tensor:
            return _moved(part, source_N, target_N, (self.num_rows, num_slots), fill_value)

        return RowStore(
            moved(self.pages.h_BTD),
            moved(self.pages.birth_BT, NEVER),
            moved(self.pages.cue_BT),
            moved(self.pages.compressed_BT),
            free_slots=SPARE_SLOTS,
        )

    def select(self, rows: Tensor) -> PagedStore:
        """See `Store.select`."""
        row_F, page_F = (rows.unsqueeze(1) == self.row_F).nonzero(as_tuple=True)
        pages = self.pages.select(page_F)
        return PagedStore(pages, row_F, len(rows), pages.h_BTD)

    def clone(self) -> PagedStore:
        """See `Store.clone`."""
        pages = self.pages.clone()
        return replace(self, pages=pages, row_F=self.row_F.clone(), buffer_FTD=pages.h_BTD)

    def reset_rows(self, rows_B: Bool[Tensor, " B"]) -> PagedStore:
        """See `Store.reset_rows`."""
        return replace(self, pages=self.pages.reset_rows(self.expand_to_pages(rows_B)))

    def expand_to_pages(self, row_values: Tensor) -> Tensor:
        """See `Store.expand_to_pages`."""
        return row_values.index_select(0, self.row_F)

    def sum_pages(self, page_values: Tensor) -> Tensor:
        """See `Store.sum_pages`."""
        total = page_values.new_zeros(self.num_rows, *page_values.shape[1:])
        return total.index_add_(0, self.row_F, page_values)

    def max_pages(self, page_values: Tensor) -> Tensor:
        """See `Store.max_pages`; every row has a page."""
        largest = page_values.new_empty(self.num_rows, *page_values.shape[1:])
        index = self.row_F.view(-1, *[1] * (page_values.dim() - 1)).expand_as(page_values)
        return largest.scatter_reduce_(0, index, page_values, "amax", include_self=False)

    def softmax(
        self, score: Float[Tensor, "F H T"], mask: Float[Tensor, "F G T"], *, null_memory: bool
    ) -> Float[Tensor, "F H T"]:
        """See `Store.softmax`."""
        score.masked_fill_(mask == 0.0, INVISIBLE)
        max_score_BH = self.max_pages(score.amax(2))
        if null_memory:
            max_score_BH = max_score_BH.clamp_min(0.0)
        weight_FHT = (score - self.expand_to_pages(max_score_BH).unsqueeze(2)).exp_().mul_(mask)
        total_BH = self.sum_pages(weight_FHT.sum(2))
        if null_memory:
            total_BH += (-max_score_BH).exp()
        else:  # a head that sees nothing attends to nothing
            total_BH = total_BH.masked_fill(total_BH == 0.0, 1.0)
        return weight_FHT / self.expand_to_pages(total_BH).unsqueeze(2)

    def reserve_slot(self, expired: Bool[Tensor, "F T"], min_free: int) -> tuple[PagedStore, SlotIndex]:
        """See `Store.reserve_slot`; a row that has too few free slots gets one more page."""
        store = self
        if store.free_slots == 0:
            free_B = store.sum_pages(expired.sum(1))
            full = (free_B < min_free).nonzero().squeeze(1)
            if len(full):
                store = store._with_new_pages(full)
                expired = torch.cat([expired, expired.new_ones(len(full), PAGE_SLOTS)])
                free_B[full] += PAGE_SLOTS
            store.free_slots = int(free_B.min())
        store.free_slots -= 1
        num_pages = len(expired)
        number_F = torch.arange(num_pages, device=expired.device)
        # If `free_slots` was too high and all pages of a row are full, the row still gets a page of its own.
        page_B = store.max_pages(number_F + num_pages * expired.any(1)) % num_pages
        return store, (page_B, expired[page_B].to(torch.uint8).argmax(1))

    def _with_new_pages(self, rows: Tensor) -> PagedStore:
        """Append one page for each of these rows."""
        num_pages = self.pages.num_rows + len(rows)
        buffer_FTD = self.buffer_FTD
        if num_pages > len(buffer_FTD):
            buffer_FTD = buffer_FTD.new_zeros(num_pages + self.num_rows, *buffer_FTD.shape[1:])
            buffer_FTD[: self.pages.num_rows] = self.pages.h_BTD
        empty = (len(rows), PAGE_SLOTS)
        pages = self.pages
        pages = RowStore(
            buffer_FTD[:num_pages],
            torch.cat([pages.birth_BT, pages.birth_BT.new_full(empty, NEVER)]),
            torch.cat([pages.cue_BT, pages.cue_BT.new_zeros(empty)]),
            torch.cat([pages.compressed_BT, pages.compressed_BT.new_zeros(empty)]),
        )
        return PagedStore(pages, torch.cat([self.row_F, rows]), self.num_rows, buffer_FTD)


def to_pages(store: RowStore) -> PagedStore | None:
    """Put the memories into pages (a copy); None if that would not save enough.

    The decision depends on the memories alone, not on the width of their store, so that a resumed training
    takes the same one.
    """
    if store.num_rows * store.num_slots < MIN_SLOTS:
        return None  # without counting the memories
    used_BT = store.birth_BT != NEVER
    count_B = used_BT.sum(1)
    pages_B = count_B // PAGE_SLOTS + 1  # room for one more memory in each row
    num_pages = int(pages_B.sum())
    slots_in_rows = store.num_rows * int(count_B.max())
    if slots_in_rows < max(MIN_SLOTS, MIN_SAVING_RATIO * num_pages * PAGE_SLOTS):
        return None
    row_N, slot_N = used_BT.nonzero(as_tuple=True)
    first_page_B = pages_B.cumsum(0) - pages_B
    target_N = PAGE_SLOTS * first_page_B[row_N] + _rank_in_group(row_N, count_B)
    source_N = store.num_slots * row_N + slot_N

    def moved(part: Tensor, pages: int = num_pages, fill_value: int = 0) -> Tensor:
        return _moved(part, source_N, target_N, (pages, PAGE_SLOTS), fill_value)

    buffer_FTD = moved(store.h_BTD, num_pages + store.num_rows)
    pages = RowStore(
        buffer_FTD[:num_pages],
        moved(store.birth_BT, fill_value=NEVER),
        moved(store.cue_BT),
        moved(store.compressed_BT),
    )
    row_F = torch.arange(store.num_rows, device=pages_B.device).repeat_interleave(pages_B)
    return PagedStore(pages, row_F, store.num_rows, buffer_FTD)


def _moved(
    part: Tensor, source_N: Tensor, target_N: Tensor, sizes: tuple[int, int], fill_value: int
) -> Tensor:
    """Copy some slots into a new tensor of `sizes` rows and slots, by their flat indices."""
    flat_sizes = (sizes[0] * sizes[1], *part.shape[2:])
    # Zeros are free: the operating system provides them.
    flat = part.new_full(flat_sizes, fill_value) if fill_value else part.new_zeros(flat_sizes)
    flat.index_copy_(0, target_N, part.flatten(0, 1).index_select(0, source_N))
    return flat.view(*sizes, *part.shape[2:])


def _rank_in_group(group_N: Int[Tensor, " N"], count_B: Int[Tensor, " B"]) -> Int[Tensor, " N"]:
    """The number of earlier members of the same group; the members of a group are adjacent."""
    first_B = count_B.cumsum(0) - count_B
    return torch.arange(len(group_N), device=group_N.device) - first_B[group_N]
