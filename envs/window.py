"""A window that shows pictures and tells which keys were pressed. pygame comes with MiniGrid."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

MIN_SIDE_PIXELS = 400
"""smaller pictures are enlarged by a whole number until the longer side is at least this long"""
NOWHERE = ("dummy", "offscreen")
"""SDL's drivers without a display, on which no key can be pressed"""


class Window:
    """One window on the screen; it opens with the first picture."""

    def __init__(self, title: str) -> None:
        """Nothing is on the screen yet."""
        self.title = title
        self._size: tuple[int, int] | None = None
        self._pressed: list[str] = []
        self._closed = False

    def show(self, picture: NDArray[np.uint8]) -> None:
        """Show [height, width, 3].

        Raises:
            pygame.error: there is no display, and `SDL_VIDEODRIVER` does not ask to do without one.
        """
        import pygame

        scale = -(-MIN_SIDE_PIXELS // max(picture.shape[:2]))
        enlarged = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        size = (enlarged.shape[1], enlarged.shape[0])
        if size != self._size:
            pygame.display.init()
            if pygame.display.get_driver() in NOWHERE and not os.environ.get("SDL_VIDEODRIVER"):
                raise pygame.error("there is no display")
            self._screen = pygame.display.set_mode(size)
            pygame.display.set_caption(self.title)
            self._size = size
        self._screen.blit(pygame.surfarray.make_surface(enlarged.swapaxes(0, 1)), (0, 0))
        pygame.display.flip()
        self._poll()

    def caption(self, text: str) -> None:
        """A line in the window's title."""
        import pygame

        pygame.display.set_caption(f"{self.title}: {text}")

    def next_key(self) -> str | None:
        """Wait for a key and name it as pygame does ("up", "a", "escape"); None once the window is closed."""
        import pygame

        self._poll()
        while not self._pressed and not self._closed:
            self._take(pygame.event.wait())
        return self._pressed.pop(0) if self._pressed else None

    def wait(self, seconds: float) -> None:
        """Leave the picture on the screen for a while."""
        import pygame

        pygame.time.wait(round(1000 * seconds))

    def close(self) -> None:
        """Take the window off the screen."""
        import pygame

        pygame.display.quit()
        self._size = None

    def _poll(self) -> None:
        """Take what has happened; without this the system believes that the window hangs."""
        import pygame

        for event in pygame.event.get():
            self._take(event)

    def _take(self, event: object) -> None:
        import pygame

        kind = getattr(event, "type", None)
        if kind == pygame.KEYDOWN:
            self._pressed.append(pygame.key.name(event.key))  # type: ignore[attr-defined]
        elif kind == pygame.QUIT:
            self._closed = True
