"""Panels with a time axis: lifelines of memories, counts, values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.record import EpisodeRecord, LayerRecord
from memory_suite.runners.plotting.canvas import draw_diamond, write_text
from memory_suite.runners.plotting.palette import (
    CURSOR,
    CURVE,
    EMPTY,
    FAINT_INK,
    FORECAST,
    INK,
    RULE,
    SECOND_CURVE,
    attention_color,
)
from memory_suite.runners.rendering.panel import AXIS_LEFT, MARGIN, WIDTH, Panel

_FUTURE_COLORS = np.array([EMPTY, FORECAST], dtype=np.uint8)
"""colors of pixels after the cursor: without a memory that exists now, and with one"""


class TimePanel(Panel):
    """A panel whose horizontal axis is time."""

    def __init__(self, record: EpisodeRecord) -> None:
        self.record = record
        self.axis_left = AXIS_LEFT
        self.axis_width = WIDTH - MARGIN - AXIS_LEFT

    def column_of(self, step: float) -> int:
        """Left pixel of a step."""
        return self.axis_left + round(step * self.axis_width / self.record.num_steps)

    def now(self, step: int) -> int:
        """Pixel of the cursor: the end of a step."""
        return self.column_of(min(step + 1, self.record.num_steps))

    def mark(self, image: Image.Image, steps: list[int]) -> None:
        """Draw dashed vertical lines at some steps."""
        pen = ImageDraw.Draw(image)
        for step in steps:
            x = self.now(step) - 1
            for y in range(self.chart_top, self.chart_top + self.chart_height, 6):
                pen.line((x, y, x, y + 2), fill=self.mark_color)

    @property
    def chart_top(self) -> int:
        """Top pixel of the chart."""
        return self.top

    chart_height = 0
    mark_color = FAINT_INK


class LifelinePanel(TimePanel):
    """One bar per memory of a layer, from its birth to its expiry; attention is brightness."""

    mark_color = CURSOR

    def __init__(self, record: EpisodeRecord, number: int, num_layers: int) -> None:
        """Pack the bars into rows and paint the whole chart once.

        Args:
            record: the episode.
            number: number of the layer, from 1.
            num_layers: number of shown layers, which share the height.
        """
        super().__init__(record)
        self.number = number
        self.layer = record.layers[number - 1]
        self.row_M = pack_rows(self.layer, record.num_steps)
        self.rows = int(self.row_M.max(initial=0)) + 1
        max_height = max(90, 300 // num_layers)
        self.row_height = max(1, min(10, max_height // self.rows))
        self.chart_height = min(self.rows * self.row_height, max_height)
        self.height = 24 + self.chart_height + 20
        self._paint()

    @property
    def chart_top(self) -> int:
        return self.top + 24

    def row_box(self, memory: int) -> tuple[int, int]:
        """Top and bottom of a memory's bar in the whole picture, without the gap below it."""
        row = int(self.row_M[memory])
        if self.rows * self.row_height <= self.chart_height:
            gap = 1 if self.row_height >= 4 else 0
            return (
                self.chart_top + row * self.row_height,
                self.chart_top + (row + 1) * self.row_height - gap,
            )
        top = self.chart_top + row * self.chart_height // self.rows
        return top, top + 1

    def _paint(self) -> None:
        """Paint the chart as it looks at the end, and note the first step of each pixel's memory.

        Where several memories or steps share a pixel, it shows the largest attention and mask.
        """
        num_steps, layer = self.record.num_steps, self.layer
        width, height = self.axis_width, self.chart_height
        attention = np.full((height, width), -1.0, dtype=np.float32)
        mask = np.zeros((height, width), dtype=np.float32)
        first = np.full((height, width), np.iinfo(np.int32).max, dtype=np.int32)
        memory_N, step_N = layer.memory_of_pairs(), layer.steps_of_pairs()
        edges = np.round(np.arange(num_steps + 1) * width / num_steps).astype(int)
        brightest_N = layer.attention_NH.max(1).astype(np.float32)
        bounds = np.array([self.row_box(memory) for memory in range(len(self.row_M))]) - self.chart_top
        step_width = max(1, int(np.ceil(width / num_steps)))
        bar_height = int((bounds[:, 1] - bounds[:, 0]).max(initial=1))
        for dy in range(bar_height):
            y_N = bounds[memory_N, 0] + dy
            for dx in range(step_width + 1):
                x_N = edges[step_N] + dx
                inside = (y_N < bounds[memory_N, 1]) & (
                    x_N < np.maximum(edges[step_N + 1], edges[step_N] + 1)
                )
                at = (y_N[inside], np.minimum(x_N[inside], width - 1))
                np.maximum.at(attention, at, brightest_N[inside])
                np.maximum.at(mask, at, layer.mask_N[inside])
                np.minimum.at(first, at, layer.first_M[memory_N[inside]])
        self._first = first
        colors = attention_color(np.maximum(attention, 0.0), mask)
        colors[attention < 0.0] = EMPTY
        self._colors = (colors + 0.5).astype(np.uint8)

    def prepare(self, image: Image.Image) -> None:
        bottom = self.chart_top + self.chart_height
        write_text(image, (self.left, self.chart_top), f"layer {self.number}", 15, FAINT_INK)
        write_text(image, (self.left, self.chart_top + 20), "memories", 15, FAINT_INK)
        caption = "one bar per memory, bright where it is attended to"
        write_text(image, (self.axis_left, self.top), caption, 15, FAINT_INK)
        _draw_time_ticks(image, self, bottom)

    def draw(self, image: Image.Image, step: int) -> None:
        record, seen = self.record, min(step, self.record.num_steps - 1)
        now = self.now(step) - self.axis_left
        shown = self._colors.copy()
        shown[:, now:] = _FUTURE_COLORS[(self._first[:, now:] <= seen).astype(np.intp)]
        image.paste(Image.fromarray(shown), (self.axis_left, self.chart_top))
        pen = ImageDraw.Draw(image)
        for birth in np.flatnonzero(record.cue_T[: seen + 1]).tolist():
            if self.layer.last_M[birth] >= self.layer.first_M[birth] and self.layer.first_M[birth] <= seen:
                top, bottom = self.row_box(birth)
                x = self.column_of(int(self.layer.first_M[birth]))
                size = max(3, min(5, (bottom - top) // 2 + 1))
                draw_diamond(pen, (x - size - 1, (top + bottom) // 2), size)
        if step < record.num_steps:
            x, top, bottom = self.axis_left + now, self.chart_top, self.chart_top + self.chart_height
            pen.line((x, top - 4, x, bottom + 3), fill=CURSOR, width=2)
            pen.line((x, top - 6, x, top - 1), fill=INK, width=2)
            pen.line((x, bottom, x, bottom + 4), fill=INK)
        count = len(self.layer.at(seen).birth)
        text = f"{count:,} retained of {seen:,} possible"
        write_text(image, (WIDTH - MARGIN, self.top), text, 15, anchor="ra")


class CountPanel(TimePanel):
    """Number of retained memories, over the number that a memory without forgetting has."""

    chart_height = 64

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        super().__init__(record)
        self._counts = [(n, record.layers[n - 1].retained_counts(record.num_steps)) for n in layers]
        self.height = self.chart_height + 6
        self._max_count = max([record.num_steps - 1, 1])

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "retained", 15, CURVE)
        write_text(image, (self.left, self.top + 18), "of possible", 15, FAINT_INK)
        write_text(
            image, (self.axis_left - 6, self.top - 4), f"{self._max_count:,}", 13, FAINT_INK, anchor="ra"
        )
        pen = ImageDraw.Draw(image)
        bottom = self.top + self.chart_height
        num_steps = self.record.num_steps
        corners = [(self.column_of(0), bottom), (self.column_of(num_steps), bottom)]
        pen.polygon([*corners, (self.column_of(num_steps), self.top)], fill=(236, 238, 242))
        pen.line((self.column_of(0), bottom, self.column_of(num_steps), self.top), fill=SECOND_CURVE, width=1)
        for index, (_, counts) in enumerate(self._counts):
            _draw_curve(pen, _step_points(self, counts, 0.0, float(self._max_count)), dashed=index % 2 == 1)
        if len(self._counts) > 1:
            style = ("solid", "dashed")
            names = ", ".join(f"{n} {style[index % 2]}" for index, (n, _) in enumerate(self._counts[:2]))
            write_text(image, (self.left, self.top + 36), names, 13, FAINT_INK)
        pen.line((self.column_of(0), bottom, self.column_of(num_steps), bottom), fill=RULE)

    def draw(self, image: Image.Image, step: int) -> None:
        _fade_future(image, self, step)


class ValuePanel(TimePanel):
    """The critic's value, and marks at rewards."""

    chart_height = 56

    def __init__(self, record: EpisodeRecord) -> None:
        super().__init__(record)
        self.height = self.chart_height + 6
        low, high = float(record.value_T.min()), float(record.value_T.max())
        self._low, self._high = min(low, 0.0), max(high, 0.0)
        if self._low == self._high:
            self._high = 1.0

    def prepare(self, image: Image.Image) -> None:
        pen = ImageDraw.Draw(image)
        write_text(image, (self.left, self.top), "value", 15, CURVE)
        write_text(image, (self.left, self.top + 18), "reward", 15, FAINT_INK)
        bottom = self.top + self.chart_height
        pen.line((self.axis_left, bottom, self.axis_left + self.axis_width, bottom), fill=RULE)
        write_text(image, (self.axis_left - 6, self.top - 4), f"{self._high:.2g}", 13, FAINT_INK, anchor="ra")
        write_text(image, (self.axis_left - 6, bottom - 12), f"{self._low:.2g}", 13, FAINT_INK, anchor="ra")
        pen.line(_step_points(self, self.record.value_T, self._low, self._high), fill=CURVE, width=2)
        for step in np.flatnonzero(self.record.reward_T).tolist():
            x = self.now(step) - 1
            pen.polygon([(x - 5, bottom), (x + 5, bottom), (x, bottom - 9)], fill=FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        _fade_future(image, self, step)


def pack_rows(layer: LayerRecord, num_steps: int) -> NDArray[np.int64]:
    """Assign a row to each memory so that no two overlap; the longest-lived are at the top."""
    length_M = layer.last_M - layer.first_M + 1
    row_M = np.zeros(len(length_M), dtype=np.int64)
    taken = np.zeros((0, num_steps + 1), dtype=bool)
    for memory in np.lexsort((layer.birth_M, -length_M)).tolist():
        if length_M[memory] <= 0:
            continue
        # The step before stays free, which separates neighbors in a row.
        lifetime = slice(max(0, int(layer.first_M[memory]) - 1), int(layer.last_M[memory]) + 1)
        free = np.flatnonzero(~taken[:, lifetime].any(1))
        if len(free) == 0:
            taken = np.vstack([taken, np.zeros((max(8, len(taken) // 2), num_steps + 1), dtype=bool)])
            free = np.flatnonzero(~taken[:, lifetime].any(1))
        row_M[memory] = free[0]
        taken[free[0], lifetime] = True
    return row_M


def _step_points(panel: TimePanel, values: NDArray[Any], low: float, high: float) -> list[tuple[int, int]]:
    """Corners of a step curve, one level per step."""
    bottom = panel.top + panel.chart_height
    height = panel.chart_height - 2
    levels = (
        (bottom - np.round((np.asarray(values) - low) / max(high - low, 1e-9) * height)).astype(int).tolist()
    )
    points: list[tuple[int, int]] = []
    for step, y in enumerate(levels):
        points += [(panel.column_of(step), y), (panel.column_of(step + 1), y)]
    return points


def _draw_curve(pen: ImageDraw.ImageDraw, points: list[tuple[int, int]], *, dashed: bool) -> None:
    """Draw the corners of `_step_points` as a line; dashed, only its levels."""
    if not dashed:
        pen.line(points, fill=CURVE, width=2)
        return
    for (left, y), (right, _) in zip(points[::2], points[1::2], strict=True):
        for x in range(left - left % 10, right, 10):
            if max(x, left) < min(x + 5, right):
                pen.line((max(x, left), y, min(x + 5, right), y), fill=CURVE, width=2)


def _fade_future(image: Image.Image, panel: TimePanel, step: int) -> None:
    """Fade the chart after the current step, and draw the cursor."""
    if step >= panel.record.num_steps:
        return
    left, right = panel.now(step), panel.axis_left + panel.axis_width
    top, bottom = panel.top, panel.top + panel.chart_height + 1
    if left < right:
        part = np.asarray(image.crop((left, top, right, bottom)))
        image.paste(Image.fromarray((part // 4 + 191).astype(np.uint8)), (left, top))
    ImageDraw.Draw(image).line((left, top - 2, left, bottom), fill=INK, width=1)


def _draw_time_ticks(image: Image.Image, panel: TimePanel, y: int) -> None:
    """Draw at most 12 ticks of the time axis, below the pixel `y`."""
    num_steps = panel.record.num_steps
    pen = ImageDraw.Draw(image)
    interval = next(
        base * 10**power for power in range(9) for base in (1, 2, 5) if num_steps / (base * 10**power) <= 12
    )
    for step in range(0, num_steps, interval):
        x = panel.column_of(step)
        pen.line((x, y, x, y + 4), fill=FAINT_INK)
        write_text(image, (x, y + 4), f"{step:,}", 13, FAINT_INK, anchor="ma")
    write_text(image, (panel.axis_left + panel.axis_width, y + 4), "step", 13, FAINT_INK, anchor="ra")
