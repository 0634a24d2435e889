"""Colors of the pictures of memories: safe for color-blind eyes, brighter means more."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Color = tuple[int, int, int]

PAPER: Color = (255, 255, 255)
INK: Color = (27, 31, 39)
FAINT_INK: Color = (91, 98, 112)
RULE: Color = (214, 218, 226)
NIGHT: Color = (20, 23, 31)
"""ground of the lifelines"""
FORECAST: Color = (44, 50, 64)
"""what a memory that exists now has still to come"""
IDLE: Color = (70, 80, 106)
"""a memory that nobody attends to"""
BRIGHT: Color = (255, 244, 176)
"""a memory that takes all the attention of a head"""
CURSOR: Color = (255, 255, 255)
CURVE: Color = (0, 90, 156)
SECOND_CURVE: Color = (150, 156, 168)

# Anchors of matplotlib's "plasma" from 0.375 on: perceptually even, and none of it is as dark as a floor.
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


def span_color(remaining: ArrayLike, max_span: float) -> NDArray[np.float64]:
    """Color of a memory with so many remaining steps, [..., 3]; logarithmic up to the maximum span."""
    steps = np.clip(np.asarray(remaining, dtype=np.float64), 1.0, max(max_span, 2.0))
    position = np.log(steps) / np.log(max(max_span, 2.0)) * (len(SPAN_ANCHORS) - 1)
    below = np.minimum(position.astype(int), len(SPAN_ANCHORS) - 2)
    part = (position - below)[..., None]
    return SPAN_ANCHORS[below] * (1 - part) + SPAN_ANCHORS[below + 1] * part


def attention_color(attention: ArrayLike, mask: ArrayLike) -> NDArray[np.float64]:
    """Color of a lifeline, [..., 3]: the root of the attention is its brightness; on the ramp it fades."""
    share = np.sqrt(np.clip(np.asarray(attention, dtype=np.float64), 0.0, 1.0))[..., None]
    color = np.array(IDLE) * (1 - share) + np.array(BRIGHT) * share
    strength = (0.35 + 0.65 * np.clip(np.asarray(mask, dtype=np.float64), 0.0, 1.0))[..., None]
    return np.array(NIGHT) * (1 - strength) + color * strength
