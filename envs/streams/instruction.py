"""The instruction world as text: read on, and at a meeting say the message that was asked for, much earlier.

    token     can you tell the baker that the well is dry ?  ...  you see the baker .  ...
    target                                                                          ^ "the well is dry"

An episode of `envs.instruction`, its lines one after another without padding: what a line says, which lines
there are and how they are drawn is that environment's (its arguments are these, but for what concerns
reward). Each line ends in a period or a question mark. The next episode follows, with `is_first` at its first
token: nothing earlier is needed.

The target, at the last token of each meeting, is the message that the character has to be told, counted from
0. Nothing else is scored: `num_instructions` targets an episode. All messages are equally likely, whatever
else was said, so the chance accuracy is 1 / num_messages. What is needed is the instruction's line; the
distance leads back to its first token.

Shape letters:
    L  lines drawn at a time
    W  token positions of a line, padding included
    K  meetings among the lines
    X  tokens of all lines
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from memory_suite.envs.instruction.grammar import VOCABULARY
from memory_suite.envs.instruction.rules import InstructionRules, LinesDistribution
from memory_suite.envs.streams.generated import Piece, RowState
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructionTextRules:
    """The arguments of the instruction world as text; raises ValueError if they contradict each other."""

    num_instructions: int = 6
    """number of instructions in each episode"""
    min_lines: int = 20
    """fewest lines of an episode"""
    num_lines: int = 2_000
    """most lines of an episode"""
    lines_distribution: LinesDistribution = "uniform"
    num_characters: int = 10
    num_messages: int = 8
    lure_share: float = 0.3
    """share of lures, which mention characters and messages, among the lines that are neither instruction
    nor meeting"""

    def __post_init__(self) -> None:
        """Check the arguments."""
        self.world  # noqa: B018 (its own checks)

    @property
    def world(self) -> InstructionRules:
        """The rules of the environment."""
        return InstructionRules(**dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """Name of the task."""
        return "instruction"

    @property
    def vocabulary_size(self) -> int:
        """Words and punctuation of the grammar; its padding, token 0, is not used."""
        return len(VOCABULARY)

    @property
    def num_targets(self) -> int:
        """Messages."""
        return self.num_messages

    @property
    def chance_accuracy(self) -> float:
        """Accuracy of guessing the message at a meeting."""
        return 1 / self.num_messages

    def start(self, rng: np.random.Generator) -> RowState:
        """Rows have no state but their generator's: a piece is a number of whole episodes."""
        return {}

    def draw(self, rng: np.random.Generator, state: RowState) -> tuple[Piece, RowState]:
        """The next episodes."""
        world = self.world
        grammar = world.grammar
        num_lines_E, line_L = world.draw(rng)
        token_LW = grammar.tokens_LW[line_L]
        end_L = (token_LW != 0).sum(axis=1).cumsum()
        tokens_X = token_LW[token_LW != 0].astype(np.int32)
        piece = Piece(
            tokens=tokens_X,
            targets=np.full_like(tokens_X, IGNORE),
            is_first=np.zeros(tokens_X.shape, dtype=np.bool_),
            distance=np.full_like(tokens_X, UNKNOWN),
        )
        first_L = np.concatenate([[0], end_L[:-1]])
        piece.is_first[first_L[num_lines_E.cumsum() - num_lines_E]] = True

        # Instructions are numbered by pairs of character and message, and so are meetings after them: an
        # episode has at most one of each pair, so that its number and the pair's tell which belong together.
        episode_L = np.repeat(np.arange(len(num_lines_E)), num_lines_E)
        instruction_K = np.flatnonzero(line_L < grammar.num_pairs)
        meeting_K = np.flatnonzero((line_L >= grammar.num_pairs) & (line_L < 2 * grammar.num_pairs))
        both = [
            places[(episode_L[places] * grammar.num_pairs + line_L[places] % grammar.num_pairs).argsort()]
            for places in (instruction_K, meeting_K)
        ]
        instruction_K, meeting_K = both
        last_X = end_L[meeting_K] - 1
        piece.targets[last_X] = grammar.answers_L[line_L[meeting_K]] - 1
        piece.distance[last_X] = last_X - first_L[instruction_K]
        return piece, state
