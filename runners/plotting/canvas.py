"""Drawing primitives on Pillow images: text, diamonds, boxes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from memory_suite.runners.plotting.palette import (
    FAINT_INK,
    INK,
    PAPER,
)


def _inside(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """PIL's rectangles include their last pixels."""
    return box[0], box[1], box[2] - 1, box[3] - 1


def draw_diamond(pen: ImageDraw.ImageDraw, center: tuple[int, int], size: int) -> None:
    """The mark of a cue: black with a white rim, so that it shows on anything."""
    x, y = center
    for reach, color in ((size + 1, PAPER), (size - 1, INK)):
        pen.polygon([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], fill=color)


def _dashed_box(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], *, dark: bool = False) -> None:
    left, top, right, bottom = _inside(box)
    color, dash = FAINT_INK if dark else PAPER, 4
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - 1):
            pen.rectangle((x, y, min(x + dash - 1, right), y + 1), fill=color)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - 1):
            pen.rectangle((x, y, x + 1, min(y + dash - 1, bottom)), fill=color)


def _rgb(color: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (color + 0.5).astype(int).tolist()
    return red, green, blue


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write_text(
    image: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int] = INK,
    *,
    anchor: str = "la",
    outline: tuple[int, int, int] | None = None,
) -> None:
    """Write a line of text into a picture; `place` is where its anchor lies (PIL's letters)."""
    stroke = {} if outline is None else {"stroke_width": 1, "stroke_fill": outline}
    ImageDraw.Draw(image).text(place, text, fill=color, font=_font(size), anchor=anchor, **stroke)  # type: ignore[arg-type]


def fitted(text: str, size: int, room: int) -> str:
    """The text, or as much of its beginning as there is room for."""
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
