"""Mean spans that a sequence model gives to each kind of token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.instruction.grammar import VOCABULARY
from memory_suite.envs.streams.collision import FRAME_TOKENS
from memory_suite.envs.streams.copying import CopyRules
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.text import NUM_BYTE_VALUES
from memory_suite.runners.sequences.analysis.colored_text import byte_name

FRAME_NAMES = (
    *[f"{part} of particle {particle}" for particle in (0, 1) for part in ("row", "column", "color")],
    "color asked of particle 0", "color asked of particle 1",
)  # fmt: skip
RARE = 5
"""occurrences below which a mean span says little"""


@dataclass(frozen=True, slots=True)
class SpanRow:
    """Tokens of one kind."""

    name: str
    count_K: NDArray[np.int64]
    span_LK: NDArray[np.float64]
    """mean span; not a number where there are no such tokens"""


@dataclass(frozen=True, slots=True)
class SpanTable:
    """Mean spans by kind of token."""

    title: str
    groups: tuple[str, ...]
    """into which all kinds are divided; one without a name: they are not"""
    rows: list[SpanRow]

    @classmethod
    def of(
        cls,
        title: str,
        names: Sequence[str],
        kind: NDArray[np.int64],
        span: NDArray[np.float64],
        groups: Sequence[str] = ("",),
        group: NDArray[np.int64] | None = None,
    ) -> SpanTable:
        """Sort tokens by their kinds.

        Args:
            title: what the kinds are.
            names: of the kinds; only those that occur become rows.
            kind: of each token, any shape.
            span: of each token, the same shape after that of layers.
            groups: names of further classes.
            group: of each token; None: all are in the first.
        """
        group = np.zeros_like(kind) if group is None else group
        place = (kind * len(groups) + group).ravel()
        size = len(names) * len(groups)
        count = np.bincount(place, minlength=size)
        total = np.stack([np.bincount(place, layer.ravel(), minlength=size) for layer in span])
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        count_VK = count.reshape(len(names), len(groups))
        span_LVK = mean.reshape(-1, *count_VK.shape)
        rows = [
            SpanRow(name, count_VK[row], span_LVK[:, row])
            for row, name in enumerate(names)
            if count_VK[row].any()
        ]
        return cls(title, tuple(groups), rows)

    def longest_first(self, least: int = 1) -> SpanTable:
        """Sorted by the longest mean, without kinds that occur less often than `least`."""
        rows = [row for row in self.rows if row.count_K.sum() >= least]
        return SpanTable(self.title, self.groups, sorted(rows, key=lambda row: -np.nanmax(row.span_LK)))


def span_table_of_text(text: bytes, span_LN: NDArray[np.float64]) -> SpanTable:
    """Mean spans by byte value, the longest first."""
    names = [byte_name(value) for value in range(NUM_BYTE_VALUES)]
    kind = np.frombuffer(text, dtype=np.uint8).astype(np.int64)
    return SpanTable.of("byte", names, kind, span_LN).longest_first(RARE)


def span_table_of_stream(
    stream: GeneratedStream, token_BT: NDArray[np.int64], span_LBT: NDArray[np.float64]
) -> SpanTable:
    """Mean spans by place in the frame (collision), or by token."""
    if stream.name == "collision":
        return _span_table_of_frames(token_BT, span_LBT)
    table = SpanTable.of("token", _token_names(stream), token_BT, span_LBT)
    return table.longest_first()


def _span_table_of_frames(token_BT: NDArray[np.int64], span_LBT: NDArray[np.float64]) -> SpanTable:
    # Rows start with a frame, and restart with one.
    used = token_BT.shape[1] // FRAME_TOKENS * FRAME_TOKENS
    frame_BFP = token_BT[:, :used].reshape(len(token_BT), -1, FRAME_TOKENS)
    collides_BF = (frame_BFP[..., :2] == frame_BFP[..., 3:5]).all(-1)
    return SpanTable.of(
        "token of a frame",
        FRAME_NAMES,
        np.broadcast_to(np.arange(FRAME_TOKENS), frame_BFP.shape),
        span_LBT[:, :, :used],
        ("collision", "none"),
        np.broadcast_to(np.where(collides_BF, 0, 1)[..., None], frame_BFP.shape),
    )


def _token_names(stream: GeneratedStream) -> list[str]:
    if isinstance(stream.rules, CopyRules):
        rules = stream.rules
        own = rules.noise == "separate"
        kinds = ("symbol", "noise") if own else ("symbol or noise",)
        symbols = [f"{kind} {number}" for kind in kinds for number in range(rules.alphabet_size)]
        return [*symbols, "START", "CUE"]
    return list(VOCABULARY)
