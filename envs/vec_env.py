"""Any Gymnasium vector environment as a stable-baselines3 `VecEnv`, with faults named where they happen."""

from __future__ import annotations

import contextlib
import inspect
import multiprocessing
import multiprocessing.connection
import reprlib
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

import memory_suite.envs  # noqa: F401  (registers the environments)
from memory_suite.envs.minigrid_observation import MiniGridObservation
from memory_suite.envs.registration import ENTRIES, resolve
from memory_suite.envs.text_observation import TokenizeText, has_text

Vectorization = Literal["sync", "async"]
WORKER_TIMEOUT_S = 600.0
"""a worker process that has not answered after so long counts as hung"""
WORKER_EXIT_S = 5.0
"""how long to wait at most for the exit code of a worker process whose pipe has closed"""
LARGEST_REWARD = 1e18
"""in size; the square of a larger one, which the value loss takes, does not fit a float32"""

DECLARATIONS = ("episode_classes", "episode_metrics")
"""attributes of an environment that say what its episodes can be and what they measure"""
FINAL_VALUES = ("is_success", "episode_class")
"""what `final_info` says of the whole episode; everything else in it is about its last observation"""


class EnvironmentFault(RuntimeError):
    """An environment did what none may do; the message says what, where and when."""


class SpaceFault(EnvironmentFault):
    """An environment returned something of another kind than it had declared."""


class GymnasiumVecEnv(VecEnv):
    """A batch of environments that resets each finished episode in the same step.

    Infos are SB3's: `terminal_observation`, `TimeLimit.truncated`, `episode` at an end, and whatever the
    environments say of the present observation; what they say of the last one is in `terminal_info`. What
    they measure of a whole episode (the names in their attribute `episode_metrics`) is in `episode` too, as
    SB3's Monitor does it with `info_keywords`.
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
            env: must reset in the same step.
            seed: of the first reset; later resets go on from there.
            declarations: attributes of the environments, where they are in other processes.

        Raises:
            ValueError: `env` resets in another way.
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
        self._checks = [*_value_checks(env.single_observation_space)]
        has_metrics = self.has_attr("episode_metrics")
        self._episode_metrics: tuple[str, ...] = self.get_attr("episode_metrics")[0] if has_metrics else ()
        self._seed = seed
        self._first_seed = seed
        self._vector_steps = 0
        self._returns = np.zeros(env.num_envs)
        self._lengths = np.zeros(env.num_envs, dtype=np.int64)
        self._actions: NDArray[Any] = np.zeros(0)
        self._began = time.time()

    # -- stepping ----------------------------------------------------------------------------------

    def reset(self) -> Any:
        """Begin an episode everywhere; their infos are in `reset_infos`."""
        seed, self._seed = self._seed, None
        try:
            if isinstance(self.env, AsyncVectorEnv):
                self.env.reset_async(seed=seed)
                observation, info = self.env.reset_wait(WORKER_TIMEOUT_S)
            else:
                observation, info = self.env.reset(seed=seed)
        except (Exception, SystemExit) as error:
            raise self._fault(error, f"in reset (seed {seed})") from error
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._vector_steps = 0
        self.reset_infos = self._present_infos(info)
        self._check(observation)
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[Any, NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Act in every environment."""
        self._vector_steps += 1
        try:
            if isinstance(self.env, AsyncVectorEnv):
                self.env.step_async(self._actions)
                observation, rewards, terminated, truncated, info = self.env.step_wait(WORKER_TIMEOUT_S)
            else:
                observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        except (Exception, SystemExit) as error:
            raise self._fault(error) from error
        self._check(observation)
        fits = np.abs(rewards) <= LARGEST_REWARD  # NaN does not
        if not fits.all():
            index = int(np.flatnonzero(~fits)[0])
            limit = f", larger than {LARGEST_REWARD:g}," if np.isfinite(rewards[index]) else ""
            raise EnvironmentFault(f"the reward is {rewards[index]}{limit} {self._where(index)}")
        self._returns += rewards
        self._lengths += 1
        dones = terminated | truncated
        infos = self._present_infos(info)
        ended = np.flatnonzero(dones).tolist()
        if ended:
            self._take_final(info["final_obs"], ended)
        for index in ended:
            infos[index] |= self._ending(index, info, bool(truncated[index] and not terminated[index]))
        self._returns[dones] = 0.0
        self._lengths[dones] = 0
        return observation, np.asarray(rewards, dtype=np.float32), dones, infos

    def _present_infos(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Per environment what `info` says of its present observation."""
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

    def _ending(self, index: int, info: dict[str, Any], time_limit: bool) -> dict[str, Any]:
        """What SB3 wants to know of an episode that ended."""
        final = info["final_info"]
        last = {
            name: values[index].item() if isinstance(values[index], np.generic) else values[index]
            for name, values in final.items()
            if name[0] != "_" and not isinstance(values, dict) and final.get(f"_{name}", self._all)[index]
        }
        seconds = round(time.time() - self._began, 6)
        episode = {"r": float(self._returns[index]), "l": int(self._lengths[index]), "t": seconds}
        episode |= {name: float(last[name]) for name in self._episode_metrics if name in last}
        return {
            "terminal_observation": info["final_obs"][index],
            "terminal_info": last,
            "TimeLimit.truncated": time_limit,
            "episode": episode,
            **{name: last[name] for name in FINAL_VALUES if name in last},
        }

    @property
    def _all(self) -> NDArray[np.bool_]:
        return np.ones(self.num_envs, dtype=bool)

    # -- faults ------------------------------------------------------------------------------------

    def _check(self, observation: Any) -> None:
        for name, limits in self._checks:
            part = observation if name is None else observation[name]
            self._check_values(_part_name("the observation", name), part, limits, range(self.num_envs))

    def _take_final(self, final_obs: NDArray[Any], ended: Sequence[int]) -> None:
        """The last observation of an episode matters too: a truncated one is valued by it.

        All others have passed through the batch's arrays, which cast them; these come as they are.
        """
        for index in ended:
            for name, limits in self._checks:
                part = np.asarray(final_obs[index] if name is None else final_obs[index][name])
                if np.can_cast(part.dtype, limits.low.dtype, "same_kind"):
                    part = part.astype(limits.low.dtype, copy=False)
                what = _part_name("an episode's last observation", name)
                self._check_values(what, part[np.newaxis], limits, [index])
                if name is None:
                    final_obs[index] = part
                else:
                    final_obs[index] = {**final_obs[index], name: part}

    def _check_values(self, what: str, part: NDArray[Any], limits: _Limits, indices: Sequence[int]) -> None:
        """Refuse what lies outside its space; row k is of environment `indices[k]`."""
        low, high = limits
        if part.shape[1:] != low.shape or part.dtype != low.dtype:
            raise EnvironmentFault(
                f"{what} has the shape {part.shape[1:]} and dtype {part.dtype}, its space says "
                f"{low.shape} and {low.dtype} {self._where(indices[0] if len(indices) == 1 else None)}"
            )
        flat = part.reshape(len(indices), -1)
        low, high = low.reshape(-1), high.reshape(-1)
        bad = ~((flat >= low) & (flat <= high))  # NaN fails both
        if np.issubdtype(flat.dtype, np.floating):
            bad |= np.isinf(flat)
        if bad.any():
            row, element = (int(number[0]) for number in np.nonzero(bad))
            allowed = f"[{low[element]}, {high[element]}]"
            value = flat[row, element]
            fault = f"{what} is {value} at element {element}, outside {allowed}"
            raise EnvironmentFault(f"{fault}, {self._where(indices[row])}")

    def _fault(self, error: BaseException, when: str | None = None) -> EnvironmentFault:
        """What an exception out of the environments means."""
        raising = self._raising_index(error)
        if isinstance(self.env, AsyncVectorEnv):
            what, index = self._worker_fault(self.env, error)
            _end_workers(self.env)
            if what is not None:
                return EnvironmentFault(f"{what} {self._where(index, when)}")
        raised = str(error) if isinstance(error, EnvironmentFault) else f"{type(error).__name__}: {error}"
        where = self._where(raising, when)
        if isinstance(error, SpaceFault):
            return SpaceFault(f"{raised} {where}")
        return EnvironmentFault(f"an environment raised {raised} {where}{self._raised_at(error, raising)}")

    @staticmethod
    def _worker_fault(env: AsyncVectorEnv, error: BaseException) -> tuple[str | None, int | None]:
        """What became of a worker process, and of which environment; (None, None) if it lives."""
        what, which = None, None
        if isinstance(error, multiprocessing.TimeoutError):
            what = f"a worker process did not answer within {WORKER_TIMEOUT_S:g} s"
            silent = (index for index, pipe in enumerate(env.parent_pipes) if pipe and not pipe.poll())
            which = next(silent, None)
        if isinstance(error, EOFError | OSError):
            ended = multiprocessing.connection.wait([p.sentinel for p in env.processes], WORKER_EXIT_S)
            for process in env.processes:
                process.join(WORKER_EXIT_S if process.sentinel in ended else 0.0)
        for index, process in enumerate(env.processes):
            if process.exitcode not in (None, 0):
                what, which = f"a worker process ended with exit code {process.exitcode}", index
                break
        return what, which

    def _raising_index(self, error: BaseException) -> int | None:
        """Which environment raised."""
        if isinstance(self.env, AsyncVectorEnv):
            return next((index for index, pipe in enumerate(self.env.parent_pipes) if pipe is None), None)
        # Of a `SyncVectorEnv` only its loop knows, so ask the traceback.
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(frame.f_locals.get("self"), SyncVectorEnv):
                index = frame.f_locals.get("i")
                return index if isinstance(index, int) else None
        return None

    def _raised_at(self, error: BaseException, index: int | None) -> str:
        """The innermost line of the environment's own package; of a worker process the message has it all."""
        if isinstance(self.env, AsyncVectorEnv):
            return ""
        env: Any = self.env.envs[index or 0] if hasattr(self.env, "envs") else self.env
        package = type(env.unwrapped).__module__.partition(".")[0]
        found = ""
        for frame, line in traceback.walk_tb(error.__traceback__):
            is_ours = frame.f_globals is globals()  # this file waits for the environment
            if not is_ours and str(frame.f_globals.get("__name__")).partition(".")[0] == package:
                found = f" (raised at {frame.f_code.co_filename}:{line}, in {frame.f_code.co_qualname})"
        return found

    def _where(self, index: int | None = None, when: str | None = None) -> str:
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
        """One picture for each environment."""
        images: Any = self.env.render()
        return [None] * self.num_envs if images is None else list(images)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the environments (of the batch, if they are one object)."""
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
        """Episode statistics are kept here, so nobody need add a Monitor."""
        from stable_baselines3.common.monitor import Monitor

        return [issubclass(Monitor, wrapper_class)] * len(list(self._get_indices(indices)))


def make_vec_env(
    name: str,
    num_envs: int,
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    *,
    vectorization: Vectorization = "sync",
    **options: Any,
) -> GymnasiumVecEnv:
    """Environments by short name or Gymnasium id; the batched twin where there is one.

    Args:
        name: see `envs.registration.resolve`.
        num_envs: how many.
        seed: of the first reset; environment i gets `seed + i`.
        env_kwargs: arguments of the environment.
        vectorization: of an environment without a batched twin: all copies in this process, or each in a
            worker process of its own.
        options: further arguments of `gymnasium.make_vec`, such as `render_mode`.

    Raises:
        ValueError: nobody knows the name, the environment refuses an argument (the message names it), or
            a package that it needs is missing.
    """
    env_id = resolve(name)
    spec = gym.spec(env_id)
    kwargs = env_kwargs or {}
    check_arguments(name, spec, kwargs)
    declarations: dict[str, Any] = {}
    try:
        if env_id in {entry.id for entry in ENTRIES.values()}:
            env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options, **kwargs)
        else:
            # Of other packages' batched environments most reset in the next step; copies of the plain one
            # do not have to.
            mode: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
            wrappers: list[Any] = [as_declared, _HeldToItsWord]
            if vectorization == "async":
                mode["context"] = "spawn"  # a fork would copy torch's threads in whatever state they are
                wrappers = [_NamedFaults, *wrappers]
                declarations = _declarations(env_id, **options, **kwargs)
            env = gym.make_vec(
                env_id,
                num_envs,
                vectorization_mode=vectorization,
                vector_kwargs=mode,
                wrappers=wrappers,
                **options,
                **kwargs,
            )
    except (ValueError, TypeError) as error:
        raise ValueError(f"env: {name} refuses its arguments: {error}") from error
    except (ImportError, gym.error.Error) as error:
        raise ValueError(f"env: {name} cannot be made: {error}") from error
    except Exception as error:
        raise ValueError(f"env: {name} cannot be made: it raised {type(error).__name__}: {error}") from error
    return GymnasiumVecEnv(env, seed=seed, declarations=declarations)


def _declarations(env_id: str, **options: Any) -> dict[str, Any]:
    """What an environment says of its episodes; asking a worker process for what it lacks would end it."""
    with contextlib.closing(gym.make(env_id, disable_env_checker=True, **options)) as env:
        return {name: env.get_wrapper_attr(name) for name in DECLARATIONS if env.has_wrapper_attr(name)}


def check_arguments(name: str, spec: gym.envs.registration.EnvSpec, kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the environment does not have."""
    entry: Any = spec.entry_point
    if isinstance(entry, str):
        try:
            entry = gym.envs.registration.load_env_creator(entry)
        except ImportError as error:
            raise ValueError(f"env: {name} cannot be made: {error}") from error
    parameters = dict(inspect.signature(entry).parameters)
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        allowed: set[str] = set(getattr(entry, "ARGUMENTS", ()))
        if not allowed:
            return
    else:
        allowed = set(parameters) - {"self", "render_mode"}
    for key in kwargs:
        if key not in allowed:
            known = ", ".join(sorted(allowed))
            raise ValueError(f"env: {name} has no argument {key!r}; it has {known}")


def _part_name(what: str, name: str | None) -> str:
    return what if name is None else f"{what} {name!r}"


class _Limits(NamedTuple):
    """Least and greatest value of each element, in the space's shape and dtype."""

    low: NDArray[Any]
    high: NDArray[Any]


def _value_checks(space: spaces.Space[Any], name: str | None = None) -> Iterator[tuple[str | None, _Limits]]:
    """The limits that every step is checked against, with their names in a Dict."""
    match space:
        case spaces.Dict():
            for part_name, part in space.spaces.items():
                yield from _value_checks(part, part_name)
        case spaces.Box():
            yield name, _Limits(space.low, space.high)
        case spaces.Discrete():
            first = np.asarray(space.start, space.dtype)
            yield name, _Limits(first, np.asarray(space.start + space.n - 1, space.dtype))
        case spaces.MultiDiscrete():
            yield name, _Limits(space.start, (space.start + space.nvec - 1).astype(space.dtype))
        case spaces.MultiBinary():
            yield name, _Limits(np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype))


def _end_workers(env: AsyncVectorEnv) -> None:
    """Close environments of which one has failed: others may hang too, or be deaf to a polite request."""
    for process in env.processes:
        process.kill()
    env._state = AsyncState.DEFAULT  # or it would wait for their answers
    env.close(terminate=True)


class _HeldToItsWord(gym.Wrapper[Any, Any, Any, Any]):
    """Refuses what a batch would stretch, flatten or cast without a word, while it is known whose it is."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._checks = [*_value_checks(env.observation_space)]

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return self._checked(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        value = np.asarray(reward)
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise SpaceFault(f"the reward is {reprlib.repr(reward)}, not a number,")
        return self._checked(observation), float(value.item()), terminated, truncated, info

    def _checked(self, observation: Any) -> Any:
        for name, limits in self._checks:
            if name is not None and not (isinstance(observation, Mapping) and name in observation):
                raise SpaceFault(f"the observation has no part {name!r}")
            part = np.asarray(observation if name is None else observation[name])
            space = limits.low
            if part.shape != space.shape or not np.can_cast(part.dtype, space.dtype, "same_kind"):
                raise SpaceFault(
                    f"{_part_name('the observation', name)} has the shape {part.shape} and dtype "
                    f"{part.dtype}, its space says {space.shape} and {space.dtype},"
                )
        return observation


class _NamedFaults(gym.Wrapper[Any, Any, Any, Any]):
    """In a worker process: an exception's traceback becomes part of its message, or it would stay there."""

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        with _traceback_in_message():
            return self.env.reset(**options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        with _traceback_in_message():
            return self.env.step(action)


@contextlib.contextmanager
def _traceback_in_message() -> Iterator[None]:
    try:
        yield
    except SpaceFault:
        raise  # says all there is to say
    except Exception as error:
        what = f"{type(error).__name__}: {error}\nin its worker process:\n{traceback.format_exc()}"
        raise EnvironmentFault(what) from error


def as_declared(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment with observations that an encoder can read by their space alone."""
    if MiniGridObservation.fits(env):
        env = MiniGridObservation(env)
    return TokenizeText(env) if has_text(env.observation_space) else env
