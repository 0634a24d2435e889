"""The corridor as a plain Gymnasium environment on a MiniGrid grid: the readable reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Door, Wall
from numpy.typing import NDArray

from memory_suite.envs.corridor.rules import CLASSES, CorridorRules, Episodes
from memory_suite.envs.grid_world import (
    COLORS,
    EMPTY,
    STEPS,
    TILE_PIXELS,
    GridEnv,
    Move,
    Observation,
    symbolic_space,
)

ROW = 1
"""the corridor's row in a grid three cells high"""
MAX_DRAWN_CELLS = 25
"""a longer corridor is drawn as a window around the agent"""


def ball(cue: int) -> Ball:
    """The object to be remembered."""
    return Ball(COLORS[cue])  # type: ignore[no-untyped-call]  # MiniGrid leaves it untyped


class CorridorEnv(GridEnv):
    """See a ball, walk a corridor, enter the door of the ball's color.

    ## Action space
    `Discrete(4)`: move right (0), down (1), left (2) or up (3). A move into a wall or the ball does nothing.

    ## Observation space
    `Box(uint8, (view_size, view_size, 3))`, indexed [x, y, channel]: the cells around the agent, which
    stands in the middle; channels are MiniGrid's object type (up to 10), color (up to 5) and state (up to
    2). Cells outside the grid are walls. The agent's own cell shows as empty.

    ## Reward
    +1 for entering the door of the ball's color, 0 for another door and for every other step. An agent
    that remembers scores 1; without memory no policy exceeds 1 / num_colors on average.

    ## Episode end
    Terminates in a door. Truncated after `time_limit_factor * (length + 4)` steps.

    ## Info
    `cue`: the ball is in sight (there is something to be remembered). `oracle_action`: what an agent that
    remembers does now. At the end also `is_success` and `episode_class` (a range of lengths).

    ## Arguments
    See `CorridorRules`, and `render_mode` ("rgb_array", "human" or None).

    ## Version history
    - v0: first version. Re-created from the description in the Expire-Span paper, whose code for it was
      never released.
    """

    ARGUMENTS = tuple(field.name for field in dataclasses.fields(CorridorRules))

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the corridor; arguments and ValueError as `CorridorRules`."""
        self.rules = CorridorRules(**arguments)
        super().__init__(render_mode, symbolic_space(self.rules.view_size, self.rules.view_size))
        self.view_shape = (self.rules.view_size, self.rules.view_size, 3)
        self.episode_classes = self.rules.episode_classes
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self.memory_free_return = self.rules.memory_free_return
        self._chunk: Episodes | None = None
        self._next_episode = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None or self._chunk is None or self._next_episode == len(self._chunk.length_E):
            self._chunk, self._next_episode = self.rules.draw(self.np_random), 0
        chunk, episode = self._chunk, self._next_episode
        self._next_episode += 1
        length, cue = int(chunk.length_E[episode]), int(chunk.cue_E[episode])
        self.place(length, cue, chunk.doors_EN[episode].tolist(), 0)
        self._steps = 0
        self._limit = int(self.rules.time_limit(np.array(self._length)))
        self._ended = False
        self._show()
        return self._observe(), self._info()

    def place(self, length: int, cue: int, doors: list[int], x: int) -> None:
        """Put the agent at x of a given corridor (for the views and pictures of the vectorized version)."""
        self._length, self._cue, self._doors, self._x = length, cue, doors, x
        self._grid = self._build_grid()

    def view_of(self, length: int, cue: int, doors: list[int], x: int) -> Observation:
        """The observation at x of a given corridor."""
        self.place(length, cue, doors, x)
        return self._observe()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        move = self._checked(action)
        self._steps += 1
        door = self.rules.door_index(self._x, self._length, move)
        terminated = door is not None
        success = door is not None and self._doors[door] == self._cue
        dx, dy = STEPS[move]
        if self._grid.get(self._x + 1 + dx, ROW + dy) is None:
            self._x += dx
        truncated = not terminated and self._steps >= self._limit
        self._ended = terminated or truncated
        info = self._info()
        if self._ended:
            info["is_success"] = success
            info["episode_class"] = CLASSES.name(self._length)
        self._show()
        return self._observe(), float(success), terminated, truncated, info

    def _picture(self) -> NDArray[np.uint8]:
        """Up to `MAX_DRAWN_CELLS` columns around the agent, which is drawn as a triangle.

        All pictures of an environment are equally wide (a video needs that): a short corridor ends in walls.
        """
        width, left = self._drawn_width, self.frame_origin[0]
        window = self._grid.slice(left, 0, width, self._grid.height)
        agent = (self._x + 1 - left, ROW)
        seen = np.zeros((width, self._grid.height), dtype=bool)
        radius = self.rules.radius
        seen[max(0, agent[0] - radius) : agent[0] + radius + 1] = True
        image: NDArray[np.uint8] = window.render(TILE_PIXELS, agent, Move.RIGHT, highlight_mask=seen)
        return image

    # Where things are in the picture (docs/recording.md); a world cell is one of the MiniGrid grid.
    frame_tile = TILE_PIXELS
    action_names = tuple(move.name.lower() for move in Move)

    @property
    def agent_cell(self) -> tuple[int, int]:
        """World cell that the agent is in."""
        return self._x + 1, ROW

    @property
    def frame_origin(self) -> tuple[int, int]:
        """World cell in the upper left corner of `render`'s picture."""
        return max(0, min(self._x + 1 - self._drawn_width // 2, self._grid.width - self._drawn_width)), 0

    @property
    def _drawn_width(self) -> int:
        return min(self.rules.bounds[1] + self.rules.num_door_cells + 2, MAX_DRAWN_CELLS)

    def _build_grid(self) -> Grid:
        """Walls all around; cell (1, ROW) is x = 0."""
        width = self._length + self.rules.num_door_cells + 2
        grid = Grid(width, 3)
        grid.wall_rect(0, 0, width, 3)
        grid.set(1, ROW - 1, ball(self._cue))
        for index, color in enumerate(self._doors):
            grid.set(1 + self._length + index // 2, ROW - 1 + 2 * (index % 2), Door(COLORS[color]))
        return grid

    def _observe(self) -> Observation:
        radius = self.rules.radius
        view = np.empty(self.view_shape, dtype=np.uint8)
        for i in range(self.rules.view_size):
            for j in range(self.rules.view_size):
                x, y = self._x + 1 + i - radius, ROW + j - radius
                inside = 0 <= x < self._grid.width and 0 <= y < self._grid.height
                cell = self._grid.get(x, y) if inside else Wall()
                view[i, j] = EMPTY if cell is None else cell.encode()
        if self.rules.observable:
            view[radius, radius] = ball(self._cue).encode()
        return view

    def _info(self) -> dict[str, Any]:
        return {
            "cue": self.rules.observable or self._x <= self.rules.radius,
            "oracle_action": int(
                self.rules.oracle_action(self._x, self._length, self._doors.index(self._cue))
            ),
        }
