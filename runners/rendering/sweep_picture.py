"""The picture of a sweep of interventions on memories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.probe import ROUNDING, Effect
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import draw_diamond, fitted, write_text
from memory_suite.runners.plotting.palette import CURSOR, CURVE, FAINT_INK, INK, PAPER, RULE
from memory_suite.runners.rendering.panel import MARGIN, WIDTH, favorite_action, title
from memory_suite.runners.rendering.scene_panels import thumbnail
from memory_suite.runners.rendering.time_panels import LifelinePanel

SHOWN = 10
"""memories in the picture of a sweep"""


def draw_sweep(
    record: EpisodeRecord, effects: Sequence[Effect], together: Effect | None
) -> NDArray[np.uint8]:
    """The ranking of a sweep: what each memory saw, and what dropping it changes."""
    shown = list(effects[:SHOWN])
    rows = ([together] if together is not None else []) + shown
    row_height, head = 66, 112
    panel = LifelinePanel(record, 1, max(1, len(record.layers)))
    panel.top = head + len(rows) * row_height + 20
    height = panel.top + panel.height + 16
    image = Image.new("RGB", (WIDTH, height + height % 2), PAPER)
    pen = ImageDraw.Draw(image)
    first = effects[0]
    write_text(image, (MARGIN, 14), title(record), 22)
    subtitle = f"memory dropped before step {first.edited_at}; what that changes at step {first.decided_at}"
    write_text(image, (MARGIN, 46), subtitle, 16, FAINT_INK)
    bar_left, bar_width = 400, 440
    columns = [
        (bar_left, "change of the decision (0 to 1)", "la"),
        (990, "value", "ra"),
        (1110, "return", "ra"),
    ]
    for x, name, anchor in columns:
        write_text(image, (x, 84), name, 15, FAINT_INK, anchor=anchor)
    for index, effect in enumerate(rows):
        y = head + index * row_height
        group = together is not None and index == 0
        if group:
            name, side = f"all cues ({len(effect.births)})", 52
        else:
            rank = index + (0 if together is not None else 1)
            name, side = f"{rank}. step {effect.births[0]}", 52
        for place, birth in enumerate(effect.births[:3] if group else effect.births[:1]):
            image.paste(thumbnail(record, birth, side), (MARGIN + 170 + place * 60, y + 2))
        write_text(image, (MARGIN + 22, y + 16), name, 17)
        if effect.is_cue:
            draw_diamond(pen, (MARGIN + 8, y + 27), 6)
        pen.rectangle((bar_left, y + 16, bar_left + bar_width, y + 38), fill=(238, 240, 244))
        length = round(bar_width * effect.change)
        if length:
            pen.rectangle((bar_left, y + 16, bar_left + length, y + 38), fill=CURVE)
        write_text(image, (bar_left + bar_width + 12, y + 17), _small(effect.change), 16)
        write_text(image, (990, y + 17), _small(effect.value_change, signed=True), 16, anchor="ra")
        if effect.return_after is not None:
            arrow = f"{effect.return_before:g} to {effect.return_after:g}"
            write_text(image, (1110, y + 17), arrow, 16, anchor="ra")
        if effect.turned:
            words = f"turns to {favorite_action(record, effect.choice_after)}"
            write_text(image, (1126, y + 17), fitted(words, 16, WIDTH - 1126 - 8), 16)
        if group:
            pen.line((MARGIN, y + row_height - 5, WIDTH - MARGIN, y + row_height - 5), fill=RULE)
    panel.prepare(image)
    panel.draw(image, record.num_steps)
    for step, name in ((first.edited_at, "dropped"), (first.decided_at, "decided")):
        x = panel.column_of(step)
        bottom = panel.chart_top + panel.chart_height
        pen.line((x, panel.chart_top, x, bottom), fill=CURSOR, width=2)
        anchor = "la" if x < WIDTH // 2 else "ra"
        at = (x + (6 if anchor == "la" else -6), bottom - 20)
        write_text(image, at, name, 15, PAPER, anchor=anchor, outline=INK)
    return np.asarray(image)


def _small(number: float, *, signed: bool = False) -> str:
    """A number one can read, exact zeros apart from tiny ones."""
    if abs(number) <= ROUNDING:
        return "0"
    sign = "+" if signed else ""
    return f"{number:{sign}.3f}" if abs(number) >= 0.001 else f"{number:{sign}.0e}"
