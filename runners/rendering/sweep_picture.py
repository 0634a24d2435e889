"""The picture of a sweep: what the decision changes by when each memory is dropped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.probe import Effect
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import Picture, draw_diamond, fit_text, write_text
from memory_suite.runners.plotting.palette import BAR_GROUND, CURSOR, CURVE, FAINT_INK, INK, PAPER, RULE
from memory_suite.runners.rendering.effect_tables import SHOWN_EFFECTS, format_change
from memory_suite.runners.rendering.labels import episode_title, favorite_action
from memory_suite.runners.rendering.panel import MARGIN, WIDTH
from memory_suite.runners.rendering.scene_panels import thumbnail
from memory_suite.runners.rendering.time_panels import LifelinePanel

HEADER_HEIGHT = 112
ROW_HEIGHT = 66
THUMBNAIL_SIDE = 52
BAR_LEFT, BAR_WIDTH = 400, 440
VALUE_RIGHT, RETURN_RIGHT = 990, 1110


def draw_sweep(record: EpisodeRecord, effects: Sequence[Effect], together: Effect | None) -> Picture:
    """Draw the ranking of a sweep, and below it the lifelines of the first layer.

    Args:
        record: the episode.
        effects: effects of single memories, the largest first.
        together: effect of all cues at once; None: leave it out.
    """
    ranked = [
        (f"{rank}. step {effect.births[0]}", effect)
        for rank, effect in enumerate(effects[:SHOWN_EFFECTS], start=1)
    ]
    group = [] if together is None else [(f"all cues ({len(together.births)})", together)]
    rows = group + ranked
    panel = LifelinePanel(record, 1, max(1, len(record.layers)))
    panel.top = HEADER_HEIGHT + len(rows) * ROW_HEIGHT + 20
    height = panel.top + panel.height + 16
    image = Image.new("RGB", (WIDTH, height + height % 2), PAPER)
    _draw_header(image, record, effects[0])
    for index, (name, effect) in enumerate(rows):
        _draw_effect(image, HEADER_HEIGHT + index * ROW_HEIGHT, record, name, effect)
    if together is not None:
        y = HEADER_HEIGHT + ROW_HEIGHT - 5
        ImageDraw.Draw(image).line((MARGIN, y, WIDTH - MARGIN, y), fill=RULE)
    panel.prepare(image)
    panel.draw(image, record.num_steps)
    _mark_steps(image, panel, {"dropped": effects[0].edited_at, "decided": effects[0].decided_at})
    return np.asarray(image)


def _draw_header(image: Image.Image, record: EpisodeRecord, effect: Effect) -> None:
    """Write the title and the names of the columns."""
    write_text(image, (MARGIN, 14), episode_title(record), 22)
    subtitle = f"memory dropped before step {effect.edited_at}; what that changes at step {effect.decided_at}"
    write_text(image, (MARGIN, 46), subtitle, 16, FAINT_INK)
    write_text(image, (BAR_LEFT, 84), "change of the decision (0 to 1)", 15, FAINT_INK)
    write_text(image, (VALUE_RIGHT, 84), "value", 15, FAINT_INK, anchor="ra")
    write_text(image, (RETURN_RIGHT, 84), "return", 15, FAINT_INK, anchor="ra")


def _draw_effect(image: Image.Image, y: int, record: EpisodeRecord, name: str, effect: Effect) -> None:
    """Draw a row of the ranking: pictures of at most three memories, the change, value and return."""
    pen = ImageDraw.Draw(image)
    for index, birth in enumerate(effect.births[:3]):
        image.paste(thumbnail(record, birth, THUMBNAIL_SIDE), (MARGIN + 170 + index * 60, y + 2))
    write_text(image, (MARGIN + 22, y + 16), name, 17)
    if effect.is_cue:
        draw_diamond(pen, (MARGIN + 8, y + 27), 6)
    pen.rectangle((BAR_LEFT, y + 16, BAR_LEFT + BAR_WIDTH, y + 38), fill=BAR_GROUND)
    length = round(BAR_WIDTH * effect.change)
    if length:
        pen.rectangle((BAR_LEFT, y + 16, BAR_LEFT + length, y + 38), fill=CURVE)
    write_text(image, (BAR_LEFT + BAR_WIDTH + 12, y + 17), format_change(effect.change), 16)
    value_change = format_change(effect.value_change, signed=True)
    write_text(image, (VALUE_RIGHT, y + 17), value_change, 16, anchor="ra")
    if effect.return_after is not None:
        returns = f"{effect.return_before:g} to {effect.return_after:g}"
        write_text(image, (RETURN_RIGHT, y + 17), returns, 16, anchor="ra")
    if effect.turned:
        left = RETURN_RIGHT + 16
        words = f"turns to {favorite_action(record, effect.choice_after)}"
        write_text(image, (left, y + 17), fit_text(words, 16, WIDTH - left - 8), 16)


def _mark_steps(image: Image.Image, panel: LifelinePanel, steps: dict[str, int]) -> None:
    """Draw a named vertical line at each step."""
    pen = ImageDraw.Draw(image)
    for name, step in steps.items():
        x, bottom = panel.column_of(step), panel.chart_top + panel.chart_height
        pen.line((x, panel.chart_top, x, bottom), fill=CURSOR, width=2)
        is_left = x < WIDTH // 2
        position = (x + 6 if is_left else x - 6, bottom - 20)
        write_text(image, position, name, 15, PAPER, anchor="la" if is_left else "ra", outline=INK)
