"""Small environments with known answers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class RepeatFirst(gym.Env[np.ndarray, Any]):
    """Say at the end what was seen at the beginning: `[bit, is_last]`, `length` steps, reward 1 or 0."""

    def __init__(self, length: int = 5) -> None:
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.bit = int(self.np_random.integers(2))
        self.t = 0
        return self._observe(), {"cue": True}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        done = self.t == self.length
        reward = float(done and int(action) == self.bit)
        return self._observe(), reward, done, False, {"cue": False, "is_success": reward > 0}

    def _observe(self) -> np.ndarray:
        cue = 2.0 * self.bit - 1.0 if self.t == 0 else 0.0
        return np.array([cue, float(self.t == self.length - 1)], dtype=np.float32)


class Endless(gym.Env[np.ndarray, Any]):
    """Reward 1 a step for ever: only a time limit ends it, so every value is 1 / (1 - gamma)."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), 1.0, False, False, {}


class AnySpace(gym.Env[Any, Any]):
    """Random observations of a space; episodes of seven steps."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.t += 1
        return self.observation_space.sample(), float(self.t % 2), self.t == 7, False, {}
