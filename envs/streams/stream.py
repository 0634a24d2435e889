"""Supervised streams: endless or finite rows of tokens, read block by block.

    row 0    | t t t t | t t t t | t t ...        every `read` returns the next T tokens of all rows;
    row 1    | t t t t | t t t t | t t ...        rows are independent
    ...      | block 0 | block 1 |

A model reads the blocks in order and carries its memory from one to the next. Rows belong to the whole
batch: process i of n (`shard_index`, `num_shards`) reads its share of them, and the content of a row does
not depend on the process that reads it.

Shape letters:
    B  rows of this process
    T  tokens of a block
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORE = -1
"""target of tokens that are not scored"""
UNKNOWN = -1
"""distance of tokens that are not scored, or whose needed token is unknown"""
SPLITS = ("train", "valid", "test")
"""parts of a task that share nothing: no draw, no byte"""


class Block(NamedTuple):
    """The next tokens of every row."""

    tokens: NDArray[np.int64]
    """[B, T], below `vocabulary_size`"""
    targets: NDArray[np.int64]
    """[B, T], below `num_targets`: the class to predict after the token; `IGNORE`: none"""
    is_first: NDArray[np.bool_]
    """[B, T]: a new episode starts here; no earlier token of the row is needed"""
    distance: NDArray[np.int64]
    """[B, T]: distance in tokens to the oldest token that the target needs. A window of N tokens, this one
    included, is enough if distance < N. `UNKNOWN` where it cannot be told. For oracles and analysis: no
    model may read it."""

    def part(self, index: Any) -> Block:
        """Views of the same part of every array."""
        return Block(self.tokens[index], self.targets[index], self.is_first[index], self.distance[index])


class Stream(ABC):
    """Rows of tokens and targets, read from front to back by one reader."""

    name: str
    """name of the task"""
    vocabulary_size: int
    num_targets: int
    chance_accuracy: float | None
    """accuracy of guessing on scored targets, without any memory; None if it depends on the data"""

    def __init__(
        self,
        *,
        split: str,
        num_rows: int,
        tokens_per_row: int | None,
        shard_index: int = 0,
        num_shards: int = 1,
    ) -> None:
        """Check and store the arguments that all streams share.

        Args:
            split: one of `SPLITS`.
            num_rows: number of rows in the whole batch, over all processes.
            tokens_per_row: tokens of each row until the stream is exhausted; None: endless.
            shard_index: number of the share of rows that is read here.
            num_shards: number of equal shares.

        Raises:
            ValueError: an argument is out of range, or the rows cannot be shared equally.
        """
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        require_whole_numbers(
            num_rows=(num_rows, 1), num_shards=(num_shards, 1), shard_index=(shard_index, 0)
        )
        if tokens_per_row is not None:
            require_whole_numbers(tokens_per_row=(tokens_per_row, 1))
        if shard_index >= num_shards:
            raise ValueError(f"shard_index must be less than num_shards ({num_shards}), got {shard_index}")
        if num_rows % num_shards:
            raise ValueError(f"num_rows ({num_rows}) must be a multiple of num_shards ({num_shards})")
        share = int(num_rows // num_shards)
        self.split = split
        self.num_rows = int(num_rows)
        self.rows = range(int(shard_index) * share, (int(shard_index) + 1) * share)
        """numbers of the rows that are read here"""
        self.tokens_per_row = None if tokens_per_row is None else int(tokens_per_row)
        self.position = 0
        """tokens of each row that have been read"""

    # -- reading -----------------------------------------------------------------------------------

    @property
    def exhausted(self) -> bool:
        """Whether every token has been read."""
        return self.tokens_per_row is not None and self.position >= self.tokens_per_row

    def read(self, num_tokens: int) -> Block:
        """The next `num_tokens` of every row.

        At the end of a finite stream the block is filled up with token 0, which is not scored.

        Raises:
            ValueError: `num_tokens` is less than 1.
            EOFError: the stream is exhausted.
        """
        require_whole_numbers(num_tokens=(num_tokens, 1))
        if self.exhausted:
            raise EOFError(f"all {self.tokens_per_row} tokens of each row have been read")
        shape = (len(self.rows), num_tokens)
        block = Block(
            tokens=np.zeros(shape, dtype=np.int64),
            targets=np.full(shape, IGNORE, dtype=np.int64),
            is_first=np.zeros(shape, dtype=np.bool_),
            distance=np.full(shape, UNKNOWN, dtype=np.int64),
        )
        count = num_tokens
        if self.tokens_per_row is not None:
            count = min(num_tokens, self.tokens_per_row - self.position)
        self._fill(block.part(np.s_[:, :count]))
        self.position += count
        return block

    def blocks(self, num_tokens: int) -> Iterator[Block]:
        """Blocks until the stream is exhausted, or without end."""
        while not self.exhausted:
            yield self.read(num_tokens)

    @abstractmethod
    def _fill(self, block: Block) -> None:
        """Write the tokens that follow `position` into a block that holds no targets yet."""

    # -- exact continuation ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly: arrays and plain types."""
        return {"stream": self._identity(), "position": self.position, "inner": self._inner_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: it was called on another stream; the message names what differs. Nothing has
                changed then.
        """
        theirs = state["stream"]
        for name, ours in self._identity().items():
            if theirs.get(name) != ours:
                raise ValueError(
                    f"the state is of a stream with {name} = {theirs.get(name)!r}, "
                    f"but this one has {name} = {ours!r}"
                )
        self._load_inner_state(state["inner"])
        self.position = int(state["position"])

    def _identity(self) -> dict[str, Any]:
        """The settings that must be equal for a state to fit, in plain types."""
        return {
            "task": self.name,
            **self._options(),
            "split": self.split,
            "num_rows": self.num_rows,
            "first_row": self.rows.start,
            "end_row": self.rows.stop,
            "tokens_per_row": self.tokens_per_row,
        }

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """The task's own settings that must be equal for a state to fit, in plain types."""

    @abstractmethod
    def _inner_state(self) -> dict[str, Any]:
        """The state besides the position, in arrays and plain types."""

    @abstractmethod
    def _load_inner_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `_inner_state` returned."""


def require_whole_numbers(**values: tuple[Any, int]) -> None:
    """Check arguments given as name=(value, least allowed).

    Raises:
        ValueError: one is no whole number, or too small; the message names it.
    """
    for name, (value, least) in values.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")
        if int(value) < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def require_numbers(**values: Any) -> None:
    """Check arguments given as name=value.

    Raises:
        ValueError: one is no number; the message names it.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise ValueError(f"{name} must be a number, got {value!r}")
