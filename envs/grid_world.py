"""Base class of the environments on a MiniGrid grid: moves, colors, symbolic views, pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from numpy.typing import NDArray

from memory_suite.envs.window import Window

Observation = NDArray[np.uint8]

COLORS = tuple(COLOR_TO_IDX)
"""MiniGrid's six colors; an environment with n of them uses the first n"""
EMPTY = (OBJECT_TO_IDX["empty"], 0, 0)
"""MiniGrid's code of an empty cell: object type, color, state"""
TILE_PIXELS = 24


class Move(IntEnum):
    """Actions: absolute moves, numbered like MiniGrid's directions."""

    RIGHT = 0
    DOWN = 1
    LEFT = 2
    UP = 3


STEPS = {Move.RIGHT: (1, 0), Move.DOWN: (0, 1), Move.LEFT: (-1, 0), Move.UP: (0, -1)}
"""how a move changes x and y"""


def symbolic_space(width: int, height: int) -> spaces.Box[np.uint8]:
    """[x, y] from the top left corner; per cell MiniGrid's object type, color and state."""
    highest = np.array([max(OBJECT_TO_IDX.values()), len(COLOR_TO_IDX) - 1, 2], dtype=np.uint8)
    high = np.tile(highest, (width, height, 1))
    return spaces.Box(np.zeros_like(high), high, dtype=np.uint8)


class GridEnv(gym.Env[Observation, np.int64], ABC):
    """A plain environment of cells, walked by four moves: checks of actions, and pictures.

    A subclass sets `_ended` and implements `_picture`. Render mode "rgb_array" returns the picture, "human"
    shows it in a window after every `reset` and `step`.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array", "human"], "render_fps": 10}  # noqa: RUF012 (as gym.Env declares it)
    keys_to_action = {"right": Move.RIGHT, "down": Move.DOWN, "left": Move.LEFT, "up": Move.UP}  # noqa: RUF012 (constant)
    """what `runners/play.py` does when a key is pressed"""

    def __init__(self, render_mode: str | None, view: spaces.Box[np.uint8]) -> None:
        """Set the spaces; ValueError for a render mode that there is not."""
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be 'rgb_array', 'human' or None, got {render_mode!r}")
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(Move))
        self.observation_space = view
        self._ended = True
        self._window: Window | None = None

    def render(self) -> NDArray[np.uint8] | None:
        """The picture in the mode "rgb_array"; shown, and nothing returned, in the mode "human"."""
        if self.render_mode is None:
            return None
        picture = self._picture()
        if self.render_mode == "rgb_array":
            return picture
        if self._window is None:
            self._window = Window(type(self).__name__)
        self._window.show(picture)
        self._window.wait(1.0 / self.metadata["render_fps"])
        return None

    def close(self) -> None:
        """Close the window, if there is one."""
        if self._window is not None:
            self._window.close()
            self._window = None

    @abstractmethod
    def _picture(self) -> NDArray[np.uint8]:
        """Picture [height, width, 3] of the current state."""

    def _checked(self, action: np.int64) -> Move:
        """The move, or an error: the action is not in the space, or no episode is being played."""
        if not self.action_space.contains(action):
            raise ValueError(f"the action is {action!r}, not in {self.action_space}")
        if self._ended:
            raise gym.error.ResetNeeded("no episode is being played: call reset before the next step")
        return Move(int(action))

    def _show(self) -> None:
        """Show the picture in the mode "human", after every reset and step."""
        if self.render_mode == "human":
            self.render()
