"""Copy: a string is shown once and must be reproduced on demand, up to hundreds of thousands of tokens later.

    token     START  s1 s2 s3 s4   .  .  .  .  .  .  .   CUE  s1  s2  s3  |  START ...
    target                                               s1   s2  s3  s4  |
                     <------------ distance ------------>
                        <------------ distance ------------>

An episode, with n = `string_length`, is n + 1 + d + n tokens: the START token; a string of n symbols, each
drawn uniformly from an alphabet of `alphabet_size`; d tokens of noise; the CUE token; the string again, all
but its last symbol. Then the next episode begins, with `is_first` at its START token: nothing earlier is
needed. Reading the CUE token, the first symbol is to be predicted; reading a symbol of the repetition, the
next one. Nothing else is scored, n targets an episode.

Every symbol is predicted exactly `distance` tokens after it was shown, so d = distance - n: the distance is
at least n. It is drawn for each episode, or always the same (`distance`).

Noise is drawn uniformly from as many tokens of its own (`separate`: what a token is tells that it can be
forgotten) or from the string's own alphabet (`alphabet`: only the place after START tells what to keep).

The symbols are independent, so the chance accuracy is 1 / alphabet_size for each symbol, and that to the
power n for the whole string. To predict a symbol, the symbol itself must be in sight; the repetition and the
cue tell which one it is.

So that rows do not all show their targets at the same time, a row begins with noise that is not scored, of a
length drawn uniformly from 0 up to that of the longest episode.

Tokens: symbols from 0, then noise (if `separate`), then START and CUE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from memory_suite.envs.streams.generated import Piece, RowState
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, require_whole_numbers

DistanceDistribution = Literal["uniform", "log-uniform"]
Noise = Literal["separate", "alphabet"]
MAX_DISTANCE = 1 << 26
"""limited because an episode is drawn at once"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyRules:
    """The arguments of copy; raises ValueError if they contradict each other."""

    string_length: int = 16
    alphabet_size: int = 16
    min_distance: int = 64
    max_distance: int = 4_096
    distance: int | None = None
    """distance of every symbol; replaces the two above and the distribution"""
    distance_distribution: DistanceDistribution = "uniform"
    noise: Noise = "separate"

    def __post_init__(self) -> None:
        """Check the arguments."""
        require_whole_numbers(
            string_length=(self.string_length, 1),
            alphabet_size=(self.alphabet_size, 2),
            min_distance=(self.min_distance, 1),
            max_distance=(self.max_distance, 1),
        )
        if self.distance is not None:
            require_whole_numbers(distance=(self.distance, 1))
        if self.distance_distribution not in ("uniform", "log-uniform"):
            raise ValueError(
                "distance_distribution must be 'uniform' or 'log-uniform', "
                f"got {self.distance_distribution!r}"
            )
        if self.noise not in ("separate", "alphabet"):
            raise ValueError(f"noise must be 'separate' or 'alphabet', got {self.noise!r}")
        shortest, longest = self.bounds
        name = "min_distance" if self.distance is None else "distance"
        if shortest < self.string_length:
            raise ValueError(
                f"{name} must be at least string_length ({self.string_length}), since the whole string is "
                f"shown before it is asked for, got {shortest}"
            )
        if longest < shortest:
            raise ValueError(f"max_distance ({longest}) must not be less than min_distance ({shortest})")
        if longest > MAX_DISTANCE:
            name = "max_distance" if self.distance is None else "distance"
            raise ValueError(f"{name} must be at most {MAX_DISTANCE}, got {longest}")

    @property
    def bounds(self) -> tuple[int, int]:
        """Shortest and longest distance."""
        if self.distance is not None:
            return self.distance, self.distance
        return self.min_distance, self.max_distance

    @property
    def name(self) -> str:
        """Name of the task."""
        return "copy"

    @property
    def start_token(self) -> int:
        """Begins an episode."""
        return self.alphabet_size * (2 if self.noise == "separate" else 1)

    @property
    def cue_token(self) -> int:
        """Asks for the string."""
        return self.start_token + 1

    @property
    def vocabulary_size(self) -> int:
        """Symbols, noise, START and CUE."""
        return self.cue_token + 1

    @property
    def num_targets(self) -> int:
        """Symbols."""
        return self.alphabet_size

    @property
    def chance_accuracy(self) -> float:
        """Accuracy of guessing a single symbol."""
        return 1 / self.alphabet_size

    def episode_tokens(self, distance: int) -> int:
        """Length of an episode."""
        return distance + self.string_length + 1

    def start(self, rng: np.random.Generator) -> RowState:
        """Draw how much noise comes first."""
        return {"lead_in": int(rng.integers(self.episode_tokens(self.bounds[1])))}

    def draw(self, rng: np.random.Generator, state: RowState) -> tuple[Piece, RowState]:
        """The lead-in, if the row begins with one, or the next episode."""
        if state["lead_in"]:
            piece = self._unscored(state["lead_in"])
            piece.tokens[:] = self._draw_noise(rng, state["lead_in"])
            return piece, {"lead_in": 0}
        distance = self._draw_distance(rng)
        length = self.string_length
        string = rng.integers(self.alphabet_size, size=length)
        cue = distance + 1
        piece = self._unscored(self.episode_tokens(distance))
        piece.tokens[0] = self.start_token
        piece.tokens[1 : length + 1] = string
        piece.tokens[length + 1 : cue] = self._draw_noise(rng, distance - length)
        piece.tokens[cue] = self.cue_token
        piece.tokens[cue + 1 :] = string[:-1]
        piece.targets[cue:] = string
        piece.distance[cue:] = distance
        return piece, state

    def _unscored(self, num_tokens: int) -> Piece:
        piece = Piece(
            tokens=np.zeros(num_tokens, dtype=np.int32),
            targets=np.full(num_tokens, IGNORE, dtype=np.int32),
            is_first=np.zeros(num_tokens, dtype=np.bool_),
            distance=np.full(num_tokens, UNKNOWN, dtype=np.int32),
        )
        piece.is_first[0] = True
        return piece

    def _draw_noise(self, rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        first = self.alphabet_size if self.noise == "separate" else 0
        return rng.integers(first, first + self.alphabet_size, size=count)

    def _draw_distance(self, rng: np.random.Generator) -> int:
        shortest, longest = self.bounds
        if self.distance_distribution == "uniform":
            return int(rng.integers(shortest, longest + 1))
        # The floor of a log-uniform number in [shortest, longest + 1): every distance occurs.
        drawn = int(np.exp(rng.uniform(np.log(shortest), np.log(longest + 1))))
        return min(max(drawn, shortest), longest)
