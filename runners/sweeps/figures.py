"""Figures of sweeps: success by memory held, and success by training and test length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from memory_suite.runners.plotting.matplotlib_style import paper_style
from memory_suite.runners.sweeps.results import TableRow, score_column, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which color-blind eyes can tell apart; the markers say the same in black and white.
LOOKS = {
    "expire-span": ("Expire-Span", "#0072B2", "o"),
    "transformer-xl": ("Transformer-XL", "#D55E00", "s"),
    "compressive": ("Compressive", "#009E73", "^"),
    "adaptive-span": ("Adaptive-Span", "#CC79A7", "D"),
    "none": ("no memory", "#666666", ""),
}
LABEL_PLACES = {"o": (-3, 5, "right"), "s": (3, -9, "left"), "^": (3, 5, "left"), "D": (-3, -9, "right")}
"""Where the size stands beside a marker, in points: another corner for each memory."""
SCORE_NAMES = {"success": "success (IQM)", "return_mean": "return (IQM)"}


def draw_memory_curves(rows: Sequence[TableRow], caption: str) -> Figure:
    """Score against mean memory held, in rows and in bytes: one curve per memory, a point per size.

    Args:
        rows: table rows with the columns `memory` and `size`.
        caption: text below the figure.
    """
    with paper_style():
        return _memory_curves(rows, caption)


def _memory_curves(rows: Sequence[TableRow], caption: str) -> Figure:
    figure, axes = _subplots(2, 7.2, 3.3)
    points = summary(rows)
    score = score_column(rows)
    for axis, held, unit in zip(axes, ("rows_held", "bytes_held"), ("rows", "KiB"), strict=True):
        for memory, (name, color, marker) in LOOKS.items():
            curve = [point for point in points if point["memory"] == memory]
            if memory == "none":
                _chance_line(axis, curve, score, name, color)
            else:
                _curve(axis, curve, score, held, color=color, marker=marker, label=name)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_xlabel(f"mean memory held ({unit})")
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_ylabel(SCORE_NAMES[score])
    if score == "success":
        axes[0].set_ylim(-0.02, 1.04)
        _percent(axes[0])
    shown = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    names = [name for name, _, _ in LOOKS.values() if name in shown]
    handles = [shown[name] for name in names]
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=8)
    _caption(figure, f"{caption}; small numbers are sizes")
    return figure


def _curve(axis: Axes, points: Sequence[TableRow], score: str, held: str, **look: Any) -> None:
    if not points:
        return
    points = sorted(points, key=lambda point: _number(point["size"]))
    scale = 1024.0 if held == "bytes_held" else 1.0
    x, x_error = _with_interval(points, f"{held}_mean", scale)
    y, y_error = _with_interval(points, f"{score}_iqm", 1.0)
    axis.errorbar(
        x, y, y_error, x_error, **look, markersize=4.5, linewidth=1.3, elinewidth=0.9, capsize=2, alpha=0.9
    )
    right, up, side = LABEL_PLACES[look["marker"]]
    for point, at in zip(points, zip(x, y, strict=True), strict=True):
        axis.annotate(
            f"{point['size']}",
            at,
            xytext=(right, up),
            textcoords="offset points",
            ha=side,
            fontsize=6,
            color=look["color"],
        )


def _chance_line(axis: Axes, points: Sequence[TableRow], score: str, name: str, color: str) -> None:
    """Draw the memory-free baseline as a line, since a logarithmic axis has no zero."""
    for point in points:
        axis.axhline(_number(point[f"{score}_iqm"]), color=color, linestyle="--", linewidth=1.0, label=name)
        if point[f"{score}_iqm_low"] is not None:
            low, high = (_number(point[f"{score}_iqm_{end}"]) for end in ("low", "high"))
            axis.axhspan(low, high, color=color, alpha=0.12, linewidth=0)


def draw_length_maps(rows: Sequence[TableRow], caption: str) -> Figure:
    """Score of agents trained on one range of lengths and tested on another: a heat map per memory.

    Args:
        rows: table rows with the columns `memory`, `train_min`, `train_max`, `test_min` and `test_max`.
        caption: text below the figure.
    """
    with paper_style():
        return _length_maps(rows, caption)


def _length_maps(rows: Sequence[TableRow], caption: str) -> Figure:
    points = summary(rows)
    score = score_column(rows)
    memories = [memory for memory in LOOKS if any(point["memory"] == memory for point in points)]
    trained = sorted({_range(point, "train") for point in points})
    tested = sorted({_range(point, "test") for point in points})
    width = 1.3 + len(memories) * (0.5 + 0.78 * len(tested))
    figure, axes = _subplots(len(memories), max(width, 4.0), 1.6 + 0.55 * len(trained))
    scores = [_number(point[f"{score}_iqm"]) for point in points]
    low, high = (0.0, 1.0) if score == "success" else (min(scores), max(scores))
    image: Any = None
    for axis, memory in zip(axes, memories, strict=True):
        cells = np.full((len(trained), len(tested)), np.nan)
        for point in points:
            if point["memory"] == memory:
                row, column = trained.index(_range(point, "train")), tested.index(_range(point, "test"))
                cells[row, column] = _number(point[f"{score}_iqm"])
                _annotate(axis, row, column, point, f"{score}_iqm", low, high)
        image = axis.imshow(cells, cmap="viridis", vmin=low, vmax=high, aspect="auto")
        axis.set_title(LOOKS[memory][0], fontsize=9)
        axis.set_xticks(range(len(tested)), [_range_name(*bounds) for bounds in tested])
        axis.set_yticks(range(len(trained)), [_range_name(*bounds) for bounds in trained])
        axis.set_xlabel("tested on lengths")
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    axes[0].set_ylabel("trained on lengths")
    bar = figure.colorbar(image, ax=axes, label=SCORE_NAMES[score], fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    if score == "success":
        _percent(bar.ax)
    _caption(figure, caption)
    return figure


def _annotate(
    axis: Axes, row: int, column: int, point: TableRow, name: str, lowest: float, highest: float
) -> None:
    """The number in a cell and, below it, its interval."""
    value = _number(point[name])
    color = "black" if (value - lowest) > 0.6 * (highest - lowest) else "white"
    form = ".0%" if name.startswith("success") else ".2f"
    known = point[f"{name}_low"] is not None
    axis.text(
        column, row - (0.12 if known else 0.0), f"{value:{form}}", ha="center", va="center", color=color
    )
    if known:
        low, high = (_number(point[f"{name}_{end}"]) for end in ("low", "high"))
        interval = f"{100 * low:.0f} to {100 * high:.0f}" if form == ".0%" else f"{low:.2f} to {high:.2f}"
        axis.text(column, row + 0.22, interval, ha="center", va="center", color=color, fontsize=6)


def _subplots(columns: int, width: float, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A row of charts that share their vertical axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0].tolist()


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=6.5, color="0.35")


def _percent(axis: Axes) -> None:
    axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")


def _with_interval(
    points: Iterable[TableRow], name: str, scale: float
) -> tuple[list[float], list[list[float]]]:
    """Values, and how far their intervals reach below and above them."""
    values, below, above = [], [], []
    for point in points:
        value = _number(point[name]) / scale
        ends = [
            value if point[f"{name}_{end}"] is None else _number(point[f"{name}_{end}"]) / scale
            for end in ("low", "high")
        ]
        values.append(value)
        below.append(max(0.0, value - ends[0]))
        above.append(max(0.0, ends[1] - value))
    return values, [below, above]


def _range(point: TableRow, which: str) -> tuple[int, int]:
    return int(_number(point[f"{which}_min"])), int(_number(point[f"{which}_max"]))


def _range_name(shortest: int, longest: int) -> str:
    return f"{shortest:,}" if shortest == longest else f"{shortest:,}-{longest:,}"


def _number(value: Any) -> float:
    return float(value)
