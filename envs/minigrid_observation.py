"""MiniGrid's own environments, with observations that say what they are.

MiniGrid declares its symbolic picture as bytes up to 255 and its mission as free text. Here the picture's
three numbers per cell (object, color, state) have their true bounds, so that they are read as
categories; missions are `envs.text_observation`'s. An episode ends with `is_success` in its info.
"""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, DIR_TO_VEC, OBJECT_TO_IDX
from minigrid.core.mission import MissionSpace
from minigrid.minigrid_env import MiniGridEnv

_CELL_HIGH = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), len(DIR_TO_VEC) - 1)
"""a door's state has three values, an agent's direction has four"""


class MiniGridObservation(gym.Wrapper[Any, Any, Any, Any]):
    """The environment as it is, with true bounds, without a mission that never changes, with `is_success`."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap `env`, which must be MiniGrid's and have MiniGrid's own observation."""
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        parts = dict(env.observation_space.spaces)
        shape = parts["image"].shape
        assert shape is not None
        high = np.broadcast_to(np.array(_CELL_HIGH, dtype=np.uint8), shape)
        parts["image"] = spaces.Box(np.zeros(shape, dtype=np.uint8), high, dtype=np.uint8)
        mission = parts["mission"]
        # BabyAI's missions vary without placeholders, in a subclass of this space.
        if type(mission) is MissionSpace and not mission.ordered_placeholders:
            del parts["mission"]
        self.observation_space = spaces.Dict(parts)

    @staticmethod
    def fits(env: gym.Env[Any, Any]) -> bool:
        """Whether `env` is one of MiniGrid's with the observation that MiniGrid documents."""
        space = env.observation_space
        if not isinstance(env.unwrapped, MiniGridEnv) or not isinstance(space, spaces.Dict):
            return False
        image = space.spaces.get("image")
        return (
            "mission" in space.spaces
            and isinstance(image, spaces.Box)
            and image.shape[-1:] == (len(_CELL_HIGH),)
            and int(image.high.max()) == np.iinfo(np.uint8).max
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """As the environment's."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._declared(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As the environment's; success is an end with a reward above 0, as MiniGrid defines it."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info = {**info, "is_success": bool(terminated and float(reward) > 0.0)}
        return self._declared(observation), reward, terminated, truncated, info

    def _declared(self, observation: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self.observation_space, spaces.Dict)
        return {name: observation[name] for name in self.observation_space.spaces}
