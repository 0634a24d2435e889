"""The record of one episode, with the memory at every step, as a file.

The file is a zip of .npy arrays and one `episode.json`, so that `numpy.load` reads all of it without this
package; docs/recording.md describes every member. It contains no pickles.

Names of arrays in the file end in these letters:

    T  steps of the episode              A  parameters of the distribution of actions
    M  memories of a layer, in the order of their births
    N  pairs of a memory and a step that saw it, sorted by memory, then by step
    H  attention heads                   D  size of a memory's content
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_suite.agents.serialization.archive import write_file_atomically

FORMAT = "memory-suite episode"
VERSION = 1
"""version of the file's format; readers refuse higher numbers"""
FRAMES_PER_CHUNK = 32
UNKNOWN_CELL = -(2**31)
"""both coordinates of a cell that the environment does not provide"""

Frame = NDArray[np.uint8]


class EpisodeFileError(ValueError):
    """The file is not an episode record, or this version cannot read it."""


class Retained(NamedTuple):
    """The memories of one layer that one step saw, oldest first."""

    memory: NDArray[np.int64]
    """index into the layer's memories"""
    birth: NDArray[np.int32]
    """step at which it was written"""
    span: NDArray[np.float32]
    """e_i, in steps"""
    remaining: NDArray[np.float32]
    """r_ti = e_i - (t - i), in steps; negative on the ramp"""
    mask: NDArray[np.float32]
    """m_ti, above 0 and at most 1"""
    attention: NDArray[np.float32]
    """a'_ti per head, [memories, H]"""


@dataclass(slots=True)
class LayerRecord:
    """All memories of one layer, from birth to expiry."""

    birth_M: NDArray[np.int32]
    """step at which it was written"""
    span_M: NDArray[np.float32]
    """e_i, in steps"""
    first_M: NDArray[np.int32]
    """first step that saw it"""
    last_M: NDArray[np.int32]
    """last step that saw it; less than `first_M` if no step did"""
    offset_M: NDArray[np.int64]
    """index of the first pair of the memory"""
    remaining_N: NDArray[np.float32]
    """r_ti, in steps"""
    mask_N: NDArray[np.float32]
    """m_ti"""
    attention_NH: NDArray[np.float16]
    """a'_ti per head"""
    content_MD: NDArray[np.float32] | None = None
    """h_i, if contents were recorded; probes insert it into other episodes"""

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""
        return self.attention_NH.shape[1]

    def at(self, step: int) -> Retained:
        """The memories that a step saw."""
        memory = np.flatnonzero((self.first_M <= step) & (step <= self.last_M))
        pair = self.offset_M[memory] + (step - self.first_M[memory])
        return Retained(
            memory,
            self.birth_M[memory],
            self.span_M[memory],
            self.remaining_N[pair],
            self.mask_N[pair],
            self.attention_NH[pair].astype(np.float32),
        )

    def steps_of_pairs(self) -> NDArray[np.int32]:
        """The step of each of the N pairs."""
        counts = self.last_M - self.first_M + 1
        start = np.repeat(self.first_M - self.offset_M, counts)
        steps: NDArray[np.int32] = (start + np.arange(len(self.mask_N))).astype(np.int32)
        return steps

    def memory_of_pairs(self) -> NDArray[np.int64]:
        """The memory of each of the N pairs."""
        return np.repeat(np.arange(len(self.birth_M)), self.last_M - self.first_M + 1)

    def retained_counts(self, num_steps: int) -> NDArray[np.int64]:
        """Number of memories that each step saw, [T]."""
        return np.bincount(self.steps_of_pairs(), minlength=num_steps)[:num_steps]


class FrameStore:
    """Pictures, each stored once, as the difference from the one before it."""

    def __init__(self) -> None:
        """Start empty."""
        self._known: dict[bytes, int] = {}
        self._firsts: list[int] = []
        self._chunks: list[Callable[[], NDArray[np.uint8]]] = []
        self._open: list[Frame] = []
        self._count = 0
        self._decoded: tuple[int, NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return self._count

    def add(self, frame: Frame) -> int:
        """Add a picture [height, width, 3]; returns its number, the same for equal pictures."""
        frame = np.ascontiguousarray(frame, dtype=np.uint8)
        digest = hashlib.blake2b(frame.tobytes(), digest_size=16, person=repr(frame.shape).encode()[:16])
        number = self._known.setdefault(digest.digest(), self._count)
        if number == self._count:
            if self._open and (len(self._open) == FRAMES_PER_CHUNK or self._open[0].shape != frame.shape):
                self._close_chunk()
            self._open.append(frame.copy())
            self._count += 1
        return number

    def __getitem__(self, number: int) -> Frame:
        """The picture with a number."""
        if not 0 <= number < self._count:
            raise IndexError(f"frame {number} of {self._count}")
        first_open = self._count - len(self._open)
        if number >= first_open:
            return self._open[number - first_open]
        index = int(np.searchsorted(self._firsts, number, side="right")) - 1
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = index, np.cumsum(self._chunks[index](), axis=0, dtype=np.uint8)
        picture: Frame = self._decoded[1][number - self._firsts[index]]
        return picture

    def _close_chunk(self) -> None:
        chunk = np.stack(self._open)
        chunk[1:] -= chunk[:-1].copy()
        packed, shape = zlib.compress(chunk.tobytes(), 1), chunk.shape
        self._firsts.append(self._count - len(self._open))
        self._chunks.append(lambda: _unpacked(packed, shape))
        self._open = []

    def chunks(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """First number and differences of each chunk: `cumsum(axis=0, dtype=uint8)` gives the pictures."""
        if self._open:
            self._close_chunk()
        for first, read in zip(self._firsts, self._chunks, strict=True):
            yield first, read()

    @classmethod
    def from_file(cls, path: Path, firsts: list[int], count: int) -> FrameStore:
        """Pictures in a file, which are read on access."""
        store = cls()
        store._firsts, store._count = firsts, count
        store._chunks = [_reader(path, _chunk_name(index)) for index in range(len(firsts))]
        return store


@dataclass(slots=True)
class EpisodeRecord:
    """One episode. Arrays have an entry for each step (T), or also one for after the last step (T + 1)."""

    facts: dict[str, Any]
    """where it was played and how it ended, as plain types (docs/recording.md)"""
    action_T: NDArray[Any]
    reward_T: NDArray[np.float32]
    value_T: NDArray[np.float32]
    log_prob_T: NDArray[np.float32]
    choice_TA: NDArray[np.float32]
    """parameters of kind `facts["choice"]`: "probabilities" of actions, or "mean and deviation" of a Box"""
    cue_T: NDArray[np.int32]
    """number of the cue in sight; 0: none"""
    cell_T1: NDArray[np.int32]
    """[T + 1, 2] world cell x, y of the agent, or `UNKNOWN_CELL`"""
    origin_T1: NDArray[np.int32]
    """[T + 1, 2] world cell in the upper left corner of the picture"""
    frame_T1: NDArray[np.int32]
    """[T + 1] number of the picture; -1: none"""
    layers: list[LayerRecord]
    frames: FrameStore = field(default_factory=FrameStore)
    lines: list[str] | None = None
    """T + 1 lines of text, if the environment has any"""

    @property
    def num_steps(self) -> int:
        """Number of steps."""
        return len(self.reward_T)

    @property
    def ramp(self) -> int:
        """Length R of the ramp, in steps."""
        return int(self.facts["ramp"])

    @property
    def tile(self) -> int:
        """Pixels per world cell in the pictures; 0: unknown."""
        return int(self.facts["tile"])

    @property
    def knows_cells(self) -> bool:
        """Whether the environment provides the agent's position."""
        return bool((self.cell_T1 != UNKNOWN_CELL).all())

    def frame(self, step: int) -> Frame | None:
        """The picture before a step (T: after the last one)."""
        number = int(self.frame_T1[step])
        return None if number < 0 else self.frames[number]

    def save(self, path: Path) -> None:
        """Write the file; its name should end in .npz."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            facts: dict[str, Any] = {"format": FORMAT, "version": VERSION, **self.facts}
            facts["num_layers"] = len(self.layers)
            facts["num_frames"] = len(self.frames)
            facts["lines"] = self.lines
            facts["frame_chunks"] = []
            for index, (first, chunk) in enumerate(self.frames.chunks()):
                facts["frame_chunks"].append(first)
                _write_array(archive, _chunk_name(index), chunk)
            for name in _ARRAYS:
                _write_array(archive, f"{name}.npy", getattr(self, f"{name}_{_ARRAYS[name]}"))
            for number, layer in enumerate(self.layers, start=1):
                for part in fields(LayerRecord):
                    array = getattr(layer, part.name)
                    if array is not None:
                        _write_array(archive, f"layer{number}/{part.name.rsplit('_', 1)[0]}.npy", array)
            archive.writestr("episode.json", json.dumps(facts, allow_nan=False))
        write_file_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> EpisodeRecord:
        """Read a file that `save` wrote; pictures are read on access.

        Raises:
            EpisodeFileError: the file is missing, damaged or not an episode record, or a later version
                wrote it.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                facts = json.loads(archive.read("episode.json"))
                if facts.get("format") != FORMAT:
                    raise EpisodeFileError(f"{path} is no episode record")
                if facts["version"] > VERSION:
                    raise EpisodeFileError(
                        f"{path} has version {facts['version']} of the format, this reads up to {VERSION}; "
                        "update memory-suite"
                    )
                arrays = {f"{name}_{_ARRAYS[name]}": _read_array(archive, f"{name}.npy") for name in _ARRAYS}
                names = set(archive.namelist())
                layers = [_read_layer(archive, names, number) for number in range(1, facts["num_layers"] + 1)]
        except EpisodeFileError:
            raise
        except FileNotFoundError:
            raise EpisodeFileError(f"there is no file {path}") from None
        except _MALFORMED as error:
            raise EpisodeFileError(f"{path} is no episode record, or a damaged one: {error}") from error
        lines = facts.pop("lines")
        frames = FrameStore.from_file(path, facts.pop("frame_chunks"), facts.pop("num_frames"))
        for name in ("format", "version", "num_layers"):
            del facts[name]
        return cls(facts=facts, **arrays, layers=layers, frames=frames, lines=lines)


_MALFORMED = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""errors from reading a damaged or crafted file; RuntimeError: it is encrypted, or nested too deeply"""

_ARRAYS: Mapping[str, str] = {
    "action": "T",
    "reward": "T",
    "value": "T",
    "log_prob": "T",
    "choice": "TA",
    "cue": "T",
    "cell": "T1",
    "origin": "T1",
    "frame": "T1",
}
"""members of the file that are fields of `EpisodeRecord`, with the shape letters of the field"""


def _read_layer(archive: zipfile.ZipFile, names: set[str], number: int) -> LayerRecord:
    parts: dict[str, Any] = {}
    for part in fields(LayerRecord):
        name = f"layer{number}/{part.name.rsplit('_', 1)[0]}.npy"
        parts[part.name] = (
            None if part.name == "content_MD" and name not in names else _read_array(archive, name)
        )
    return LayerRecord(**parts)


def _chunk_name(index: int) -> str:
    return f"frames/{index:05d}.npy"


def _write_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _reader(path: Path | str | os.PathLike[str], name: str) -> Callable[[], NDArray[np.uint8]]:
    def read() -> NDArray[np.uint8]:
        with zipfile.ZipFile(path) as archive:
            return _read_array(archive, name)

    return read


def _unpacked(packed: bytes, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape)
