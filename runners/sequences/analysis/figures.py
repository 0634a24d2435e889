"""Pictures of a sequence model's memory: charts, and text as characters on colored cells.

matplotlib is imported where something is drawn: it is an extra.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from memory_suite.runners.plotting.palette import FAINT_INK, INK, RULE, black_or_white
from memory_suite.runners.sequences.analysis.colored_text import REST, Cell, Scale, tick_name
from memory_suite.runners.sequences.analysis.measure import EditEffect
from memory_suite.runners.sequences.evaluation import SequenceScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Okabe and Ito's colors, told apart by color-blind eyes; line styles tell them apart in grey.
BLUE, ORANGE = "#0072b2", "#d55e00"
LAYER_COLORS = (ORANGE, "#009e73", "#cc79a7", "#e69f00")
LAYER_STYLES = ("--", ":", "-.")
COLUMNS = 100
"""characters of a line"""
MOST_LINES = 90
_CELL_INCHES = (0.085, 0.165)
_LETTER_POINTS = 9.0
_HEX_POINTS = 4.6
_PAPER_EDGE_INCHES = 0.25
_HEAD_INCHES = 1.15
_MOST_TITLE_LETTERS = 96


# -- text ---------------------------------------------------------------------------------------------


def draw_text(
    cells: Sequence[Cell],
    values: NDArray[np.float64],
    scale: Scale,
    *,
    title: str,
    note: str,
    marked: Iterable[int] = (),
) -> Figure:
    """Characters on cells, each colored by its number; at most `MOST_LINES` lines of them.

    Args:
        cells: one for each byte.
        values: their numbers; a cell whose number is none stays white.
        scale: the colors.
        title: what is shown.
        note: small print below it.
        marked: cells with a frame around them.
    """
    from matplotlib.figure import Figure

    place = _places(cells)
    place = place[place[:, 0] < MOST_LINES]
    cells, values = cells[: len(place)], values[: len(place)]
    lines = int(place[-1, 0]) + 1
    color = np.full((lines, COLUMNS, 3), 255.0)
    index = scale.index(values)
    known = index >= 0
    color[place[known, 0], place[known, 1]] = scale.palette_P3[index[known]]
    width = COLUMNS * _CELL_INCHES[0] + 2 * _PAPER_EDGE_INCHES
    height = lines * _CELL_INCHES[1] + _HEAD_INCHES + _PAPER_EDGE_INCHES
    figure = Figure(figsize=(width, height))
    left, bottom = _PAPER_EDGE_INCHES / width, _PAPER_EDGE_INCHES / height
    axis = figure.add_axes(
        (left, bottom, COLUMNS * _CELL_INCHES[0] / width, lines * _CELL_INCHES[1] / height)
    )
    axis.imshow(
        color.astype(np.uint8),
        extent=(0, COLUMNS, lines, 0),
        aspect="auto",
        interpolation="nearest",
    )
    axis.axis("off")
    for line, column in place[[number for number in marked if number < len(place)]]:
        axis.add_patch(_frame(column, line))
    dark = black_or_white(color[place[:, 0], place[:, 1]])
    _letters(axis, cells, place, dark)
    title = textwrap.shorten(title, _MOST_TITLE_LETTERS, placeholder=" ...")
    for text, size, shade, down in ((title, 11, INK, 0.3), (note, 7.5, FAINT_INK, 0.5)):
        figure.text(
            left,
            1 - down / height,
            _in_font(text),
            fontsize=size,
            color=_rgb(shade),
            va="baseline",
            parse_math=False,
        )
    _color_bar(figure, scale, (left, 1 - 0.92 / height, 3.6 / width, 0.13 / height))
    return figure


def _places(cells: Sequence[Cell]) -> NDArray[np.int64]:
    """Line and column of each cell."""
    place, line, column = [], 0, 0
    for cell in cells:
        if column == COLUMNS:
            line, column = line + 1, 0
        place.append((line, column))
        line, column = (line + 1, 0) if cell.kind == "newline" else (line, column + 1)
    return np.array(place, dtype=np.int64).reshape(-1, 2)


def _frame(column: int, line: int) -> Patch:
    from matplotlib.patches import Rectangle

    return Rectangle((column, line), 1, 1, fill=False, edgecolor="black", linewidth=0.8)


def _letters(axis: Axes, cells: Sequence[Cell], place: NDArray[np.int64], dark: NDArray[np.bool_]) -> None:
    """Draw the labels as shapes, each letter once for all its places: thousands of texts would take long."""
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import Affine2D

    figure = axis.figure
    points = Affine2D().scale(1 / 72) + figure.dpi_scale_trans
    groups: dict[tuple[str, bool], list[int]] = {}
    for number, cell in enumerate(cells):
        if cell.label != " ":
            groups.setdefault((_drawable(cell), bool(dark[number])), []).append(number)
    for (label, is_dark), members in groups.items():
        offsets = place[members][:, ::-1] + np.array([0.5, 0.76])
        axis.add_collection(
            PathCollection(
                [_shape(label)],
                offsets=offsets,
                offset_transform=axis.transData,
                transform=points,
                facecolors=_label_color(label, dark=is_dark),
                linewidths=0,
            ),
            autolim=False,
        )


def _label_color(label: str, *, dark: bool) -> tuple[float, float, float, float]:
    """Marks that stand for no character are fainter."""
    shade = 0.0 if dark else 1.0
    return (shade, shade, shade, 0.55 if label == REST else 1.0)


def _drawable(cell: Cell) -> str:
    """The label, or its bytes in hexadecimal if the font has no such character."""
    from matplotlib.font_manager import get_font

    if len(cell.label) > 1 or get_font(_font_file()).get_char_index(ord(cell.label)):
        return cell.label
    return cell.label.encode("utf-8")[:1].hex()


def _font_file() -> str:
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties(family="DejaVu Sans Mono")))  # matplotlib brings it along


def _shape(label: str) -> Any:
    """A label as a path in points, centered above its baseline."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    size = _LETTER_POINTS if len(label) == 1 else _HEX_POINTS
    path = TextPath((0, 0), label, size=size, prop=FontProperties(fname=_font_file()))
    advance = 0.602 * size * len(label)
    return path.transformed(Affine2D().translate(-advance / 2, 0.0))


def _color_bar(figure: Figure, scale: Scale, where: tuple[float, float, float, float]) -> None:
    axis = figure.add_axes(where)
    axis.imshow(scale.palette_P3[None].astype(np.uint8), extent=(0, 1, 0, 1), aspect="auto")
    axis.set_yticks([])
    ticks = scale.ticks()
    axis.set_xticks(scale.position(ticks).tolist(), [tick_name(tick) for tick in ticks])
    axis.tick_params(labelsize=6.5, length=2, pad=1.5, color=_rgb(FAINT_INK), labelcolor=_rgb(INK))
    axis.set_title(scale.label, fontsize=7.5, loc="left", pad=3, color=_rgb(INK))
    axis.spines[:].set_color(_rgb(RULE))


# -- charts -------------------------------------------------------------------------------------------


def quality(score: SequenceScore) -> float:
    """Quantity of a curve: bits per byte of a text, the error of another task."""
    return score.bits if score.task == "text" else 1.0 - score.accuracy


def quality_name(score: SequenceScore) -> str:
    """Its name."""
    return "bits per byte" if score.task == "text" else "error"


def memories_held(score: SequenceScore) -> float:
    """Memories of a row, all layers together."""
    return sum(score.retained_mean)


def draw_max_spans(curve: Mapping[int, SequenceScore], note: str, *, narrow: bool = False) -> Figure:
    """The loss against the maximum span, and against the memory that is then held.

    Args:
        curve: what was found under each maximum span.
        note: small print below.
        narrow: one panel below the other.
    """
    spans = sorted(curve)
    scores = [curve[span] for span in spans]
    found = [quality(score) for score in scores]
    held = [memories_held(score) for score in scores]
    figure, axes = _panels(2, narrow)
    for axis, numbers, label in (
        (axes[0], np.array(spans), "maximum span at evaluation (steps)"),
        (axes[1], np.array(held), "mean memory held (memories, all layers)"),
    ):
        axis.plot(numbers, found, "o-", color=BLUE, markersize=5, linewidth=1.4)
        axis.set_xlabel(label)
        axis.set_ylabel(quality_name(scores[0]))
        axis.margins(y=0.12)
        axis.grid(color="0.92", linewidth=0.6)
        axis.set_axisbelow(True)
    axes[0].set_xscale("log", base=4)
    axes[0].set_xticks(spans, [f"{span:,}" for span in spans], rotation=0 if len(spans) < 8 else 45)
    axes[0].minorticks_off()
    for number, (span, x, y) in enumerate(zip(reversed(spans), reversed(held), reversed(found), strict=True)):
        # The longest spans are often hardly used, and their points close together: labels on both sides.
        place, side = ((4, 5), "left") if number % 2 == 0 else ((-4, -10), "right")
        axes[1].annotate(f"{span:,}", (x, y), xytext=place, textcoords="offset points", fontsize=7, ha=side)
    axes[1].set_xlim(0, 1.12 * max(held))
    if scores[0].task != "text":
        chance = scores[0].chance_accuracy
        for axis in axes:
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
            if chance is not None:
                axis.axhline(1 - chance, color="0.5", linestyle="--", linewidth=1, label="chance")
        if chance is not None:
            axes[0].legend(fontsize=8, frameon=False)
    _note(figure, f"{note}; numbers at points are maximum spans", narrow)
    return figure


def draw_edit(effect: EditEffect, ramp: int, note: str, *, narrow: bool = False) -> Figure:
    """How much predictions change against how far behind the edit they are.

    Args:
        effect: of the edit.
        ramp: steps after its span for which a memory still fades.
        note: small print below.
        narrow: for a narrow screen.
    """
    distance, size = effect.by_distance()
    figure, (axis,) = _panels(1, narrow)
    floor = 1e-7
    axis.plot(distance, np.maximum(size, floor), ".", color=BLUE, markersize=2.5, alpha=0.5, label="a byte")
    middle, mean = _binned(distance, size)
    axis.plot(middle, np.maximum(mean, floor), "-", color="black", linewidth=1.5, label="mean")
    for layer in range(len(effect.before.span_LN)):
        color, style = (looks[layer % len(looks)] for looks in (LAYER_COLORS, LAYER_STYLES))
        kept = effect.longest_kept(layer) + ramp
        axis.axvline(kept, color=color, linestyle=style, linewidth=1.3, label=f"gone from layer {layer + 1}")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_xlabel("distance from the edit (bytes)")
    axis.set_ylabel("|difference of the loss| (bits)")
    axis.grid(color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8, loc="lower left", frameon=True, edgecolor="none")
    _note(figure, f"{note}; no difference at all is drawn at {floor:g}", narrow)
    return figure


def _binned(
    distance: NDArray[np.int64], size: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means over bins of equal width on a logarithmic axis."""
    if not len(distance):
        return np.zeros(0), np.zeros(0)
    edges = np.unique(np.ceil(np.geomspace(1, len(distance) + 1, 40)).astype(np.int64))
    counts = np.diff(edges)
    mean = np.add.reduceat(size, edges[:-1] - 1) / counts
    return np.sqrt(edges[:-1] * (edges[1:] - 1.0)), mean


def _panels(count: int, narrow: bool) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    if narrow:
        figure = Figure(figsize=(3.9, 3.1 * count + 0.2), layout="constrained")
        return figure, figure.subplots(count, 1, squeeze=False)[:, 0].tolist()
    figure = Figure(figsize=(8.8, 3.5), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0].tolist()


def _note(figure: Figure, text: str, narrow: bool) -> None:
    # Names of files are no mathematics, whatever dollar signs they have.
    lines = textwrap.wrap(_in_font(text), 60 if narrow else 150)
    figure.supxlabel("\n".join(lines), fontsize=6.5, color="0.35", parse_math=False)


def _in_font(text: str) -> str:
    """Names may have characters that the font has not: they are replaced, without a warning for each."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    return "".join(letter if font.get_char_index(ord(letter)) else "\ufffd" for letter in text)


def _rgb(color: tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(part / 255 for part in color)
