"""Creation of environments by name: a plain one, or a batch of them for stable-baselines3."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.vector import AutoresetMode

from memory_suite.envs.minigrid_observation import MiniGridObservation
from memory_suite.envs.registration import REGISTRY, resolve
from memory_suite.envs.space_checks import CheckSpaces
from memory_suite.envs.text_observation import TokenizeText, has_text
from memory_suite.envs.vec_env import GymnasiumVecEnv
from memory_suite.envs.worker_errors import WorkerTraceback

Vectorization = Literal["sync", "async"]
RENDER_MODES = ("rgb_array", "ansi")
"""in the order of preference"""
DECLARATIONS = ("episode_classes", "episode_metrics")
"""attributes of an environment that declare the classes and metrics of its episodes"""


def make_env(name: str, env_args: Mapping[str, Any], *, pictures: bool = True) -> gym.Env[Any, Any]:
    """One plain environment by short name or Gymnasium id, with the observations that agents are given.

    Args:
        name: see `envs.registration.resolve`.
        env_args: arguments of the environment.
        pictures: create it with a render mode: `rgb_array` if it has that, else `ansi`.

    Raises:
        ValueError: the name is unknown, or the environment rejects an argument.
    """
    env_id = resolve(name)
    kwargs = dict(env_args)
    spec = gym.spec(env_id)
    check_arguments(name, spec, kwargs)
    entry: Any = spec.entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    offered = getattr(creator, "metadata", {}).get("render_modes", [])
    mode = next((mode for mode in RENDER_MODES if mode in offered), None) if pictures else None
    try:
        return wrap_observations(gym.make(env_id, render_mode=mode, disable_env_checker=True, **kwargs))
    except (ValueError, TypeError, ImportError, gym.error.Error) as error:
        raise ValueError(f"env: invalid arguments for {name}: {error}") from error


def make_vec_env(
    name: str,
    num_envs: int,
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    *,
    vectorization: Vectorization = "sync",
    **options: Any,
) -> GymnasiumVecEnv:
    """A batch of environments by short name or Gymnasium id; those of this suite are vectorized in NumPy.

    Args:
        name: see `envs.registration.resolve`.
        num_envs: number of environments.
        seed: seed of the first reset; environment i gets `seed + i`.
        env_kwargs: arguments of the environment.
        vectorization: for environments of other packages: all copies in this process, or each in a worker
            process of its own.
        options: further arguments of `gymnasium.make_vec`, such as `render_mode`.

    Raises:
        ValueError: the name is unknown, the environment rejects an argument (the message names it), or
            a package that it needs is missing.
    """
    env_id = resolve(name)
    kwargs = env_kwargs or {}
    check_arguments(name, gym.spec(env_id), kwargs)
    declarations: dict[str, Any] = {}
    try:
        if env_id in {spec.id for spec in REGISTRY.values()}:
            env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **options, **kwargs)
        else:
            # Most batched environments of other packages reset in the next step, so copies of the plain
            # environment are used.
            mode: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
            wrappers: list[Any] = [wrap_observations, CheckSpaces]
            if vectorization == "async":
                mode["context"] = "spawn"  # a fork would copy torch's threads in whatever state they are
                wrappers = [WorkerTraceback, *wrappers]
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
        raise ValueError(f"env: invalid arguments for {name}: {error}") from error
    except (ImportError, gym.error.Error) as error:
        raise ValueError(f"env: could not create {name}: {error}") from error
    except Exception as error:
        raise ValueError(f"env: could not create {name}: {type(error).__name__}: {error}") from error
    return GymnasiumVecEnv(env, seed=seed, declarations=declarations)


def check_arguments(name: str, spec: EnvSpec, kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that the environment does not have."""
    entry: Any = spec.entry_point
    if isinstance(entry, str):
        try:
            entry = load_env_creator(entry)
        except ImportError as error:
            raise ValueError(f"env: could not create {name}: {error}") from error
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


def wrap_observations(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment with observations that an encoder can read by their space alone."""
    if MiniGridObservation.fits(env):
        env = MiniGridObservation(env)
    return TokenizeText(env) if has_text(env.observation_space) else env


def _declarations(env_id: str, **options: Any) -> dict[str, Any]:
    """The declarations of an environment; a worker process would end if asked for one that is missing."""
    with contextlib.closing(gym.make(env_id, disable_env_checker=True, **options)) as env:
        return {name: env.get_wrapper_attr(name) for name in DECLARATIONS if env.has_wrapper_attr(name)}
