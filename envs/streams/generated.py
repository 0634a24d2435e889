"""Streams that are drawn rather than read from a file.

A task is a `Rules` object: it draws one row piece by piece. `GeneratedStream` cuts any number of such rows
into blocks. Each row has a generator of its own, seeded by (seed, split, row): splits share nothing, and a
row is the same in any batch and in any process.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.streams.stream import SPLITS, Block, Stream, require_whole_numbers

RowState = dict[str, Any]
"""state of a row's simulation, in arrays and plain types; never changed in place"""


class Piece(NamedTuple):
    """The next tokens of one row, drawn at a time; the fields are those of `Block`, without B."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    is_first: NDArray[np.bool_]
    distance: NDArray[np.int32]


class Rules(Protocol):
    """A task: its arguments (a frozen dataclass of plain types) and how a row of it is drawn."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name of the task."""

    @property
    def vocabulary_size(self) -> int:
        """Tokens are below it."""

    @property
    def num_targets(self) -> int:
        """Targets are below it."""

    @property
    def chance_accuracy(self) -> float | None:
        """Accuracy of guessing without memory; None: unknown."""

    def start(self, rng: np.random.Generator) -> RowState:
        """Begin a row."""

    def draw(self, rng: np.random.Generator, state: RowState) -> tuple[Piece, RowState]:
        """The next piece of a row and the row's state after it; `state` is not changed."""


class GeneratedStream(Stream):
    """Rows drawn by rules."""

    def __init__(
        self,
        rules: Rules,
        *,
        split: str = "train",
        num_rows: int = 1,
        tokens_per_row: int | None = None,
        seed: int = 0,
        shard_index: int = 0,
        num_shards: int = 1,
    ) -> None:
        """Begin every row; arguments and ValueError as `Stream`, and `seed`, at least 0."""
        super().__init__(
            split=split,
            num_rows=num_rows,
            tokens_per_row=tokens_per_row,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        require_whole_numbers(seed=(seed, 0))
        self.rules = rules
        self.seed = int(seed)
        self.name = rules.name
        self.vocabulary_size = rules.vocabulary_size
        self.num_targets = rules.num_targets
        self.chance_accuracy = rules.chance_accuracy
        self._readers = [_RowReader(rules, self._generator(row)) for row in self.rows]

    def _generator(self, row: int) -> np.random.Generator:
        seed = np.random.SeedSequence(self.seed, spawn_key=(SPLITS.index(self.split), row))
        return np.random.Generator(np.random.PCG64(seed))

    def _fill(self, block: Block) -> None:
        for index, reader in enumerate(self._readers):
            reader.read_into(block.part(index))

    def _options(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.rules), "seed": self.seed}

    def _inner_state(self) -> dict[str, Any]:
        return {"rows": [reader.state_dict() for reader in self._readers]}

    def _load_inner_state(self, state: dict[str, Any]) -> None:
        for reader, row_state in zip(self._readers, state["rows"], strict=True):
            reader.load_state_dict(row_state)


class _RowReader:
    """One row: its generator, the piece being read and how much of it has been.

    A checkpoint holds where the row stood *before* that piece, which is then drawn again.
    """

    def __init__(self, rules: Rules, rng: np.random.Generator) -> None:
        self._rules = rules
        self._rng = rng
        self._after = rules.start(rng)
        self._advance()

    def read_into(self, row: Block) -> None:
        """Fill arrays of shape [T]."""
        filled, wanted = 0, len(row.tokens)
        while filled < wanted:
            if self._offset == len(self._piece.tokens):
                self._advance()
            count = min(wanted - filled, len(self._piece.tokens) - self._offset)
            for array, source in zip(row, self._piece, strict=True):
                array[filled : filled + count] = source[self._offset : self._offset + count]
            filled += count
            self._offset += count

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator_before, "row": self._before, "offset": self._offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["generator"]
        self._after = state["row"]
        self._advance()
        self._offset = int(state["offset"])

    def _advance(self) -> None:
        self._generator_before = self._rng.bit_generator.state
        self._before = self._after
        self._piece, self._after = self._rules.draw(self._rng, self._before)
        self._offset = 0
