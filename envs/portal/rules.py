"""The rules of the portal, shared by the reference environment and its vectorized version.

        #  #  r  #  #        #  walls; a room is 5x5 cells with them, as MiniGrid counts
        #  .  .  .  #        r  red door, closed
        #  .  A  .  #        b  blue door, closed
        b  .  .  .  #        A  agent
        #  #  #  #  #

One door of each room leads to the next room, the other back to the first. The agent walks into a
doorway and sees where it leads: the door stands open (on) or turns out locked (back). Whatever it does
next, it appears at a random free cell of the room it is led to. The right door of the last room ends
the episode.

A room's doors stay what they are for the whole episode: their places and colors, which is the room's
*look*, and which of them is right. Nothing else tells one room from another.

Shape letters:
    E  episodes
    R  rooms
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.grid_world import COLORS, STEPS, Move

ROOM_SIDE = 5
"""cells, walls included"""
CHUNK = 64
"""number of episodes drawn at a time, so that a reset of the vectorized version costs little"""
CELL_CHUNK = 512
"""cells of arrival drawn at a time"""
MAX_VIEW_SIZE = 2 * ROOM_SIDE - 1
"""shows the whole room even from a doorway"""

_INSIDE = range(1, ROOM_SIDE - 1)
CELLS = tuple((x, y) for y in _INSIDE for x in _INSIDE)
"""(x, y) of the free cells"""
NUM_CELLS = len(CELLS)
PLACES = tuple((x, y) for y in range(ROOM_SIDE) for x in range(ROOM_SIDE) if (x in _INSIDE) != (y in _INSIDE))
"""(x, y) of the wall cells that can have a door: all but the corners"""
PLACE_PAIRS = tuple(itertools.combinations(PLACES, 2))
"""where a room's two doors can be"""
MAX_STEPS_PER_ROOM = 2 * (ROOM_SIDE - 3) + 2
"""from the farthest free cell to the other corner, into the doorway and through it"""


class Look(NamedTuple):
    """The visible part of a room: its two doors."""

    places: tuple[tuple[int, int], tuple[int, int]]
    """(x, y) of each"""
    colors: tuple[int, int]
    """index in `COLORS` of each"""


class Episodes(NamedTuple):
    """Draws for a number of episodes."""

    look_ER: NDArray[np.int64]
    """number of each room's look, see `PortalRules.look`"""
    right_ER: NDArray[np.int64]
    """which of the look's two doors leads on"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PortalRules:
    """The arguments of a portal; raises ValueError if they are impossible."""

    rooms: int = 5
    num_colors: int = 6
    view_size: int | None = None
    """number of cells along one side of the view, with the agent in the middle; None: the whole room, in a
    fixed frame in which the agent moves"""
    sparse: bool = False
    """pay for leaving the last room only"""
    alike: bool = False
    """all rooms of an episode look alike, so that the agent must count; otherwise no two of them do"""
    observable: bool = False
    """every door shows at all times where it leads: no memory is needed"""
    time_limit_factor: int = 1
    """multiplies the steps that an agent with perfect memory needs at most"""

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("rooms", "num_colors", "view_size", "time_limit_factor"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and (name, value) != ("view_size", None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name in ("sparse", "alike", "observable"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not 2 <= self.num_colors <= len(COLORS):
            raise ValueError(
                f"num_colors must lie between 2, the number of doors in a room, and {len(COLORS)}, "
                f"got {self.num_colors}"
            )
        most = self.num_looks
        if self.rooms < 1:
            raise ValueError(f"rooms must be at least 1, got {self.rooms}")
        if self.rooms > most and not self.alike:
            raise ValueError(
                f"rooms must be at most {most}, the number of looks that {self.num_colors} colors allow, "
                f"got {self.rooms}; only with alike=True there may be more"
            )
        if self.view_size is not None and (
            not 3 <= self.view_size <= MAX_VIEW_SIZE or self.view_size % 2 == 0
        ):
            raise ValueError(
                f"view_size must be odd and between 3 and {MAX_VIEW_SIZE}, or None for the whole room, "
                f"got {self.view_size}"
            )
        if self.time_limit_factor < 1:
            raise ValueError(f"time_limit_factor must be at least 1, got {self.time_limit_factor}")

    @property
    def num_looks(self) -> int:
        """Number of looks: pairs of places times ordered pairs of colors."""
        return len(PLACE_PAIRS) * self.num_colors * (self.num_colors - 1)

    @property
    def view_side(self) -> int:
        """Cells along one side of the view."""
        return ROOM_SIDE if self.view_size is None else self.view_size

    @property
    def max_visits(self) -> int:
        """Most rooms an agent with perfect memory enters, the same room again counted again.

        It is wrong once in every room: the k-th failure comes after k rooms, the last run takes all.
        """
        return self.rooms * (self.rooms + 3) // 2

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated; an agent with perfect memory never needs more.

        The last doorway is the end: it takes no step to pass.
        """
        return self.time_limit_factor * (self.max_visits * MAX_STEPS_PER_ROOM - 1)

    @property
    def correlation_horizon(self) -> tuple[int, int]:
        """Fewest and most steps between the sight of an opened door and the next choice in its room.

        For an agent that goes straight and never repeats a mistake. Fewest: sent back to the first room,
        right beside its other door. Most: in the first room, which is entered again after being wrong in
        the last; as many visits, less the step into the doorway.
        """
        return 1, self.rooms * MAX_STEPS_PER_ROOM - 1

    @property
    def max_return(self) -> float:
        """The most an episode can pay: 1 for leaving the last room, and 1 / rooms for each room."""
        return 1.0 if self.sparse else 2.0

    @property
    def memory_free_return(self) -> float:
        """The most that a policy without memory gets on average, see `guess_rooms`."""
        if self.observable:
            return self.max_return
        success, rooms = guess_rooms(self.rooms, self.time_limit)
        return success if self.sparse else success + rooms / self.rooms

    def look(self, number: int) -> Look:
        """The look of a number below `num_looks`."""
        pair, colors = divmod(number, self.num_colors * (self.num_colors - 1))
        first, second = divmod(colors, self.num_colors - 1)
        # The second color is drawn from all but the first.
        return Look(PLACE_PAIRS[pair], (first, second + (second >= first)))

    def draw(self, rng: np.random.Generator) -> Episodes:
        """Draw the next `CHUNK` episodes."""
        if self.alike:
            look_ER = rng.integers(self.num_looks, size=(CHUNK, 1)).repeat(self.rooms, axis=1)
        else:
            look_ER = draw_distinct(rng, CHUNK, self.rooms, self.num_looks)
        return Episodes(look_ER, rng.integers(2, size=(CHUNK, self.rooms)))

    def draw_cells(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw the next `CELL_CHUNK` cells of arrival."""
        return rng.integers(NUM_CELLS, size=CELL_CHUNK)

    def reward(self, *, new_room: bool, success: bool) -> float:
        """Reward of a step into a doorway."""
        return (1.0 / self.rooms if new_room and not self.sparse else 0.0) + float(success)


def draw_distinct(rng: np.random.Generator, rows: int, length: int, below: int) -> NDArray[np.int64]:
    """Rows of distinct numbers below `below`, every such row equally likely.

    Whatever repeats an earlier number of its row is drawn again. No number is treated unlike another, so
    all rows of distinct numbers are equally likely.
    """
    if 4 * length > below:  # too many would be drawn again
        return rng.permuted(np.tile(np.arange(below), (rows, 1)), axis=1)[:, :length]
    drawn = rng.integers(below, size=(rows, length))
    while True:
        order = np.argsort(drawn, axis=1, kind="stable")
        ascending = np.take_along_axis(drawn, order, axis=1)
        row, column = np.nonzero(ascending[:, 1:] == ascending[:, :-1])
        if len(row) == 0:
            return drawn
        drawn[row, order[row, column + 1]] = rng.integers(below, size=len(row))


def door_direction(place: tuple[int, int]) -> Move:
    """The move that enters a door from the room's free cell beside it."""
    x, y = place
    if x in (0, ROOM_SIDE - 1):
        return Move.LEFT if x == 0 else Move.RIGHT
    return Move.UP if y == 0 else Move.DOWN


def steps_to_door(cell: tuple[int, int], place: tuple[int, int]) -> int:
    """Fewest steps from a free cell into a doorway."""
    return abs(cell[0] - place[0]) + abs(cell[1] - place[1])


def oracle_action(cell: tuple[int, int], look: Look, right: int, *, knows: bool) -> Move:
    """The action of an agent with perfect memory in a room.

    It goes to the right door if this episode has shown which one that is, else to the nearer (the first
    of two equally near): along the wall first, then into the doorway.
    """
    distances = [steps_to_door(cell, place) for place in look.places]
    door = right if knows else distances.index(min(distances))
    place = look.places[door]
    ahead = door_direction(place)
    sideways = ahead in (Move.LEFT, Move.RIGHT)
    along_wall = (0, place[1] - cell[1]) if sideways else (place[0] - cell[0], 0)
    for move, (dx, dy) in STEPS.items():
        if dx * along_wall[0] + dy * along_wall[1] > 0:
            return move
    return ahead


@functools.lru_cache(maxsize=64)
def guess_rooms(rooms: int, time_limit: int) -> tuple[float, float]:
    """Success and mean number of rooms passed of an agent that guesses in each room it enters.

    It takes the fewest steps possible, those to the nearer door, and is right half of the time. A policy
    without memory cannot do better: which door of a room is right does not depend on what the room looks
    like, so whatever it prefers is right in half of the episodes; and since it will be in that room again
    in the same episode, being right always in one half and never in the other is worse than a fair coin.

    Computed by following the probability of entering each room at each step, once for every k: how likely
    is it to pass k rooms in a row before the time is up?
    """
    steps, ways = np.unique(
        [
            min(steps_to_door(cell, place) for place in pair)
            for pair, cell in itertools.product(PLACE_PAIRS, CELLS)
        ],
        return_counts=True,
    )
    weights = (ways / ways.sum()).tolist()
    longest = int(steps.max()) + 1
    # [time of arrival, modulo the longest visit; k - 1; room], for arrivals still to come.
    arrivals = np.zeros((longest + 1, rooms, rooms))
    arrivals[0, :, 0] = 1.0
    passed = np.zeros(rooms)
    last = np.arange(rooms)
    for time in range(time_limit):
        slot = time % (longest + 1)
        now = arrivals[slot] / 2
        arrivals[slot] = 0.0
        if not now.any():
            continue
        wrong = now.sum(axis=1)
        right = now[last, last].copy()
        for taken, weight in zip(steps.tolist(), weights, strict=True):
            if time + taken <= time_limit:
                passed += weight * right
            later = arrivals[(time + taken + 1) % (longest + 1)]
            later[:, 0] += weight * wrong
            later[:, 1:] += weight * now[:, :-1]
        # Room k and beyond do not exist for the k-th row: who passes k rooms is counted and gone.
        arrivals[:, last[:, None] < last[None, :]] = 0.0
    return float(passed[-1]), float(passed.sum())
