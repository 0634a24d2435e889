"""Panels of the action distribution, the attended memories, the title and the legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.agents.episodes.recorder import PROBABILITIES
from memory_suite.runners.plotting.canvas import draw_dashed_box, draw_diamond, write_text
from memory_suite.runners.plotting.palette import (
    BAR_GROUND,
    CURVE,
    FAINT_INK,
    FORECAST,
    INK,
    attention_color,
    span_color,
)
from memory_suite.runners.rendering.labels import choice_name, episode_title, taken_choices
from memory_suite.runners.rendering.panel import Panel
from memory_suite.runners.rendering.scene_panels import FramePanel, TextPanel, thumbnail

MAX_ACTIONS = 6
"""the most likely actions are shown, up to this number"""


class TitlePanel(Panel):
    """The title of the episode, and the current step."""

    height = 30

    def __init__(self, record: EpisodeRecord) -> None:
        self._record = record

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top + 4), episode_title(self._record), 22)

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        right = self.left + self.width
        if step < record.num_steps:
            text = f"step {step} of {record.num_steps}"
        else:
            text = f"over after {record.num_steps} steps, return {record.facts['return']:g}"
        write_text(image, (right, self.top + 4), text, 22, anchor="ra")
        if step < record.num_steps and record.cue_T[step]:
            x = right - 300
            draw_diamond(ImageDraw.Draw(image), (x - 12, self.top + 17), 7)
            write_text(image, (x, self.top + 4), "cue in sight", 20)


class ChoicePanel(Panel):
    """The action distribution, the action taken, the value and the rewards."""

    row_height = 24

    def __init__(self, record: EpisodeRecord) -> None:
        self._record = record
        size = record.choice_TA.shape[1]
        if record.facts["choice"] != PROBABILITIES:
            size //= 2
        self._rows = min(size, MAX_ACTIONS)
        self.height = 26 + max(self._rows, 3) * self.row_height

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        step = min(step, record.num_steps - 1)
        if record.facts["choice"] == PROBABILITIES:
            self._draw_probabilities(image, step)
        else:
            self._draw_box(image, step)
        right = self.left + self.width
        column = right - 150 if self.width > 520 else right - 110
        gained = float(record.reward_T[: step + 1].sum())
        rows = [("value", f"{record.value_T[step]:.3f}"), ("reward", _signed(record.reward_T[step]))]
        for index, (name, value) in enumerate([*rows, ("return", f"{gained:g}")]):
            y = self.top + 26 + index * self.row_height
            write_text(image, (column, y), name, 15, FAINT_INK)
            write_text(image, (right, y), value, 15, anchor="ra")

    def _bars(self) -> tuple[int, int]:
        """Left end and length of the bar of probability 1."""
        return self.left + 120, min(420, self.width - 120 - 70 - 150)

    def _draw_probabilities(self, image: Image.Image, step: int) -> None:
        record = self._record
        probabilities = record.choice_TA[step]
        taken = taken_choices(record, step)
        order = np.arange(len(probabilities))
        if len(order) > MAX_ACTIONS:
            order = np.sort(np.argsort(-probabilities)[:MAX_ACTIONS])
        pen = ImageDraw.Draw(image)
        left, length = self._bars()
        write_text(image, (self.left, self.top), "chance of each action, and the one taken", 15, FAINT_INK)
        for row, index in enumerate(order.tolist()):
            y = self.top + 26 + row * self.row_height
            write_text(image, (left - 10, y), choice_name(record, index), 15, anchor="ra")
            pen.rectangle((left, y + 2, left + length, y + 17), fill=BAR_GROUND)
            end = left + round(length * float(probabilities[index]))
            if end > left:
                pen.rectangle((left, y + 2, end, y + 17), fill=CURVE)
            write_text(image, (left + length + 10, y), f"{probabilities[index]:.1%}", 15)
            if index in taken:
                pen.rectangle((left - 2, y, left + length + 2, y + 19), outline=INK, width=2)

    def _draw_box(self, image: Image.Image, step: int) -> None:
        record = self._record
        size = record.choice_TA.shape[1] // 2
        action = np.asarray(record.action_T[step]).reshape(-1)
        write_text(
            image, (self.left, self.top), "action: mean and deviation, and the one taken", 15, FAINT_INK
        )
        for index in range(min(size, MAX_ACTIONS)):
            y = self.top + 26 + index * self.row_height
            mean, deviation = record.choice_TA[step, index], record.choice_TA[step, size + index]
            text = f"{choice_name(record, index)}: {mean:+.3f} +- {deviation:.3f}, taken {action[index]:+.3f}"
            write_text(image, (self.left, y), text, 15)


class AttentionPanel(Panel):
    """The memories with the most attention, each as a picture of the step that wrote it."""

    count = 3
    side = 76
    """pixels of a thumbnail"""

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        self.height = 26 + self.side + 20
        self._thumbnails: dict[int, Image.Image] = {}

    def attended(self, step: int) -> list[tuple[float, int]]:
        """Largest attention of any head, and birth; most attention first."""
        most: dict[int, float] = {}
        for number in self._layers:
            seen = self._record.layers[number - 1].at(min(step, self._record.num_steps - 1))
            for birth, attention in zip(seen.birth.tolist(), seen.attention.max(1).tolist(), strict=True):
                most[birth] = max(attention, most.get(birth, 0.0))
        return sorted(((attention, birth) for birth, attention in most.items()), reverse=True)[: self.count]

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "attends most to what it saw at", 15, FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        pen = ImageDraw.Draw(image)
        for index, (attention, birth) in enumerate(self.attended(step)):
            x, y = self.left + index * (self.side + 32), self.top + 26
            image.paste(self._thumbnail(birth), (x, y))
            if self._record.cue_T[birth]:
                draw_diamond(pen, (x + self.side - 10, y + 10), 5)
            write_text(image, (x, y + self.side + 3), f"step {birth}: {attention:.2f}", 13)

    def _thumbnail(self, step: int) -> Image.Image:
        if step not in self._thumbnails:
            self._thumbnails[step] = thumbnail(self._record, step, self.side)
        return self._thumbnails[step]


class LegendPanel(Panel):
    """The meaning of tint, brightness and marks."""

    height = 40

    def __init__(self, record: EpisodeRecord, scene: Panel | None) -> None:
        self._record = record
        self._tints = isinstance(scene, TextPanel) or (isinstance(scene, FramePanel) and scene.shows_cells)

    def prepare(self, image: Image.Image) -> None:
        pen = ImageDraw.Draw(image)
        x, y = self.left, self.top + 8
        bar = 120
        if self._tints:
            max_span = float(self._record.facts["max_span"])
            write_text(image, (x, y), "remaining span", 15, FAINT_INK)
            x += 118
            colors = span_color(np.exp(np.linspace(0, np.log(max(max_span, 2.0)), bar)), max_span)
            _draw_color_bar(image, (x, y + 1), colors)
            write_text(image, (x, y + 17), "1", 13, FAINT_INK)
            write_text(image, (x + bar, y + 17), f"{max_span:,.0f} steps", 13, FAINT_INK, anchor="ma")
            x += bar + 48
            draw_dashed_box(pen, (x, y, x + 18, y + 18), dark=True)
            write_text(image, (x + 26, y), "just expired", 15, FAINT_INK)
            x += 132
        draw_diamond(pen, (x + 6, y + 9), 6)
        write_text(image, (x + 18, y), "cue", 15, FAINT_INK)
        x += 66
        write_text(image, (x, y), "attention", 15, FAINT_INK)
        x += 76
        colors = attention_color(np.linspace(0, 1, bar), np.ones(bar))
        _draw_color_bar(image, (x, y + 1), colors)
        write_text(image, (x, y + 17), "0", 13, FAINT_INK)
        write_text(image, (x + bar, y + 17), "1", 13, FAINT_INK, anchor="ra")
        x += bar + 24
        colors = attention_color(np.full(60, 0.1), np.linspace(1, 0, 60))
        _draw_color_bar(image, (x, y + 1), colors)
        write_text(image, (x + 68, y), "fading", 15, FAINT_INK)
        x += 134
        pen.rectangle((x, y + 1, x + 40, y + 16), fill=FORECAST)
        write_text(image, (x + 48, y), "to come", 15, FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        """Draw nothing: the legend is the same at every step."""


def _draw_color_bar(image: Image.Image, position: tuple[int, int], colors: NDArray[np.float64]) -> None:
    """Draw a bar of colors [width, 3], 16 pixels high; `position` is its top left corner."""
    image.paste(Image.fromarray(np.tile(colors.astype(np.uint8), (16, 1, 1))), position)


def _signed(number: float) -> str:
    return f"{number:+g}" if number else "0"
