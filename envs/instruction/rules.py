"""The rules of the instruction world, shared by the reference environment and its vectorized version.

    line    what is read                                       what a good agent says
    0       The cat sleeps under the mirror.
    1       Can you tell the baker that the well is dry?                                    instruction
    2       Did anyone tell the baker that the king is coming?                              lure
    3       You see the baker's horse.                                                      lure
    4       You see the baker.                                 The well is dry.             meeting
    5       I like the blue kettle of my brother.

An episode is a text of a drawn number of lines, one a step; what the agent says changes nothing in it. Each
of `num_instructions` characters has one instruction and, on a later line, one meeting. Their lines fall
anywhere between the others. Nobody else is ever met, and a character is named by lures as often whether
instructed or not, so only the instruction tells which message is due.

Shape letters:
    E  episodes drawn together
    L  their lines, one episode after another
    K  instructions and meetings of one episode
    I  instructions of one episode
    C  characters
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.episode_classes import EpisodeClasses
from memory_suite.envs.instruction.grammar import CHARACTERS, MESSAGES, Grammar, grammar

CHUNK_LINES = 8_192
"""Number of lines drawn at a time, so that a reset of the vectorized version costs little. Episodes are drawn
whole: as many as surely fit, at least one."""
CLASSES = EpisodeClasses(shortest=2, bounds=(50, 200, 600, 2_000))
"""by number of lines; the shortest episode is one instruction and its meeting"""

LinesDistribution = Literal["uniform", "log-uniform"]


class Episodes(NamedTuple):
    """Draws for a number of episodes."""

    num_lines_E: NDArray[np.int64]
    line_L: NDArray[np.int64]
    """line numbers of the grammar"""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionRules:
    """The arguments of an instruction world; raises ValueError if they contradict each other."""

    num_instructions: int = 2
    """number of instructions in each episode"""
    min_lines: int = 20
    """fewest lines of an episode"""
    num_lines: int = 20
    """most lines of an episode"""
    lines_distribution: LinesDistribution = "uniform"
    num_characters: int = 10
    num_messages: int = 8
    """the agent's actions are to listen and to say each of these"""
    lure_share: float = 0.3
    """share of lures, which mention characters and messages, among the lines that are neither instruction
    nor meeting"""
    speaking_penalty: float = 0.01
    """subtracted from the reward for speaking at a line that is no meeting"""
    observable: bool = False
    """a meeting's line says which message is due: no memory is needed"""

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("num_instructions", "min_lines", "num_lines", "num_characters", "num_messages"):
            value = getattr(self, name)
            if not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, got {value!r}")
        for name in ("lure_share", "speaking_penalty"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a number, got {value!r}")
        if not 1 <= self.num_characters <= len(CHARACTERS):
            raise ValueError(
                f"num_characters must lie between 1 and {len(CHARACTERS)}, got {self.num_characters}"
            )
        if not 1 <= self.num_instructions <= self.num_characters:
            raise ValueError(
                f"num_instructions must lie between 1 and num_characters ({self.num_characters}), since "
                f"each character has one instruction at most, got {self.num_instructions}"
            )
        if not 2 <= self.num_messages <= len(MESSAGES):
            raise ValueError(f"num_messages must lie between 2 and {len(MESSAGES)}, got {self.num_messages}")
        if self.min_lines < self.num_marked:
            raise ValueError(
                f"min_lines must be at least {self.num_marked}, a line for each of {self.num_instructions} "
                f"instructions and another for its meeting, got {self.min_lines}"
            )
        if self.num_lines < self.min_lines:
            raise ValueError(
                f"num_lines ({self.num_lines}) must not be less than min_lines ({self.min_lines})"
            )
        if self.lines_distribution not in ("uniform", "log-uniform"):
            raise ValueError(
                f"lines_distribution must be 'uniform' or 'log-uniform', got {self.lines_distribution!r}"
            )
        if not 0 <= self.lure_share <= 1:
            raise ValueError(f"lure_share must lie between 0 and 1, got {self.lure_share}")
        if self.speaking_penalty < 0:
            raise ValueError(f"speaking_penalty must be at least 0, got {self.speaking_penalty}")

    @property
    def grammar(self) -> Grammar:
        """The lines that can occur."""
        return grammar(self.num_characters, self.num_messages, self.observable)

    @property
    def num_marked(self) -> int:
        """Lines of an episode that are an instruction or a meeting."""
        return 2 * self.num_instructions

    @property
    def chunk_episodes(self) -> int:
        """Episodes that `draw` draws."""
        return max(CHUNK_LINES // self.num_lines, 1)

    @property
    def chunk_lines(self) -> int:
        """Most lines that `draw` draws."""
        return self.chunk_episodes * self.num_lines

    @property
    def correlation_horizon(self) -> tuple[int, int]:
        """Fewest and most lines between an instruction and the use of its message."""
        return 1, self.num_lines - 1

    @property
    def max_return(self) -> float:
        """Return of an agent that remembers: 1 / num_instructions a meeting, nothing taken away."""
        return 1.0

    @property
    def memory_free_return(self) -> float:
        """The largest mean return of any policy that observes only the current line.

        Actions do not change the text, so each line can be considered on its own. Speaking at a line that is
        no meeting earns nothing or less. At a meeting the due message was drawn uniformly and independently
        of the visible line, so any message is right with probability 1 / num_messages. Always saying the same
        message reaches that.
        """
        return 1.0 if self.observable else 1.0 / self.num_messages

    @property
    def episode_classes(self) -> tuple[str, ...]:
        """Names of the classes of episodes that can occur."""
        return CLASSES.between(self.min_lines, self.num_lines)

    def draw(self, rng: np.random.Generator) -> Episodes:
        """Draw the next `chunk_episodes` episodes."""
        lines = self.grammar
        num_lines_E = self._draw_num_lines(rng)
        instruction_EI, meeting_EI = self._draw_places(rng, num_lines_E)
        shape = instruction_EI.shape
        character_EC = rng.random((len(num_lines_E), self.num_characters)).argsort(axis=1)
        character_EI = character_EC[:, : self.num_instructions]
        message_EI = rng.integers(self.num_messages, size=shape)
        line_L = lines.draw_distractors(rng, int(num_lines_E.sum()), self.lure_share)
        first_E1 = (num_lines_E.cumsum() - num_lines_E)[:, None]
        line_L[first_E1 + instruction_EI] = lines.instruction(character_EI, message_EI)
        line_L[first_E1 + meeting_EI] = lines.meeting(character_EI, message_EI)
        return Episodes(num_lines_E, line_L)

    def _draw_num_lines(self, rng: np.random.Generator) -> NDArray[np.int64]:
        fewest, most = self.min_lines, self.num_lines
        if self.lines_distribution == "uniform":
            return rng.integers(fewest, most + 1, self.chunk_episodes)
        # The floor of a log-uniform number in [fewest, most + 1): every number of lines occurs.
        drawn = np.exp(rng.uniform(np.log(fewest), np.log(most + 1), self.chunk_episodes))
        return np.clip(drawn.astype(np.int64), fewest, most)

    def _draw_places(
        self, rng: np.random.Generator, num_lines_E: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The places of each instruction and its meeting in their episode.

        Every marked line falls into a gap before, between or after the other lines, each gap and each
        order within a gap equally likely. Lines k and num_instructions + k belong together; the earlier one
        is the instruction.
        """
        num_gaps_E = num_lines_E - self.num_marked + 1
        fall_EK = rng.random((len(num_lines_E), self.num_marked)) * num_gaps_E[:, None]
        marked_before_EK = fall_EK.argsort(axis=1).argsort(axis=1)
        place_EK = fall_EK.astype(np.int64) + marked_before_EK
        first_EI, second_EI = place_EK[:, : self.num_instructions], place_EK[:, self.num_instructions :]
        return np.minimum(first_EI, second_EI), np.maximum(first_EI, second_EI)
