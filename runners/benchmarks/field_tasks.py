"""Memory tasks of the field that report no success, for `--env MODULE:ID` with this module.

Re-created from their descriptions: the passive T-Maze (Ni et al. 2023, https://arxiv.org/abs/2307.03864),
RepeatPrevious and RepeatFirst (POPGym, Morad et al. 2023, https://arxiv.org/abs/2303.01859, the "easy"
sizes), and CartPole without velocities.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

NUM_SUITS, CARDS_PER_SUIT = 4, 13


class TMaze(gym.Env[np.ndarray, np.int64]):
    """A cue in the first observation; after `length` steps, reward 1 for the action that it names."""

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        """Keep the number of steps between cue and junction."""
        self.length = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw a cue."""
        super().reset(seed=seed)
        self._step, self._cue = 0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Walk on, whatever the action, or choose at the junction."""
        if self._step == self.length:
            return self._observe(), float(action == self._cue), True, False, {}
        self._step += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> np.ndarray:
        cue = 2.0 * self._cue - 1.0 if self._step == 0 else 0.0
        return np.array([cue, self._step == self.length, 1.0], dtype=np.float32)


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
    gym.register("RepeatPrevious-v0", f"{__name__}:Cards", kwargs={"delay": 4})
    gym.register("RepeatFirst-v0", f"{__name__}:Cards", kwargs={"delay": None})
    gym.register("PositionsOnlyCartPole-v0", f"{__name__}:PositionsOnly")


register()
