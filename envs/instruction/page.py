"""The instruction world as people read it: the latest lines with what the agent said, as text or picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from memory_suite.envs.instruction.grammar import MESSAGES

PAGE_LINES = 8
"""the current line and those before it"""

WIDTH, MARGIN = 640, 12
ROW_HEIGHT, FONT_SIZE = 22, 16
HEIGHT = 2 * MARGIN + 2 * PAGE_LINES * ROW_HEIGHT
"""room for an answer to every line"""
NUMBER_COLUMN, TEXT_COLUMN, SPEECH_COLUMN = MARGIN, 68, 100
PAPER, PRESENT, PALE, INK = "#fbfaf6", "#fff1b8", "#9a9a94", "#24241f"
VERDICT_COLORS = {"right": "#1a7f37", "wrong": "#c62828", "missed": "#c62828", "out of turn": "#b26a00"}


class Entry(NamedTuple):
    """A line and what was said to it."""

    number: int
    """counted from 1"""
    text: str
    answer: int
    """the right action"""
    said: int | None
    """the action taken; None at the current line"""


def speech(entry: Entry) -> tuple[str, str] | None:
    """The agent's answer to a line and its verdict; None if there is nothing to report."""
    if entry.said is None or entry.said == entry.answer == 0:
        return None
    if entry.said == 0:
        return "You say nothing.", "missed"
    message = MESSAGES[entry.said - 1]
    said = f"{message[0].upper()}{message[1:]}."
    if entry.answer == 0:
        return said, "out of turn"
    return said, "right" if entry.said == entry.answer else "wrong"


def as_text(entries: Sequence[Entry]) -> str:
    """A line of text for each entry, another for what was said to it."""
    rows = []
    for entry in entries:
        mark = ">" if entry.said is None else " "
        rows.append(f"{mark}{entry.number:6,}  {entry.text}")
        spoken = speech(entry)
        if spoken is not None:
            rows.append(f"{'':12}- {spoken[0]} ({spoken[1]})")
    return "\n".join(rows)


def as_picture(entries: Sequence[Entry]) -> NDArray[np.uint8]:
    """The same as a picture, always of the same size; a longer line is cut at the edge."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_SIZE)
    top = MARGIN
    for entry in entries:
        if entry.said is None:
            draw.rectangle((0, top - 2, WIDTH, top + ROW_HEIGHT - 2), fill=PRESENT)
        draw.text((NUMBER_COLUMN, top), f"{entry.number:,}", fill=PALE, font=font)
        draw.text((TEXT_COLUMN, top), entry.text, fill=INK, font=font)
        top += ROW_HEIGHT
        spoken = speech(entry)
        if spoken is not None:
            text, verdict = spoken
            draw.text((SPEECH_COLUMN, top), f"{text} ({verdict})", fill=VERDICT_COLORS[verdict], font=font)
            top += ROW_HEIGHT
    return np.asarray(image, dtype=np.uint8).copy()
