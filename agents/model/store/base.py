"""The interface of a layer's store of memories.

Memories lie in *slots*. `Store.slots` is a table of them: one line per row of the batch (`RowStore`), or one
line per page of a row (`PagedStore`). What is computed for each slot has the layout of this table. What
belongs to a row of the batch is brought into it by `expand_to_pages`, and leaves it by `sum_pages` or
`max_pages`. Users of a store need not know which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from memory_suite.agents.model.store.rows import RowStore

INVISIBLE = -1e30
"""Score of a memory that must not be attended to. Next to any score of a visible memory its exp() is exactly
0; unlike -inf it leaves a softmax finite where nothing is visible."""

SlotIndex = tuple[Tensor, Tensor]
"""One slot per row of the batch: its line and its column in `Store.slots`."""


class Store(ABC):
    """The memories of one layer. A step updates its store in place and returns it."""

    __slots__ = ()

    @property
    @abstractmethod
    def slots(self) -> RowStore:
        """The table of slots (no copy)."""

    @abstractmethod
    def expand_to_pages(self, row_values: Tensor) -> Tensor:
        """Repeat values of rows for each page of the row."""

    @abstractmethod
    def sum_pages(self, page_values: Tensor) -> Tensor:
        """Sum values over the pages of each row."""

    @abstractmethod
    def max_pages(self, page_values: Tensor) -> Tensor:
        """Take the maximum of values over the pages of each row."""

    @abstractmethod
    def softmax(
        self, score: Float[Tensor, "_ H T"], mask: Float[Tensor, "_ G T"], *, null_memory: bool
    ) -> Float[Tensor, "_ H T"]:
        """Attention of one query per row over all of the row's memories (equation 4).

        softmax(a + log m) = m exp(a) / sum m exp(a). A query that sees nothing attends to nothing.

        Args:
            score: a; overwritten.
            mask: m.
            null_memory: also attend to a memory that has the score 0 and is not in the result.
        """

    @abstractmethod
    def reserve_slot(self, expired: Bool[Tensor, "_ T"], min_free: int) -> tuple[Store, SlotIndex]:
        """Reserve a slot in each row for one more memory; the store grows if a row has none.

        Args:
            expired: slots that may be overwritten.
            min_free: number of free slots that every row has after the store has grown.

        Returns:
            The store, with one free slot less in each row, and the reserved slots.
        """

    @abstractmethod
    def reset_rows(self, rows_B: Bool[Tensor, " B"]) -> Store:
        """Empty the rows marked True (an episode begins there); other tensors are shared."""

    @abstractmethod
    def compacted(self, alive: Bool[Tensor, "_ T"]) -> RowStore:
        """Keep only the memories marked True, newest first, in as few slots as possible (a copy)."""

    @abstractmethod
    def to_rows(self) -> RowStore:
        """The same memories without pages."""

    @abstractmethod
    def select(self, rows: Tensor) -> Store:
        """The memories of some rows only (a copy)."""

    @abstractmethod
    def clone(self) -> Store:
        """A copy that shares no storage."""

    @abstractmethod
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the store."""
