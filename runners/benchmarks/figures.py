"""The picture of a benchmark: one panel for each table that has something to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from memory_suite.runners.benchmarks import acting, environments, ranks, time_to_solve, training
from memory_suite.runners.benchmarks.tables import Spread, Table
from memory_suite.runners.plotting.matplotlib_style import paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, THEIRS = "#0072B2", "#999999"
"""Okabe and Ito's blue for what is ours, grey for the rest"""
TIME, HELD, PROCESS = ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^")
PANEL_INCHES = (4.3, 2.9)
MOST_COLUMNS = 3
OURS_MARKS = ("ours", "our ", "ranks")


def draw(tables: Sequence[Table], caption: str) -> Figure:
    """All panels.

    Args:
        tables: those that were measured.
        caption: small print below.
    """
    from matplotlib.figure import Figure

    named = {table.name: table for table in tables}
    panels = [
        (title, name, column)
        for title, name, column in (
            ("environment steps/s", environments.NAME, environments.SPEED),
            ("training steps/s", training.NAME, training.SPEED),
            ("peak memory of training (MiB)", training.NAME, training.MEMORY),
            ("acting as an episode grows", acting.BY_AGE, None),
            ("acting as the maximum span grows", acting.BY_SPAN, None),
            ("samples/s of several processes", ranks.NAME, ranks.SPEED),
            ("seconds until solved (hatched: given up)", time_to_solve.NAME, time_to_solve.SECONDS),
        )
        if name in named
    ]
    columns = min(MOST_COLUMNS, max(1, len(panels)))
    rows = -(-len(panels) // columns) or 1
    with paper_style():
        size = (columns * PANEL_INCHES[0], rows * PANEL_INCHES[1])
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        for axis, (title, name, column) in zip(axes, panels, strict=False):
            axis.set_title(title, fontsize=9)
            if column is None:
                _growth(axis, named[name])
            else:
                _bars(axis, named[name], column, logarithmic=name == environments.NAME)
        figure.supxlabel(
            f"{caption}; bars and points are medians, lines the range of all rounds", fontsize=6.5
        )
    return figure


def _bars(axis: Axes, table: Table, column: str, *, logarithmic: bool) -> None:
    """A bar for each row, with its range and its number."""
    names = [name for name in table.rows if column in table.rows[name]]
    for place, name in enumerate(names):
        row = table.rows[name]
        spread = _spread(row[column])
        ours = any(mark in name for mark in OURS_MARKS)
        unsolved = str(row.get(time_to_solve.SOLVED, "")).startswith("0 of")
        error = [[spread.median - spread.lowest], [spread.highest - spread.median]]
        axis.barh(
            place,
            spread.median,
            xerr=error,
            color=OURS if ours else THEIRS,
            alpha=0.8,
            hatch="///" if unsolved else None,
            error_kw={"elinewidth": 0.9, "capsize": 2},
        )
        digits = 0 if spread.median >= 10 else 1
        text = f"{spread.median:,.{digits}f}"
        axis.annotate(
            text, (spread.highest, place), (4, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.invert_yaxis()
    if logarithmic:
        axis.set_xscale("log")
    else:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.margins(x=0.18)
    axis.tick_params(axis="x", labelsize=7)


def _growth(axis: Axes, table: Table) -> None:
    """Lines for every column of ratios against the first row."""
    x = [int("".join(letter for letter in name if letter.isdigit())) for name in table.rows]
    columns = [column for column in next(iter(table.rows.values())) if " against " in column]
    for column, (color, marker) in zip(columns, (TIME, HELD, PROCESS), strict=False):
        spreads = [_spread(row[column]) for row in table.rows.values()]
        middle = [spread.median for spread in spreads]
        error = [
            [spread.median - spread.lowest for spread in spreads],
            [spread.highest - spread.median for spread in spreads],
        ]
        what, _, first = column.partition(" against ")
        axis.errorbar(x, middle, error, color=color, marker=marker, markersize=4, capsize=2, label=what)
    axis.axhline(1.0, color="0.8", linewidth=0.8, zorder=0)
    axis.set_xscale("log")
    axis.set_xticks(x, [_short(value) for value in x])
    axis.minorticks_off()
    axis.set_ylim(0.0, max(1.5, axis.get_ylim()[1]))
    axis.set_ylabel(f"ratio against {first}", fontsize=8)
    axis.set_xlabel("maximum span" if table.name == acting.BY_SPAN else "steps of the episode", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.legend(frameon=False, fontsize=7, loc="lower left")


def _short(count: int) -> str:
    """1,000 as 1k, and so is 1,024; 1,000,000 as 1M."""
    for unit, sizes in (("M", (10**6,)), ("k", (10**3, 2**10))):
        for size in sizes:
            if count % size == 0:
                return f"{count // size}{unit}"
    return f"{count:,}"


def _spread(cell: Spread | str) -> Spread:
    assert isinstance(cell, Spread)
    return cell
