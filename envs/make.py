"""Create environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from memory_suite.envs.registration import resolve
from memory_suite.envs.vec_env import as_declared, check_arguments

RENDER_MODES = ("rgb_array", "ansi")
"""in the order of preference"""


def make_env(name: str, env_args: Mapping[str, Any], *, pictures: bool = True) -> gym.Env[Any, Any]:
    """One plain environment by short name or Gymnasium id, with the observations that agents are given.

    Args:
        name: see `envs.registration.resolve`.
        env_args: its arguments.
        pictures: let it draw, as `rgb_array` if it can, else as text.

    Raises:
        ValueError: nobody knows the name, or the environment refuses an argument.
    """
    env_id = resolve(name)
    kwargs: dict[str, Any] = dict(env_args)
    spec = gym.spec(env_id)
    check_arguments(name, spec, kwargs)
    entry: Any = spec.entry_point
    creator = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    offered = getattr(creator, "metadata", {}).get("render_modes", [])
    mode = next((mode for mode in RENDER_MODES if mode in offered), None) if pictures else None
    try:
        return as_declared(gym.make(env_id, render_mode=mode, disable_env_checker=True, **kwargs))
    except (ValueError, TypeError, ImportError, gym.error.Error) as error:
        raise ValueError(f"env: {name} refuses its arguments: {error}") from error
