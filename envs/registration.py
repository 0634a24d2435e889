"""The environments of this suite: short names, Gymnasium ids and where each is written."""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One registered environment."""

    id: str
    env: str
    """`module:Class` of the readable reference"""
    vector_env: str
    """`module:Class` of its batched twin"""
    kwargs: dict[str, Any] = field(default_factory=dict)


def _family(name: str, variants: dict[str, dict[str, Any]]) -> dict[str, Entry]:
    """The entries of one kind of environment: its variants' names and the arguments that make them."""
    title = name.capitalize()
    return {
        f"{name}-{variant}": Entry(
            id=f"MemorySuite/{title}{variant.capitalize()}-v0",
            env=f"memory_suite.envs.{name}.env:{title}Env",
            vector_env=f"memory_suite.envs.{name}.vector:{title}VectorEnv",
            kwargs=kwargs,
        )
        for variant, kwargs in variants.items()
    }


ENTRIES: dict[str, Entry] = {
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
"""By the short name that `--env` takes."""


def register_all() -> None:
    """Make every entry known to Gymnasium."""
    for entry in ENTRIES.values():
        gym.register(
            entry.id, entry_point=entry.env, vector_entry_point=entry.vector_env, kwargs=dict(entry.kwargs)
        )


def resolve(name: str) -> str:
    """The Gymnasium id behind a short name or a registered id.

    Of `module:id` the module is imported, so that it can register its environments, and the id returned.

    Raises:
        ValueError: nobody knows the name (the message lists the short names and the nearest match), or the
            module is missing or cannot be imported.
    """
    if name in ENTRIES:
        return ENTRIES[name].id
    import_minigrid()
    module, _, env_id = name.rpartition(":")
    try:
        if module:
            _import(module)
        gym.spec(env_id)
    except ModuleNotFoundError as error:
        raise ValueError(f"env: of {name!r} there is no module {error.name!r} to import") from error
    except gym.error.Error as error:
        known = [*ENTRIES, *gym.registry]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
        raise ValueError(
            f"env: nobody knows {name!r}{hint} Short names are {', '.join(ENTRIES)}; "
            "any registered Gymnasium id works too, also as module:id"
        ) from error
    return env_id


def import_minigrid() -> None:
    """Import MiniGrid, which registers its environments; they are not needed for those of the suite."""
    importlib.import_module("minigrid")


def _import(module: str) -> None:
    """Import a module; ModuleNotFoundError means that itself is missing, not one that it imports."""
    try:
        importlib.import_module(module)
    except Exception as error:  # an import may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"env: the module {module!r} cannot be imported: it raised {type(error).__name__}: {error}"
        ) from error
