"""Text with a number for each byte: how bytes are shown and numbers colored, in pictures and pages alike.

A model of bytes has a memory and a loss for each of them, so each has a cell of its own. A character of
several bytes stands in the cell of its first one; the others are marked as belonging to it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memory_suite.runners.plotting.palette import difference_color, span_color

CellKind = Literal["plain", "newline", "tab", "rest", "hex"]
NEWLINE = "\u21b5"
TAB = "\u21e5"
REST = "\u00b7"
_NAMES = {9: "tab", 10: "newline", 13: "carriage return", 32: "space"}
SPAN_LABEL = "span (steps)"
_PALETTE_SIZE = 64
_SPAN_PALETTE = span_color(np.geomspace(1.0, 2.0, _PALETTE_SIZE), 2.0)
_LEAST_RATIO = 4.0
"""of the ends of a scale: equal spans have equal colors, however finely they could be told apart"""
_MOST_TICKS = 6


class Cell(NamedTuple):
    """Display form of one byte."""

    label: str
    kind: CellKind
    """"rest": belongs to the character before; "hex": no character, or none that can be seen"""


def cells_of(text: bytes) -> list[Cell]:
    """One cell for each byte."""
    cells: list[Cell] = []
    while len(cells) < len(text):
        cells.extend(_next_cells(text, len(cells)))
    return cells


def _next_cells(text: bytes, place: int) -> list[Cell]:
    if text[place] == ord("\n"):
        return [Cell(NEWLINE, "newline")]
    if text[place] == ord("\t"):
        return [Cell(TAB, "tab")]
    for size in range(1, 5):
        try:
            character = text[place : place + size].decode("utf-8")
        except UnicodeDecodeError:
            continue
        # A mark would be drawn onto the character before it, which has a number of its own.
        if len(character) == 1 and character.isprintable() and unicodedata.category(character)[0] != "M":
            return [Cell(character, "plain"), *[Cell(REST, "rest")] * (size - 1)]
        break
    return [Cell(f"{text[place]:02x}", "hex")]


def byte_name(value: int) -> str:
    """A byte for people: `e`, `newline`, `0x1b`."""
    return _NAMES.get(value) or (chr(value) if 32 < value < 127 else f"0x{value:02x}")


def tick_name(value: float) -> str:
    """A number beside a palette."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Which color a number has."""

    kind: Literal["log", "both sides"]
    """logarithmic from `low` to `high`; or linear from -`high` to `high`, 0 in the middle"""
    low: float
    high: float
    palette_P3: NDArray[np.float64]
    """colors from the lowest to the highest"""
    label: str
    """what the number is"""

    @classmethod
    def of_spans(cls, span: ArrayLike) -> Scale:
        """From the shortest to the longest but for 1% and 0.1% of them, so that most colors are used."""
        low, high = np.quantile(np.maximum(_known(span), 1.0), [0.01, 0.999])
        return cls("log", float(low), max(float(high), _LEAST_RATIO * float(low)), _SPAN_PALETTE, SPAN_LABEL)

    @classmethod
    def of_differences(cls, difference: ArrayLike, label: str) -> Scale:
        """Numbers of either sign; what lies outside of 99% of them is not told apart."""
        numbers = np.abs(_known(difference))
        high = float(np.quantile(numbers, 0.99)) if len(numbers) else 0.0
        colors = difference_color(np.linspace(-1.0, 1.0, _PALETTE_SIZE + 1))
        return cls("both sides", -max(high, 1e-3), max(high, 1e-3), colors, label)

    @classmethod
    def of_changes(cls, change: ArrayLike, label: str) -> Scale:
        """Sizes of changes, down to those that rounding makes."""
        numbers = _known(change)
        high = max(float(numbers.max()) if len(numbers) else 0.0, 1e-2)
        return cls("log", 1e-4, high, difference_color(np.linspace(0.0, 1.0, _PALETTE_SIZE)), label)

    def position(self, values: ArrayLike) -> NDArray[np.float64]:
        """Where on the palette numbers lie, from 0 to 1."""
        numbers = np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        if self.kind == "log":
            return np.log(numbers / self.low) / np.log(self.high / self.low)
        return (numbers - self.low) / (self.high - self.low)

    def index(self, values: ArrayLike) -> NDArray[np.int64]:
        """Numbers of colors in the palette; -1 where there is nothing to show."""
        numbers = np.asarray(values, dtype=np.float64)
        known = np.isfinite(numbers)
        position = self.position(np.where(known, numbers, self.high)) * (len(self.palette_P3) - 1)
        return np.where(known, np.rint(position).astype(np.int64), -1)

    def ticks(self) -> list[float]:
        """Numbers to be written beside the palette."""
        if self.kind == "both sides":
            return [self.low, self.low / 2, 0.0, self.high / 2, self.high]
        if self.low < 1.0:
            return [self.low * 10.0**power for power in range(int(np.log10(self.high / self.low) + 1e-9) + 1)]
        first, last = (np.log2(self.low) - 1e-9, np.log2(self.high) + 1e-9)
        powers = range(int(np.ceil(first)), int(last) + 1)
        return [2.0**power for power in powers[:: -(-len(powers) // _MOST_TICKS)]]


def _known(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]
