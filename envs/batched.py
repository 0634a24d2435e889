"""Base class of the vectorized environments: Gymnasium's interface, without any rules.

Shape letters:
    N  environments
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

Values = dict[str, NDArray[Any]]
"""named arrays, one row per environment"""


class BatchedEnv(VectorEnv[NDArray[Any], NDArray[np.int64], NDArray[Any]], ABC):
    """Many environments as NumPy arrays; environment i with seed s equals the reference with seed s + i.

    Resets finished episodes in the same step (`AutoresetMode.SAME_STEP`): the observation is the new
    episode's first, the old one's last is in `info["final_obs"]`. Infos are laid out as Gymnasium's
    `SyncVectorEnv` does with copies of the reference.
    """

    STATE_ARRAYS: ClassVar[tuple[str, ...]]
    """names of the attributes that hold the state of the batch, arrays with one row per environment"""

    metadata: dict[str, Any] = {  # noqa: RUF012 (as VectorEnv declares it)
        "render_modes": ["rgb_array"],
        "render_fps": 10,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int,
        render_mode: str | None,
        observation_space: spaces.Space[Any],
        num_actions: int,
    ) -> None:
        """Set the spaces; ValueError for an impossible number of environments or render mode."""
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        modes = self.metadata["render_modes"]
        if render_mode not in (None, *modes):
            allowed = ", ".join(repr(mode) for mode in modes)
            raise ValueError(f"render_mode must be {allowed} or None, got {render_mode!r}")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_action_space = spaces.Discrete(num_actions)
        self.single_observation_space = observation_space
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(observation_space, num_envs)
        # A single environment's generator (np_random) is the batch's list of generators here.
        self._rngs: list[np.random.Generator] = []
        self._all_envs = np.ones(num_envs, dtype=bool)
        self._num_actions = num_actions
        # All bits an action may have, if these are exactly the actions: 3 for four of them, -1 for five.
        self._action_bits = num_actions - 1 if num_actions & (num_actions - 1) == 0 else -1

    # -- Gymnasium's interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode everywhere, or where `options["reset_mask"]` is True."""
        mask = self._all_envs if not options or "reset_mask" not in options else options["reset_mask"]
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != (self.num_envs,):
            raise ValueError(
                f"options['reset_mask'] must have the shape ({self.num_envs},), got {mask.shape}"
            )
        seeds: Sequence[int | None]
        if seed is None:
            seeds = [None] * self.num_envs
        elif isinstance(seed, int | np.integer):
            seeds = [int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be a number or {self.num_envs} of them, got {len(seeds)}")
        if not self._rngs:
            self._rngs = [gym.utils.seeding.np_random(given)[0] for given in seeds]
        else:
            for index in np.flatnonzero(mask).tolist():
                if seeds[index] is not None:
                    self._rngs[index] = gym.utils.seeding.np_random(seeds[index])[0]
                    self._discard_draws(index)
        self._begin(np.flatnonzero(mask))
        return self._observe(), self._vector_info(self._step_info(), None if mask.all() else mask)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one action in every environment.

        Raises:
            ValueError: an action is not in `action_space`.
            gymnasium.error.ResetNeeded: nothing has been reset yet.
        """
        if not self._rngs:
            raise gym.error.ResetNeeded("reset must be called before the first step")
        rewards, terminated, truncated = self._advance(self._checked(actions))
        done = terminated | truncated
        info: dict[str, Any] = {}
        if done.any():
            ended = np.flatnonzero(done)
            final_obs = np.full(self.num_envs, None, dtype=object)
            last = self._observe()
            for index in ended:
                final_obs[index] = last[index]
            final_info = self._vector_info(self._step_info() | self._episode_info(), done)
            self._begin(ended)
            info = {"final_obs": final_obs, "_final_obs": done, "final_info": final_info, "_final_info": done}
        info |= self._vector_info(self._step_info(), None)
        return self._observe(), rewards, terminated, truncated, info

    def render(self) -> tuple[Any, ...] | None:
        """Render each environment as its reference does."""
        if self.render_mode is None:
            return None
        return tuple(self._render_env(index) for index in range(self.num_envs))

    # -- exact continuation ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly: arrays and plain types."""
        arrays = {name: getattr(self, name).copy() for name in self.STATE_ARRAYS}
        return {**arrays, "generators": [rng.bit_generator.state for rng in self._rngs]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called.

        Raises:
            ValueError: the state is of another number of environments, or of other arguments.
        """
        if len(state["generators"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['generators'])} environments, but there are {self.num_envs}"
            )
        for name in self.STATE_ARRAYS:
            shape = getattr(self, name).shape
            if name not in state or state[name].shape != shape:
                found = f"the shape {state[name].shape}" if name in state else "no value"
                raise ValueError(
                    f"the state is of environments with other arguments: {name} has {found}, not {shape}"
                )
        for name in self.STATE_ARRAYS:
            getattr(self, name)[:] = state[name]
        self._rngs = [gym.utils.seeding.np_random(0)[0] for _ in range(self.num_envs)]
        for rng, generator in zip(self._rngs, state["generators"], strict=True):
            rng.bit_generator.state = generator

    # -- rules, implemented by the subclass -----------------------------------------------------------

    @abstractmethod
    def _discard_draws(self, index: int) -> None:
        """Drop the episodes drawn ahead for one environment, because it has a new seed."""

    @abstractmethod
    def _begin(self, indices: NDArray[np.intp]) -> None:
        """Start the next episode of the environments at `indices`."""

    @abstractmethod
    def _advance(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
        """Take one action in every environment: rewards, terminated, truncated, all of them new arrays."""

    @abstractmethod
    def _observe(self) -> NDArray[Any]:
        """All observations, in a new array."""

    @abstractmethod
    def _step_info(self) -> Values:
        """Infos about the current observations, in new arrays."""

    @abstractmethod
    def _episode_info(self) -> Values:
        """Infos about whole episodes; only rows whose episode has just ended are read."""

    @abstractmethod
    def _render_env(self, index: int) -> Any:
        """The rendering of one environment."""

    # -- inside ------------------------------------------------------------------------------------

    def _checked(self, actions: NDArray[np.int64]) -> NDArray[np.int64]:
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions must be {self.num_envs} whole numbers, got {actions.dtype} of shape {actions.shape}"
            )
        if self._action_bits >= 0:
            in_space = not int(np.bitwise_or.reduce(actions)) & ~self._action_bits
        else:
            in_space = bool(actions.min() >= 0 and actions.max() < self._num_actions)
        if not in_space:
            index = int(np.flatnonzero((actions < 0) | (actions >= self._num_actions))[0])
            raise ValueError(
                f"the action of environment {index} is {actions[index]}, not in {self.single_action_space}"
            )
        return actions

    def _vector_info(self, values: Values, mask: NDArray[np.bool_] | None) -> dict[str, Any]:
        """An info dictionary in Gymnasium's vector layout: each name with `_name`, its mask.

        Environments outside `mask` get zeros (None for objects). No mask stands for all environments.
        """
        if mask is None:
            return values | {f"_{name}": self._all_envs.copy() for name in values}
        info: dict[str, Any] = {}
        for name, value in values.items():
            nothing: Any = None if value.dtype == object else value.dtype.type(0)
            info[name] = np.where(mask, value, nothing)
            info[f"_{name}"] = mask.copy()
        return info
