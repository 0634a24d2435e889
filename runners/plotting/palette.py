"""Colors of pictures and charts, distinguishable by color-blind readers; brighter means more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (27, 31, 39)
FAINT_INK: Color = (91, 98, 112)
RULE: Color = (214, 218, 226)
EMPTY: Color = (20, 23, 31)
"""background of the lifelines, where there is no memory"""
FORECAST: Color = (44, 50, 64)
"""the remaining life of a memory that exists now"""
IDLE: Color = (70, 80, 106)
"""a memory without attention"""
BRIGHT: Color = (255, 244, 176)
"""a memory with all the attention of a head"""
BAR_GROUND: Color = (238, 240, 244)
"""background of a bar from 0 to 1"""
CURSOR: Color = (255, 255, 255)
CURVE: Color = (0, 90, 156)
SECOND_CURVE: Color = (150, 156, 168)

# matplotlib's "plasma" from 0.375 on: perceptually uniform, and lighter than the floor of a grid world.
SPAN_ANCHORS = np.array(
    [
        (168, 34, 150),
        (203, 70, 121),
        (229, 107, 93),
        (248, 148, 65),
        (253, 195, 40),
        (240, 249, 33),
    ],
    dtype=np.float64,
)

LESS: Color = (86, 180, 233)
"""a loss that becomes smaller, at its strongest; Okabe and Ito's sky blue, on which black can be read"""
MORE: Color = (230, 159, 0)
"""a loss that becomes larger; their orange"""


def span_color(remaining: ArrayLike, max_span: float) -> NDArray[np.float64]:
    """Color of a remaining span in steps, [..., 3]; logarithmic up to the maximum span."""
    steps = np.clip(np.asarray(remaining, dtype=np.float64), 1.0, max(max_span, 2.0))
    position = np.log(steps) / np.log(max(max_span, 2.0)) * (len(SPAN_ANCHORS) - 1)
    below = np.minimum(position.astype(int), len(SPAN_ANCHORS) - 2)
    part = (position - below)[..., None]
    return SPAN_ANCHORS[below] * (1 - part) + SPAN_ANCHORS[below + 1] * part


def attention_color(attention: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Color of a lifeline, [..., 3]: the square root of attention gives brightness, the mask fades it."""
    share = np.sqrt(np.clip(np.asarray(attention, dtype=np.float64), 0.0, 1.0))[..., None]
    color = np.array(IDLE) * (1 - share) + np.array(BRIGHT) * share
    strength = (0.35 + 0.65 * np.clip(np.asarray(mask, dtype=np.float64), 0.0, 1.0))[..., None]
    return np.array(EMPTY) * (1 - strength) + color * strength


def difference_color(share: ArrayLike) -> NDArray[np.float64]:
    """Color of a number between -1 and 1, [..., 3]: paper at 0, `LESS` below it, `MORE` above."""
    value = np.clip(np.asarray(share, dtype=np.float64), -1.0, 1.0)[..., None]
    strongest = np.where(value < 0.0, np.array(LESS), np.array(MORE))
    return np.array(PAPER) + (strongest - np.array(PAPER)) * np.abs(value)


def black_or_white(color: ArrayLike) -> NDArray[np.bool_]:
    """True where black letters are more legible than white ones on a color [..., 3]."""
    share = np.asarray(color, dtype=np.float64) / 255.0
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    black: NDArray[np.bool_] = (luminance + 0.05) ** 2 > 1.05 * 0.05
    return black
