"""Drawing primitives on Pillow images: text, diamonds, boxes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from memory_suite.runners.plotting.palette import FAINT_INK, INK, PAPER, Color

Picture = NDArray[np.uint8]
"""an RGB image, [height, width, 3]"""
Box = tuple[int, int, int, int]
"""left, top, right and bottom; right and bottom lie outside"""


def inclusive(box: Box) -> Box:
    """The box in Pillow's convention, whose right and bottom pixels lie inside."""
    return box[0], box[1], box[2] - 1, box[3] - 1


def draw_diamond(pen: ImageDraw.ImageDraw, center: tuple[int, int], size: int) -> None:
    """Draw the mark of a cue: black with a white rim, visible on any background."""
    x, y = center
    for reach, color in ((size + 1, PAPER), (size - 1, INK)):
        pen.polygon([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], fill=color)


def draw_dashed_box(pen: ImageDraw.ImageDraw, box: Box, *, dark: bool = False) -> None:
    """Draw a dashed outline of two pixels, white or dark."""
    left, top, right, bottom = inclusive(box)
    color, dash = FAINT_INK if dark else PAPER, 4
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - 1):
            pen.rectangle((x, y, min(x + dash - 1, right), y + 1), fill=color)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - 1):
            pen.rectangle((x, y, x + 1, min(y + dash - 1, bottom)), fill=color)


def to_rgb(color: NDArray[np.float64]) -> Color:
    """Round a color to whole numbers."""
    red, green, blue = (color + 0.5).astype(int).tolist()
    return red, green, blue


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write_text(
    image: Image.Image,
    position: tuple[int, int],
    text: str,
    size: int,
    color: Color = INK,
    *,
    anchor: str = "la",
    outline: Color | None = None,
) -> None:
    """Write a line of text into an image.

    Args:
        image: image to draw on.
        position: pixel of the anchor.
        text: the line.
        size: font size in pixels.
        color: color of the letters.
        anchor: Pillow's two letters for the point of the text that lies at `position`.
        outline: color of an outline of one pixel; None: no outline.
    """
    stroke = {} if outline is None else {"stroke_width": 1, "stroke_fill": outline}
    ImageDraw.Draw(image).text(position, text, fill=color, font=_font(size), anchor=anchor, **stroke)  # type: ignore[arg-type]


def fit_text(text: str, size: int, max_width: int) -> str:
    """Cut a text to a width in pixels; a cut text ends with three dots."""
    font = _font(size)
    if font.getlength(text) <= max_width:
        return text
    while text and font.getlength(f"{text}...") > max_width:
        text = text[:-1]
    return f"{text}..."
