"""Measurements in turns, and tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name")
T = TypeVar("T")


def in_turns(rivals: Mapping[Name, Callable[[], T]], rounds: int) -> dict[Name, list[T]]:
    """What each rival gives in each round; they alternate, so that a busy machine slows all of them."""
    found: dict[Name, list[T]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            found[name].append(rival())
    return found


@dataclass(frozen=True, slots=True)
class Spread:
    """The same thing measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return float(np.median(self.values))

    @property
    def lowest(self) -> float:
        """The smallest one."""
        return min(self.values)

    @property
    def highest(self) -> float:
        """The largest one."""
        return max(self.values)

    def against(self, other: Spread) -> Spread:
        """The ratio in each round."""
        return Spread(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 3
        ends = f" ({self.lowest:,.{digits}f} to {self.highest:,.{digits}f})" if len(self.values) > 1 else ""
        return f"{self.median:,.{digits}f}{ends}"

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        ends = {"lowest": self.lowest, "highest": self.highest}
        return {"median": self.median, **ends, "values": list(self.values)}


Rows = dict[str, dict[str, Spread | str]]
"""What is measured of whom: rows, and in them columns by name (with the unit)."""


@dataclass(frozen=True, slots=True)
class Table:
    """What one part has found."""

    name: str
    conditions: str
    """what was equal for all of them, and what the reader should know"""
    rows: Rows

    def lines(self) -> Iterator[str]:
        """The table in Markdown, readable as it is."""
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
        """Everything, for a file."""
        rows = {
            name: {column: cell if isinstance(cell, str) else cell.to_json() for column, cell in row.items()}
            for name, row in self.rows.items()
        }
        return {"conditions": self.conditions, "rows": rows}
