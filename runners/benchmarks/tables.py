"""Interleaved measurements, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name")
T = TypeVar("T")


def interleaved(measurements: Mapping[Name, Callable[[], T]], rounds: int) -> dict[Name, list[T]]:
    """Results of each measurement by round; measurements alternate, so a busy machine slows all of them."""
    found: dict[Name, list[T]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            found[name].append(measure())
    return found


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one quantity."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the values."""
        return float(np.median(self.values))

    @property
    def lowest(self) -> float:
        """Smallest value."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """Largest value."""
        return max(self.values)

    def against(self, other: Spread) -> Spread:
        """The ratio in each round."""
        return Spread(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 3
        ends = f" ({self.lowest:,.{digits}f} to {self.highest:,.{digits}f})" if len(self.values) > 1 else ""
        return f"{self.median:,.{digits}f}{ends}"

    def to_json(self) -> dict[str, Any]:
        """All values in plain types."""
        ends = {"lowest": self.lowest, "highest": self.highest}
        return {"median": self.median, **ends, "values": list(self.values)}


Rows = dict[str, dict[str, Spread | str]]
"""cells by row, then by column (named with its unit)"""


@dataclass(frozen=True, slots=True)
class Table:
    """Results of one part of the benchmark."""

    name: str
    conditions: str
    """conditions that all rows share"""
    rows: Rows

    def lines(self) -> Iterator[str]:
        """The table in Markdown, with aligned columns."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        cells = [[self.name, *columns]]
        cells += [
            [name, *(str(row.get(column, "")) for column in columns)] for name, row in self.rows.items()
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, ["-" * width for width in widths])
        yield f"{self.conditions}:"
        yield ""
        for row in cells:
            padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield f"| {' | '.join(padded)} |"
        yield ""

    def to_json(self) -> dict[str, Any]:
        """All values in plain types."""
        rows = {
            name: {column: cell if isinstance(cell, str) else cell.to_json() for column, cell in row.items()}
            for name, row in self.rows.items()
        }
        return {"conditions": self.conditions, "rows": rows}
