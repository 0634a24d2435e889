"""Text: any file as bytes, each predicted from those before it.

    file   |<----------- train 90% ----------->|<- valid 5% ->|<- test 5% ->|
    split  |<-- row 0 -->|<-- row 1 -->|<-- row 2 -->|            token: a byte, target: the next byte

The file is mapped into memory, not read. A split is cut into rows of consecutive bytes. Each byte of it but
the first is the target of exactly one row in each pass; at the end of its part a row begins it again
(`is_first`). Nothing is drawn: a text has no seed.

enwik8 (https://mattmahoney.net/dc/textdata.html) is recognized by its size and checksum, and only then
called so: these fractions are its usual split, 90M, 5M and 5M bytes. Figures for any other text cannot be
compared with published ones.
"""

from __future__ import annotations

import functools
import hashlib
import math
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.streams.stream import SPLITS, Block, Stream

ENWIK8 = "enwik8"
ENWIK8_BYTES = 100_000_000
ENWIK8_SHA256 = "2b49720ec4d78c3c9fabaee6e4179a5e997302b3a70029f30f2d582218c024a8"
ENWIK8_PAGE = "https://mattmahoney.net/dc/textdata.html"
NUM_BYTE_VALUES = 256
BOUNDS_PERCENT = (0, 90, 95, 100)
"""where one split ends and the next begins"""
_COMPRESSED_SUFFIXES = (".zip", ".gz", ".bz2", ".xz", ".zst", ".7z")


def bits_per_byte(nats_per_byte: float) -> float:
    """A mean cross-entropy loss in the unit in which language models of bytes are compared."""
    return nats_per_byte / math.log(2)


class Corpus:
    """A file as bytes, mapped into memory."""

    def __init__(self, data: str | os.PathLike[str]) -> None:
        """Open the file.

        Args:
            data: its path.

        Raises:
            FileNotFoundError: there is none; the message says where enwik8 is.
            ValueError: it is empty, compressed, unreadable or no file, or called enwik8 without being it.
        """
        self.path = Path(data)
        if not self.path.exists():
            raise FileNotFoundError(
                f"data: there is no file {str(self.path)!r}. Any text will do; enwik8 is on {ENWIK8_PAGE} "
                "(unpack enwik8.zip)"
            )
        if not self.path.is_file():
            raise ValueError(f"data must be a file, but {str(self.path)!r} is none")
        if self.path.suffix.lower() in _COMPRESSED_SUFFIXES:
            raise ValueError(f"data: {str(self.path)!r} is compressed, unpack it first")
        if self.path.stat().st_size == 0:
            raise ValueError(f"data: the file {str(self.path)!r} is empty")
        try:
            with open(self.path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ValueError(f"data: {str(self.path)!r} cannot be read ({error})") from error
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        self.is_enwik8 = len(self.bytes) == ENWIK8_BYTES and self.sha256 == ENWIK8_SHA256
        if self.path.stem.lower() == ENWIK8 and not self.is_enwik8:
            raise ValueError(
                f"data: {str(self.path)!r} is called enwik8 and is not: it has {len(self.bytes):,} bytes of "
                f"{ENWIK8_BYTES:,} and another checksum. Get it again from {ENWIK8_PAGE}, or rename it"
            )
        self.name = ENWIK8 if self.is_enwik8 else self.path.name
        """the name to use in results"""

    @functools.cached_property
    def sha256(self) -> str:
        """Checksum of the whole file."""
        return hashlib.sha256(self._map).hexdigest()

    def part(self, split: str) -> range:
        """The places of a split's bytes."""
        number = SPLITS.index(split)
        first, end = (len(self.bytes) * BOUNDS_PERCENT[number + i] // 100 for i in (0, 1))
        return range(first, end)

    def require_intact(self) -> None:
        """Check that the mapped file is still there in full; reading beyond its end would kill the process.

        Raises:
            ValueError: the file has been truncated.
        """
        size = self._map.size()
        if size < len(self.bytes):
            raise ValueError(
                f"data: {str(self.path)!r} has been cut to {size:,} bytes while it was in use; "
                f"it had {len(self.bytes):,}"
            )


class TextStream(Stream):
    """Rows of a text."""

    def __init__(
        self,
        corpus: Corpus,
        *,
        split: str = "train",
        num_rows: int = 1,
        tokens_per_row: int | None = None,
        shard_index: int = 0,
        num_shards: int = 1,
    ) -> None:
        """Cut the split into rows.

        Args:
            corpus: the file.
            split: one of `SPLITS`.
            num_rows: number of rows in the whole batch, over all processes.
            tokens_per_row: tokens of each row until the stream is exhausted; None: rows repeat without end.
            shard_index: number of the share of rows that is read here.
            num_shards: number of equal shares.

        Raises:
            ValueError: as `Stream`, or there are more rows than bytes to predict.
        """
        super().__init__(
            split=split,
            num_rows=num_rows,
            tokens_per_row=tokens_per_row,
            shard_index=shard_index,
            num_shards=num_shards,
        )
        part = corpus.part(split)
        num_targets = len(part) - 1
        if num_targets < num_rows:
            raise ValueError(
                f"data: the {split} split of {str(corpus.path)!r} has {len(part)} bytes, too few for "
                f"num_rows = {num_rows}"
            )
        self.corpus = corpus
        self.name = "text"
        self.vocabulary_size = self.num_targets = NUM_BYTE_VALUES
        self.chance_accuracy = None
        self.tokens_per_pass = -(-num_targets // num_rows)
        """tokens of a row before it begins again"""
        # A row whose part is one byte shorter than the longest reads the next row's first byte unscored.
        self._starts = [part.start + row * num_targets // num_rows for row in self.rows]
        self._ends = [part.start + (row + 1) * num_targets // num_rows for row in self.rows]

    def _fill(self, block: Block) -> None:
        self.corpus.require_intact()
        filled, wanted = 0, block.tokens.shape[1]
        while filled < wanted:
            column = (self.position + filled) % self.tokens_per_pass
            count = min(wanted - filled, self.tokens_per_pass - column)
            block.is_first[:, filled] = column == 0
            for row, (start, end) in enumerate(zip(self._starts, self._ends, strict=True)):
                first = start + column
                block.tokens[row, filled : filled + count] = self.corpus.bytes[first : first + count]
                scored = min(count, end - first)
                following = self.corpus.bytes[first + 1 : first + 1 + scored]
                block.targets[row, filled : filled + scored] = following
            filled += count

    def _options(self) -> dict[str, Any]:
        return {"bytes": len(self.corpus.bytes), "sha256": self.corpus.sha256}

    def _inner_state(self) -> dict[str, Any]:
        return {}

    def _load_inner_state(self, state: dict[str, Any]) -> None:
        pass
