"""The panel interface and the geometry that panels share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from PIL import Image

WIDTH = 1280
"""width of every picture"""
MARGIN = 28
GAP = 14
"""distance between panels"""
AXIS_LEFT = 134
"""left end of the time axis; labels stand before it"""


class Panel(ABC):
    """Part of a picture, as wide as the picture or narrower."""

    left = MARGIN
    top = 0
    width = WIDTH - 2 * MARGIN
    height = 0
    offset = 0
    """distance from the top of its row"""

    def prepare(self, image: Image.Image) -> None:  # noqa: B027  (most panels have a static part, not all)
        """Draw the part that is the same at every step."""

    @abstractmethod
    def draw(self, image: Image.Image, step: int) -> None:
        """Draw the part that depends on the step."""
