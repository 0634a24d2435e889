"""Text in observations, as token numbers of fixed length.

Gymnasium's `Text` space says which characters may occur, not which words. So the words that MiniGrid's
and BabyAI's missions are made of have numbers of their own, and any other word shares one of the
remaining numbers, chosen by a checksum: the same in every process and in every version.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

PADDING = 0
VOCABULARY_SIZE = 1_024
MAX_WORDS = 72
"""longer texts are cut; the longest mission seen in MiniGrid's and BabyAI's levels has 37 words"""
KNOWN_WORDS = (
    ",", "a", "after", "and", "at", "avoid", "ball", "behind", "blue", "box", "door", "end", "fetch", "find",
    "from", "front", "get", "go", "goal", "green", "grey", "hallway", "in", "key", "lava", "left", "matching",
    "must", "near", "next", "object", "of", "on", "open", "opening", "pick", "purple", "put", "reach", "red",
    "right", "room", "rooms", "square", "the", "then", "to", "traverse", "unlock", "up", "use", "yellow",
    "you", "your",
)  # fmt: skip
_NUMBER_OF = {word: number for number, word in enumerate(KNOWN_WORDS, PADDING + 1)}
_FIRST_SHARED = PADDING + 1 + len(KNOWN_WORDS)
_WORD = re.compile(r"[\w']+|[^\w\s]")


def token_numbers(text: str) -> NDArray[np.int64]:
    """The words and punctuation marks of `text` as numbers, padded with `PADDING` to `MAX_WORDS`."""
    numbers = np.full(MAX_WORDS, PADDING, dtype=np.int64)
    for index, word in enumerate(_WORD.findall(text.lower())[:MAX_WORDS]):
        shared = _FIRST_SHARED + zlib.crc32(word.encode()) % (VOCABULARY_SIZE - _FIRST_SHARED)
        numbers[index] = _NUMBER_OF.get(word, shared)
    return numbers


def has_text(space: spaces.Space[Any]) -> bool:
    """Whether observations of this space are or contain text."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.Text) or _is_mission(part) for part in parts)


class TokenizeText(gym.ObservationWrapper[Any, Any, Any]):
    """Every text in the observation as a `MultiDiscrete` line of token numbers."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap `env`, whose observation is a text or a Dict with texts in it."""
        super().__init__(env)
        space = env.observation_space
        line = spaces.MultiDiscrete(np.full(MAX_WORDS, VOCABULARY_SIZE))
        self._texts: tuple[str, ...] | None = None
        if isinstance(space, spaces.Dict):
            parts = dict(space.spaces)
            self._texts = tuple(name for name, part in parts.items() if has_text(part))
            self.observation_space = spaces.Dict(parts | dict.fromkeys(self._texts, line))
        else:
            self.observation_space = line

    def observation(self, observation: Any) -> Any:
        """The observation with its texts tokenized."""
        if self._texts is None:
            return token_numbers(observation)
        return {**observation, **{name: token_numbers(observation[name]) for name in self._texts}}


def _is_mission(space: spaces.Space[Any]) -> bool:
    """MiniGrid's own space of texts, which is not a `Text`."""
    from minigrid.core.mission import MissionSpace

    return isinstance(space, MissionSpace)
