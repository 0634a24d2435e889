"""Adapter of Gymnasium vector environments to stable-baselines3, with errors that name the environment."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from memory_suite.envs.errors import EnvFailedError, SpaceMismatchError
from memory_suite.envs.space_checks import Limits, find_violation, part_label, space_limits
from memory_suite.envs.worker_errors import (
    failed_env_index,
    find_worker_failure,
    kill_workers,
    source_line,
)

WORKER_TIMEOUT_S = 600.0
"""time after which a worker process that has not answered counts as hung"""
MAX_REWARD = 1e18
"""largest absolute reward; the value loss takes its square, which must fit a float32"""

EPISODE_VALUES = ("is_success", "episode_class")
"""keys of `final_info` about the whole episode; all others are about its last observation"""


class GymnasiumVecEnv(VecEnv):
    """A batch of environments that resets each finished episode in the same step.

    Infos are SB3's: `terminal_observation`, `TimeLimit.truncated` and `episode` at the end of an episode, and
    the environments' infos about the current observation. Their infos about the last observation of an
    episode are in `terminal_info`. Metrics of a whole episode (the names in the environments' attribute
    `episode_metrics`) are in `episode` too, like the `info_keywords` of SB3's Monitor.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        *,
        seed: int | None = None,
        declarations: Mapping[str, Any] | None = None,
    ) -> None:
        """Wrap `env`.

        Args:
            env: vector environment with the autoreset mode SAME_STEP.
            seed: seed of the first reset; later resets continue the same random streams.
            declarations: attributes of the environments, for environments in worker processes.

        Raises:
            ValueError: `env` has another autoreset mode.
        """
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"env has the autoreset mode {mode}; it must be AutoresetMode.SAME_STEP, since the others "
                "put a step that belongs to no episode into every rollout"
            )
        self.env = env
        self._declarations = declarations or {}
        self.render_mode = env.render_mode
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self._limits = [*space_limits(env.single_observation_space)]
        has_metrics = self.has_attr("episode_metrics")
        self._episode_metrics: tuple[str, ...] = self.get_attr("episode_metrics")[0] if has_metrics else ()
        self._seed = seed
        self._first_seed = seed
        self._vector_steps = 0
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._all_envs = np.ones(env.num_envs, dtype=bool)
        self._actions: NDArray[Any] = np.zeros(0)
        self._began = time.time()

    # -- stepping ----------------------------------------------------------------------------------

    def reset(self) -> Any:
        """Begin an episode in every environment; the infos are in `reset_infos`."""
        seed, self._seed = self._seed, None
        try:
            if isinstance(self.env, AsyncVectorEnv):
                self.env.reset_async(seed=seed)
                observation, info = self.env.reset_wait(WORKER_TIMEOUT_S)
            else:
                observation, info = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._failure(error, f"in reset (seed {seed})") from error
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._vector_steps = 0
        self.reset_infos = self._step_infos(info)
        self._check_observation(observation)
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Take the stored actions, one in every environment."""
        self._vector_steps += 1
        try:
            if isinstance(self.env, AsyncVectorEnv):
                self.env.step_async(self._actions)
                observation, rewards, terminated, truncated, info = self.env.step_wait(WORKER_TIMEOUT_S)
            else:
                observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        except (Exception, SystemExit) as error:
            raise self._failure(error) from error
        self._check_observation(observation)
        fits = np.abs(rewards) <= MAX_REWARD  # NaN does not
        if not fits.all():
            index = int(np.flatnonzero(~fits)[0])
            limit = f", larger than {MAX_REWARD:g}," if np.isfinite(rewards[index]) else ""
            raise EnvFailedError(f"the reward is {rewards[index]}{limit} {self._location(index)}")
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        infos = self._step_infos(info)
        ended = np.flatnonzero(dones).tolist()
        if ended:
            self._check_final_obs(info["final_obs"], ended)
        for index in ended:
            time_limit = bool(truncated[index] and not terminated[index])
            infos[index] |= self._episode_end_info(index, info, time_limit)
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return observation, np.asarray(rewards, dtype=np.float32), dones, infos

    def _step_infos(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """The infos about the current observations, one dictionary per environment."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name, values in info.items():
            if name[0] == "_" or name in ("final_obs", "final_info") or isinstance(values, dict):
                continue
            given = info.get(f"_{name}")
            plain = values.tolist() if isinstance(values, np.ndarray) else list(values)
            if given is None or np.all(given):
                for one, value in zip(infos, plain, strict=True):
                    one[name] = value
            else:
                for index in np.flatnonzero(given).tolist():
                    infos[index][name] = plain[index]
        return infos

    def _episode_end_info(self, index: int, info: dict[str, Any], time_limit: bool) -> dict[str, Any]:
        """The keys that SB3 expects in the info at the end of an episode."""
        final = info["final_info"]
        last = {
            name: values[index].item() if isinstance(values[index], np.generic) else values[index]
            for name, values in final.items()
            if name[0] != "_"
            and not isinstance(values, dict)
            and final.get(f"_{name}", self._all_envs)[index]
        }
        seconds = round(time.time() - self._began, 6)
        episode = {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": seconds}
        episode |= {name: float(last[name]) for name in self._episode_metrics if name in last}
        return {
            "terminal_observation": info["final_obs"][index],
            "terminal_info": last,
            "TimeLimit.truncated": time_limit,
            "episode": episode,
            **{name: last[name] for name in EPISODE_VALUES if name in last},
        }

    # -- errors --------------------------------------------------------------------------------------

    def _check_observation(self, observation: Any) -> None:
        for name, limits in self._limits:
            part = observation if name is None else observation[name]
            self._check_values(part_label("the observation", name), part, limits, range(self.num_envs))

    def _check_final_obs(self, final_obs: NDArray[Any], ended: Sequence[int]) -> None:
        """Cast and check the last observations of episodes, from which truncated ones are bootstrapped.

        All other observations have been cast by the arrays of the batch; these have not.
        """
        for index in ended:
            for name, limits in self._limits:
                part = np.asarray(final_obs[index] if name is None else final_obs[index][name])
                if np.can_cast(part.dtype, limits.low.dtype, "same_kind"):
                    part = part.astype(limits.low.dtype, copy=False)
                what = part_label("an episode's last observation", name)
                self._check_values(what, part[np.newaxis], limits, [index])
                if name is None:
                    final_obs[index] = part
                else:
                    final_obs[index] = {**final_obs[index], name: part}

    def _check_values(self, what: str, values: NDArray[Any], limits: Limits, indices: Sequence[int]) -> None:
        """Raise if values lie outside their space; row k belongs to environment `indices[k]`."""
        violation = find_violation(what, values, limits)
        if violation is None:
            return
        row = violation.row
        if row is None and len(indices) == 1:
            row = 0
        raise EnvFailedError(f"{violation.text} {self._location(None if row is None else indices[row])}")

    def _failure(self, error: BaseException, when: str | None = None) -> EnvFailedError:
        """The error to raise for an exception out of the environments; ends their worker processes."""
        index = failed_env_index(self.env, error)
        if isinstance(self.env, AsyncVectorEnv):
            worker = find_worker_failure(self.env, error, WORKER_TIMEOUT_S)
            kill_workers(self.env)
            if worker is not None:
                return EnvFailedError(f"{worker.text} {self._location(worker.env_index, when)}")
        raised = str(error) if isinstance(error, EnvFailedError) else f"{type(error).__name__}: {error}"
        location = self._location(index, when)
        if isinstance(error, SpaceMismatchError):
            return SpaceMismatchError(f"{raised} {location}")
        line = source_line(self.env, error, index)
        return EnvFailedError(f"an environment raised {raised} {location}{line}")

    def _location(self, index: int | None = None, when: str | None = None) -> str:
        seeded = "" if self._first_seed is None else f", seed {self._first_seed + (index or 0)}"
        which = "" if index is None else f"in environment {index} of {self.num_envs}{seeded} "
        action = f", action {self._actions[index]}" if index is not None and len(self._actions) else ""
        return f"{which}{when or f'at step {self._vector_steps} of each environment{action}'}"

    # -- exact continuation --------------------------------------------------------------------------

    @property
    def can_save_state(self) -> bool:
        """Whether the wrapped environments' state can be saved."""
        return hasattr(self.env, "state_dict")

    def state_dict(self) -> dict[str, Any]:
        """Everything a later `load_state_dict` needs to go on exactly."""
        return {
            "env": self.env.state_dict(),  # type: ignore[attr-defined]
            "returns": self._returns.copy(),
            "lengths": self._lengths.copy(),
            "vector_steps": self._vector_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.env.load_state_dict(state["env"])  # type: ignore[attr-defined]
        self._returns[:] = state["returns"]
        self._lengths[:] = state["lengths"]
        self._vector_steps = state["vector_steps"]

    # -- the rest of SB3's interface -------------------------------------------------------------------

    def close(self) -> None:
        """Close the wrapped environments."""
        self.env.close()

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seed the next `reset`."""
        self._seed = self._first_seed = seed
        return [None if seed is None else seed + index for index in range(self.num_envs)]

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """One picture per environment."""
        images: Any = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of each environment, or of the batch if the environments are one object."""
        count = len(list(self._get_indices(indices)))
        if attr_name == "render_mode":
            return [self.render_mode] * count
        if hasattr(self.env, "envs"):
            return [self.env.envs[index].get_wrapper_attr(attr_name) for index in self._get_indices(indices)]
        if attr_name in self._declarations:
            return [self._declarations[attr_name]] * count
        return [getattr(self.env, attr_name)] * count

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of the environments."""
        if not hasattr(self.env, "envs"):
            raise NotImplementedError(f"{attr_name} cannot be set: these environments are one batch")
        for index in self._get_indices(indices):
            self.env.envs[index].set_wrapper_attr(attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method of the environments."""
        return [method(*args, **kwargs) for method in self.get_attr(method_name, indices)]

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """Whether `wrapper_class` is Monitor, which this adapter replaces: it keeps episode statistics."""
        from stable_baselines3.common.monitor import Monitor

        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))
