"""The environments of this suite: short names, Gymnasium ids, classes and arguments."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvSpec:
    """One registered environment."""

    id: str
    env: str
    """`module:Class` of the plain environment, the readable reference"""
    vector_env: str
    """`module:Class` of the vectorized version"""
    kwargs: dict[str, Any] = field(default_factory=dict)


def _family(name: str, variants: dict[str, dict[str, Any]]) -> dict[str, EnvSpec]:
    """The variants of one kind of environment, given the arguments of each."""
    title = name.capitalize()
    return {
        f"{name}-{variant}": EnvSpec(
            id=f"MemorySuite/{title}{variant.capitalize()}-v0",
            env=f"memory_suite.envs.{name}.env:{title}Env",
            vector_env=f"memory_suite.envs.{name}.vector:{title}VectorEnv",
            kwargs=kwargs,
        )
        for variant, kwargs in variants.items()
    }


REGISTRY: dict[str, EnvSpec] = {
    **_family(
        "corridor",
        {
            "short": {"min_length": 3, "max_length": 20},
            "long": {"min_length": 3, "max_length": 200},
            "endless": {"min_length": 3, "max_length": 2_000},
        },
    ),
    **_family("portal", {"short": {"rooms": 5}, "long": {"rooms": 50}}),
    **_family(
        "instruction",
        {
            "short": {"num_instructions": 2, "min_lines": 20, "num_lines": 20},
            "long": {"num_instructions": 6, "min_lines": 20, "num_lines": 2_000},
        },
    ),
}
"""all environments, by the short name that `--env` takes"""


def register_all() -> None:
    """Register every environment with Gymnasium."""
    for spec in REGISTRY.values():
        gym.register(
            spec.id, entry_point=spec.env, vector_entry_point=spec.vector_env, kwargs=dict(spec.kwargs)
        )


def resolve(name: str) -> str:
    """The Gymnasium id behind a short name or a registered id.

    For `MODULE:ID` the module is imported, so that it can register its environments. MiniGrid is imported
    only for an id that is not registered yet, since its import takes longer than all of this suite.

    Raises:
        ValueError: the name is unknown (the message lists the short names and the nearest match), or the
            module is missing or cannot be imported.
    """
    if name in REGISTRY:
        return REGISTRY[name].id
    module, _, env_id = name.rpartition(":")
    if module:
        _import(module, name)
    if env_id not in gym.registry:
        importlib.import_module("minigrid")
    try:
        gym.spec(env_id)
    except gym.error.Error as error:
        nearest = difflib.get_close_matches(name, [*REGISTRY, *gym.registry], n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(
            f"env: unknown environment {name!r}{hint} Known names: {', '.join(REGISTRY)}. "
            "You can also pass a registered Gymnasium id, or MODULE:ID"
        ) from error
    return env_id


def _import(module: str, name: str) -> None:
    """Import the module of an environment's name; ValueError if it is missing or raises."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an import may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(
                f"env: the module {error.name!r} of {name!r} does not exist or is not installed"
            ) from error
        raise ValueError(
            f"env: the module {module!r} of {name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
