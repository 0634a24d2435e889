"""Memory tasks of the field that report no success, for `--env MODULE:ID` with this module.

Re-created from their descriptions: the passive T-Maze (Ni et al. 2023, https://arxiv.org/abs/2307.03864),
RepeatPrevious and RepeatFirst (POPGym, Morad et al. 2023, https://arxiv.org/abs/2303.01859, the "easy"
sizes), and CartPole without velocities. Others are small tests of what a rule of forgetting may lose: a cue
shown four times, a cue that is needed in one episode of ten, evidence that adds up, and values that are found
through their keys.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NUM_SUITS, CARDS_PER_SUIT = 4, 13


class TMaze(gym.Env[np.ndarray, np.int64]):
    """A cue in the first observations; after `length` steps, reward 1 for the action that it names."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int, copies: int = 1, needed: float = 1.0) -> None:
        """Keep the settings.

        Args:
            length: number of steps between the first observation and the junction.
            copies: number of observations that show the cue.
            needed: probability that the junction asks for the cue; otherwise it asks for action 0.
        """
        self.length, self.copies, self.needed = length, copies, needed

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a cue, and whether it will be needed."""
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        self._is_needed = self.np_random.random() < self.needed
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk on, whatever the action, or choose at the junction."""
        if self._step == self.length:
            return self._observe(), float(action == self._cue * self._is_needed), True, False, {}
        self._step += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> np.ndarray:
        cue = 2.0 * self._cue - 1.0 if self._step < self.copies else 0.0
        at_junction = self._step == self.length
        return np.array([cue, at_junction, at_junction and self._is_needed], dtype=np.float32)


class Majority(gym.Env[np.int64, np.int64]):
    """An odd number of bits, one a step, and as many blank steps; then reward 1 for the more frequent bit."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(2)
    BLANK, QUESTION = np.int64(2), np.int64(3)

    def __init__(self, num_bits: int) -> None:
        """Keep the number of bits."""
        self.num_bits = num_bits

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Draw the bits."""
        super().reset(seed=seed)
        self._step, self._bits = 0, self.np_random.integers(2, size=self.num_bits)
        return self._bits[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Show the next bit, or judge the answer."""
        self._step += 1
        if self._step > 2 * self.num_bits:
            most = int(2 * self._bits.sum() > self.num_bits)
            return self.QUESTION, float(action == most), True, False, {}
        if self._step == 2 * self.num_bits:
            return self.QUESTION, 0.0, False, False, {}
        return self._bits[self._step] if self._step < self.num_bits else self.BLANK, 0.0, False, False, {}


class KeyValue(gym.Env[np.int64, np.int64]):
    """Keys, each followed by its value; then a key, and reward 1 for its value. Needs two layers."""

    NUM_KEYS, NUM_VALUES = 4, 4
    observation_space = spaces.Discrete(NUM_KEYS + NUM_VALUES + NUM_KEYS)
    action_space = spaces.Discrete(NUM_VALUES)

    def __init__(self, num_pairs: int) -> None:
        """Keep the number of pairs."""
        self.num_pairs = num_pairs

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Draw the pairs and the question."""
        super().reset(seed=seed)
        keys = self.np_random.permutation(self.NUM_KEYS)[: self.num_pairs]
        values = self.np_random.integers(self.NUM_VALUES, size=self.num_pairs)
        asked = int(self.np_random.integers(self.num_pairs))
        self._answer, self._step = values[asked], 0
        pairs = np.stack([keys, self.NUM_KEYS + values], 1).flatten()
        self._shown = np.append(pairs, self.NUM_KEYS + self.NUM_VALUES + keys[asked])
        return self._shown[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Show the next key or value, or judge the answer."""
        self._step += 1
        if self._step == len(self._shown):
            return self._shown[-1], float(action == self._answer), True, False, {}
        return self._shown[self._step], 0.0, False, False, {}


class Cards(gym.Env[np.int64, np.int64]):
    """A shuffled deck, one suit a step; the action names a suit seen before, for 1 or -1 in all."""

    observation_space = spaces.Discrete(NUM_SUITS)
    action_space = spaces.Discrete(NUM_SUITS)

    def __init__(self, delay: int | None) -> None:
        """Ask for the suit `delay` cards ago; None: for the first one."""
        self.delay = delay

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        """Shuffle."""
        super().reset(seed=seed)
        self._deck = self.np_random.permutation(np.repeat(np.arange(NUM_SUITS), CARDS_PER_SUIT))
        self._step = 0
        return self._deck[0], {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        """Judge the action, and show the next card."""
        asked = self._step - self.delay if self.delay is not None else 0
        num_asked = len(self._deck) - 1 - (self.delay or 0)
        reward = 0.0 if asked < 0 else (1.0 if action == self._deck[asked] else -1.0) / num_asked
        self._step += 1
        return self._deck[self._step], reward, self._step == len(self._deck) - 1, False, {}


class PositionsOnly(gym.ObservationWrapper[np.ndarray, np.int64, np.ndarray]):
    """CartPole that shows positions, not velocities."""

    def __init__(self) -> None:
        """Build CartPole."""
        super().__init__(gym.make("CartPole-v1"))
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """The positions of cart and pole."""
        return observation[[0, 2]]


def register() -> None:
    """Register the tasks with Gymnasium."""
    for length in (50, 200):
        gym.register(f"TMaze{length}-v0", f"{__name__}:TMaze", kwargs={"length": length})
    gym.register("RedundantCue-v0", f"{__name__}:TMaze", kwargs={"length": 20, "copies": 4})
    gym.register("RarelyNeededCue-v0", f"{__name__}:TMaze", kwargs={"length": 20, "needed": 0.1})
    gym.register("Majority-v0", f"{__name__}:Majority", kwargs={"num_bits": 9})
    gym.register("KeyValue-v0", f"{__name__}:KeyValue", kwargs={"num_pairs": 3})
    gym.register("RepeatPrevious-v0", f"{__name__}:Cards", kwargs={"delay": 4})
    gym.register("RepeatFirst-v0", f"{__name__}:Cards", kwargs={"delay": None})
    gym.register("PositionsOnlyCartPole-v0", f"{__name__}:PositionsOnly")


register()
