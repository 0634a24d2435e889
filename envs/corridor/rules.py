"""The rules of the corridor, shared by the reference environment and its vectorized version.

            +-----------------------------------+
            | B                              D  |        B  ball of the episode's color
            | .  .  .  .  .  .  .  .  .  .   .  |        D  doors, one of each color, shuffled
            |                                D  |
            +-----------------------------------+
    x         0  1  2  ...             length

The agent starts at x = 0, below the ball, and walks a corridor one cell high. The doors line the
walls of its last cells, alternately above and below, from x = `length` on.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.episode_classes import EpisodeClasses
from memory_suite.envs.grid_world import COLORS, Move

CHUNK = 64
"""number of episodes drawn at a time, so that a reset of the vectorized version costs little"""
TIME_LIMIT_EXTRA_STEPS = 4
"""added to the length before the time limit's factor, so that short corridors leave room to explore"""
CLASSES = EpisodeClasses(shortest=3, bounds=(20, 60, 120, 200, 2_000))
"""by length of the corridor"""

LengthDistribution = Literal["uniform", "log-uniform"]


class Episodes(NamedTuple):
    """Draws for a number of episodes."""

    length_E: NDArray[np.int64]
    cue_E: NDArray[np.int64]
    """color of the ball, as a number below `num_colors`"""
    doors_EN: NDArray[np.int64]
    """color of each door, in the order top, bottom, top, ... of the last cells"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorridorRules:
    """The arguments of a corridor; raises ValueError if they contradict each other."""

    min_length: int = 3
    max_length: int = 200
    length: int | None = None
    """length of every corridor; replaces the two above and the distribution"""
    length_distribution: LengthDistribution = "uniform"
    num_colors: int = 2
    view_size: int = 3
    time_limit_factor: int = 4
    observable: bool = False
    """the cell below the agent's feet shows the ball: no memory is needed"""

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("min_length", "max_length", "length", "num_colors", "view_size", "time_limit_factor"):
            value = getattr(self, name)
            if not isinstance(value, Integral) and (name, value) != ("length", None):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        if self.view_size < 3 or self.view_size % 2 == 0:
            raise ValueError(f"view_size must be odd and at least 3, got {self.view_size}")
        if not 2 <= self.num_colors <= len(COLORS):
            raise ValueError(f"num_colors must lie between 2 and {len(COLORS)}, got {self.num_colors}")
        if self.time_limit_factor < 1:
            raise ValueError(f"time_limit_factor must be at least 1, got {self.time_limit_factor}")
        if self.length_distribution not in ("uniform", "log-uniform"):
            raise ValueError(
                f"length_distribution must be 'uniform' or 'log-uniform', got {self.length_distribution!r}"
            )
        shortest, longest = self.bounds
        name = "min_length" if self.length is None else "length"
        if shortest < self.view_size:
            raise ValueError(
                f"{name} must be at least view_size ({self.view_size}), so that the ball and the doors are "
                f"never in sight together, got {shortest}"
            )
        if longest < shortest:
            raise ValueError(f"max_length ({longest}) must not be less than min_length ({shortest})")

    @property
    def bounds(self) -> tuple[int, int]:
        """Shortest and longest corridor."""
        return (self.min_length, self.max_length) if self.length is None else (self.length, self.length)

    @property
    def radius(self) -> int:
        """Number of cells that the agent sees in each direction."""
        return self.view_size // 2

    @property
    def num_door_cells(self) -> int:
        """Cells of the corridor that have a door above, most of them another below."""
        return (self.num_colors + 1) // 2

    @property
    def max_return(self) -> float:
        """The most an episode can pay."""
        return 1.0

    @property
    def memory_free_return(self) -> float:
        """The most that a policy without memory gets on average: it guesses the color."""
        return 1.0 if self.observable else 1.0 / self.num_colors

    @property
    def correlation_horizon(self) -> tuple[int, int]:
        """Fewest and most steps between the last sight of the ball and the use of its color.

        For an agent that walks straight: the ball is seen last at x = radius, the first door is
        entered from x = length, the last one from the corridor's end.
        """
        shortest, longest = self.bounds
        return shortest - self.radius, longest + self.num_door_cells - 1 - self.radius

    @property
    def episode_classes(self) -> tuple[str, ...]:
        """Names of the classes of lengths that can occur."""
        shortest, longest = self.bounds
        return CLASSES.between(shortest, longest)

    def time_limit(self, length_E: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps after which an episode is truncated."""
        return self.time_limit_factor * (length_E + TIME_LIMIT_EXTRA_STEPS)

    def draw(self, rng: np.random.Generator) -> Episodes:
        """Draw the next `CHUNK` episodes."""
        shortest, longest = self.bounds
        if self.length_distribution == "uniform":
            length_E = rng.integers(shortest, longest + 1, CHUNK)
        else:
            # The floor of a log-uniform number in [shortest, longest + 1): every length occurs.
            drawn = np.exp(rng.uniform(np.log(shortest), np.log(longest + 1), CHUNK))
            length_E = np.clip(drawn.astype(np.int64), shortest, longest)
        cue_E = rng.integers(self.num_colors, size=CHUNK)
        doors_EN = rng.permuted(np.tile(np.arange(self.num_colors), (CHUNK, 1)), axis=1)
        return Episodes(length_E, cue_E, doors_EN)

    def door_index(self, x: int, length: int, move: int) -> int | None:
        """Index of the door that a move from x enters, if any."""
        if move not in (Move.UP, Move.DOWN) or x < length:
            return None
        index = 2 * (x - length) + (move == Move.DOWN)
        return index if index < self.num_colors else None

    def oracle_action(self, x: int, length: int, door_of_cue: int) -> int:
        """The action of an agent that remembers the color."""
        goal = length + door_of_cue // 2
        if x != goal:
            return Move.RIGHT if x < goal else Move.LEFT
        return Move.UP if door_of_cue % 2 == 0 else Move.DOWN
