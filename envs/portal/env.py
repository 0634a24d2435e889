"""The portal as a plain Gymnasium environment on a MiniGrid grid: the readable reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from minigrid.core.constants import OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, Wall
from numpy.typing import NDArray

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
from memory_suite.envs.portal.rules import (
    CELLS,
    ROOM_SIDE,
    Episodes,
    Look,
    PortalRules,
    door_direction,
    oracle_action,
)

AGENT = (OBJECT_TO_IDX["agent"], 0, 0)
"""code of the agent's cell in the view of the whole room"""
BAR_PIXELS = 12
"""height of the bar above the picture that shows the way through the rooms"""
BAR_COLORS = {"passed": (60, 160, 60), "ahead": (70, 70, 70), "here": (230, 230, 230)}


class PortalEnv(GridEnv):
    """Find the way through a chain of rooms by remembering which doors led on and which led back.

    Each room has two doors of different colors; one leads to the next room, the other back to the first.
    Which, where they are and their colors is drawn for each room of each episode. An agent that
    walks into a doorway sees where it leads (the door stands open, or turns out locked) and with its next
    action, whichever it is, appears at a random free cell of that room.

    ## Action space
    `Discrete(4)`: move right (0), down (1), left (2) or up (3). A move into a wall does nothing.

    ## Observation space
    `Box(uint8)`, indexed [x, y, channel]; channels are MiniGrid's object type (up to 10), color (up to 5)
    and state (up to 2). With `view_size=None` (the default) it is the whole room, 5x5 cells with its
    walls, in which the agent's cell has the type 10. Otherwise `view_size` x `view_size` cells around the
    agent, which stands in the middle; its own cell shows as empty, cells outside the room are walls.
    A door's state is 1 (closed) until the agent stands in it; then its cell shows the door, open (0) if
    it leads on and locked (2) if it leads back. Where the agent was, and how often, is not shown, nor is
    the number of the room.

    ## Reward
    +1 for leaving the last room, and 1 / rooms for leaving any room through its right door for the first
    time in the episode: 2 at most, which an agent with perfect memory always gets. `sparse=True` leaves
    the +1 only. Without memory no policy exceeds `memory_free_return` on average; for 5 rooms that is
    1.26 of 2 (success in 44% of episodes), for 50 rooms 0.21 of 2 (no success).

    ## Episode end
    Terminates in the right door of the last room. Truncated after
    `time_limit_factor * (3 * rooms * (rooms + 3) - 1)` steps, which is what an agent with perfect memory
    needs at worst: wrong once in every room, each time farthest from the door.

    ## Info
    `cue`: the agent stands in a doorway and sees where it leads (with `observable=True`: always).
    `oracle_action`: what an agent does that remembers all that this episode has shown it; it takes the
    right door if it knows it, else the nearer one. At the end also `is_success`, `rooms_passed` (rooms
    left through the right door at least once) and `repeated_mistakes` (wrong doors taken that the episode
    had already shown to be wrong, be it by taking the other one).

    ## Arguments
    See `PortalRules`, and `render_mode` ("rgb_array", "human" or None).

    ## Version history
    - v0: first version. Re-created from the description in the Expire-Span paper, whose code for it was
      never released. That the doorway shows where it leads, for one step, is ours.
    """

    episode_metrics = ("rooms_passed", "repeated_mistakes")
    """what the final info measures of the whole episode besides its success"""
    ARGUMENTS = tuple(field.name for field in dataclasses.fields(PortalRules))

    def __init__(self, *, render_mode: str | None = None, **arguments: Any) -> None:
        """Build the portal; arguments and ValueError as `PortalRules`."""
        self.rules = PortalRules(**arguments)
        super().__init__(render_mode, symbolic_space(self.rules.view_side, self.rules.view_side))
        self.correlation_horizon = self.rules.correlation_horizon
        self.max_return = self.rules.max_return
        self._chunk: Episodes | None = None
        self._next_episode = 0
        self._cells: list[int] = []
        self._looks: list[Look] = []
        self._rights: list[int] = []
        self._room = 0
        self._position = CELLS[0]
        self._doorway: int | None = None  # the look's door in which the agent stands

    @property
    def memory_free_return(self) -> float:
        """The most that a policy without memory gets on average."""
        return self.rules.memory_free_return

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._cells = []
        if seed is not None or self._chunk is None or self._next_episode == len(self._chunk.look_ER):
            self._chunk, self._next_episode = self.rules.draw(self.np_random), 0
        chunk, episode = self._chunk, self._next_episode
        self._next_episode += 1
        self._looks = [self.rules.look(number) for number in chunk.look_ER[episode].tolist()]
        self._rights = chunk.right_ER[episode].tolist()
        self._steps = 0
        self._passed = 0  # rooms 0 .. passed - 1 have been left through the right door
        self._known = 0  # rooms 0 .. known - 1 have shown which door is right
        self._repeated_mistakes = 0
        self._enter(0)
        self._ended = False
        self._show()
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        move = self._checked(action)
        self._steps += 1
        reward, terminated = 0.0, False
        if self._doorway is not None:
            self._enter(self._room + 1 if self._doorway == self._rights[self._room] else 0)
        else:
            ahead = (self._position[0] + STEPS[move][0], self._position[1] + STEPS[move][1])
            look = self._looks[self._room]
            if ahead in look.places:
                self._position, self._doorway = ahead, look.places.index(ahead)
                self._grid = self._build_grid()
                reward, terminated = self._open(self._doorway == self._rights[self._room])
            elif ahead in CELLS:
                self._position = ahead
        truncated = not terminated and self._steps >= self.rules.time_limit
        self._ended = terminated or truncated
        info = self._info()
        if self._ended:
            info["is_success"] = terminated
            info["rooms_passed"] = self._passed
            info["repeated_mistakes"] = self._repeated_mistakes
        self._show()
        return self._observe(), reward, terminated, truncated, info

    def place(
        self,
        looks: list[Look],
        rights: list[int],
        room: int,
        position: tuple[int, int],
        doorway: int | None = None,
        passed: int = 0,
    ) -> None:
        """Put the agent into a given portal (for the pictures of the vectorized version)."""
        self._looks, self._rights, self._room, self._passed = looks, rights, room, passed
        self._position, self._doorway = position, doorway
        self._grid = self._build_grid()

    def _enter(self, room: int) -> None:
        """Appear in a room."""
        if not self._cells:
            self._cells = self.rules.draw_cells(self.np_random).tolist()
        self._room, self._doorway = room, None
        self._position = CELLS[self._cells.pop(0)]
        self._grid = self._build_grid()

    def _open(self, right: bool) -> tuple[float, bool]:
        """Reward and end of a step into a doorway."""
        known = self._room < self._known
        self._known = max(self._known, self._room + 1)
        if not right:
            self._repeated_mistakes += known
            return 0.0, False
        new = self._room == self._passed
        self._passed += new
        success = self._room == self.rules.rooms - 1
        return self.rules.reward(new_room=new, success=success), success

    def _build_grid(self) -> Grid:
        """The room the agent is in, with its doors as they show themselves."""
        grid = Grid(ROOM_SIDE, ROOM_SIDE)
        grid.wall_rect(0, 0, ROOM_SIDE, ROOM_SIDE)
        look = self._looks[self._room]
        for index, (place, color) in enumerate(zip(look.places, look.colors, strict=True)):
            shown = self.rules.observable or self._doorway == index
            right = index == self._rights[self._room]
            grid.set(*place, Door(COLORS[color], is_open=shown and right, is_locked=shown and not right))
        return grid

    def _observe(self) -> Observation:
        side = self.rules.view_side
        whole = self.rules.view_size is None
        left, top = (0, 0) if whole else (self._position[0] - side // 2, self._position[1] - side // 2)
        view = np.empty((side, side, 3), dtype=np.uint8)
        for i in range(side):
            for j in range(side):
                x, y = left + i, top + j
                inside = 0 <= x < ROOM_SIDE and 0 <= y < ROOM_SIDE
                cell = self._grid.get(x, y) if inside else Wall()
                view[i, j] = EMPTY if cell is None else cell.encode()
        if whole and self._doorway is None:
            view[self._position] = AGENT
        return view

    def _info(self) -> dict[str, Any]:
        look, right = self._looks[self._room], self._rights[self._room]
        if self._doorway is not None:
            move = door_direction(look.places[self._doorway])  # any will do: go on
        else:
            move = oracle_action(self._position, look, right, knows=self._room < self._known)
        return {"cue": self.rules.observable or self._doorway is not None, "oracle_action": int(move)}

    def _picture(self) -> NDArray[np.uint8]:
        """The room, under a bar of all rooms: passed, ahead, and the one the agent is in.

        The agent does not see the bar.
        """
        seen = np.ones((ROOM_SIDE, ROOM_SIDE), dtype=bool)
        if self.rules.view_size is not None:
            radius = self.rules.view_size // 2
            x, y = np.indices(seen.shape)
            seen = np.maximum(abs(x - self._position[0]), abs(y - self._position[1])) <= radius
        direction = Move.RIGHT
        if self._doorway is not None:
            direction = door_direction(self._looks[self._room].places[self._doorway])
        room = self._grid.render(TILE_PIXELS * 2, self._position, direction, highlight_mask=seen)
        width = room.shape[1]
        bar = np.zeros((BAR_PIXELS, width, 3), dtype=np.uint8)
        number = np.arange(width) * self.rules.rooms // width  # of the room that each column stands for
        bar[:, :] = np.where((number < self._passed)[:, None], BAR_COLORS["passed"], BAR_COLORS["ahead"])
        bar[:, number == self._room] = BAR_COLORS["here"]
        if self.rules.rooms <= width // 4:
            bar[:, 1:][:, number[1:] != number[:-1]] = 0
        return np.concatenate([bar, room])
