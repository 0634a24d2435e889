"""Checks of observations and rewards against the spaces that an environment declares."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from memory_suite.envs.errors import SpaceMismatchError


class Limits(NamedTuple):
    """Least and greatest value of each element, in the space's shape and dtype."""

    low: NDArray[Any]
    high: NDArray[Any]


class Violation(NamedTuple):
    """A value of a batch that lies outside its space."""

    text: str
    row: int | None
    """row of the batch; None if all rows are affected"""


def space_limits(space: spaces.Space[Any], name: str | None = None) -> Iterator[tuple[str | None, Limits]]:
    """Limits of a space, or of each part of a Dict with the part's name."""
    match space:
        case spaces.Dict():
            for part_name, part in space.spaces.items():
                yield from space_limits(part, part_name)
        case spaces.Box():
            yield name, Limits(space.low, space.high)
        case spaces.Discrete():
            first = np.asarray(space.start, space.dtype)
            yield name, Limits(first, np.asarray(space.start + space.n - 1, space.dtype))
        case spaces.MultiDiscrete():
            yield name, Limits(space.start, (space.start + space.nvec - 1).astype(space.dtype))
        case spaces.MultiBinary():
            yield name, Limits(np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype))


def part_label(what: str, name: str | None) -> str:
    """`what`, with the name of the part of a Dict."""
    return what if name is None else f"{what} {name!r}"


def find_violation(what: str, values: NDArray[Any], limits: Limits) -> Violation | None:
    """The first violation in a batch of values, one row per environment; None if all lie in their space."""
    low, high = limits
    if values.shape[1:] != low.shape or values.dtype != low.dtype:
        text = (
            f"{what} has the shape {values.shape[1:]} and dtype {values.dtype}, its space says "
            f"{low.shape} and {low.dtype}"
        )
        return Violation(text, None)
    flat = values.reshape(len(values), -1)
    low, high = low.reshape(-1), high.reshape(-1)
    bad = ~((flat >= low) & (flat <= high))  # NaN fails both
    if np.issubdtype(flat.dtype, np.floating):
        bad |= np.isinf(flat)
    if not bad.any():
        return None
    row, element = (int(number[0]) for number in np.nonzero(bad))
    allowed = f"[{low[element]}, {high[element]}]"
    return Violation(f"{what} is {flat[row, element]} at element {element}, outside {allowed},", row)


class CheckSpaces(gym.Wrapper[Any, Any, Any, Any]):
    """Check each environment's values before batching, so that errors name the environment.

    A batch would broadcast, flatten or cast them silently.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._limits = [*space_limits(env.observation_space)]

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        return self._checked(observation), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        value = np.asarray(reward)
        if value.size != 1 or value.dtype.kind not in "biuf":
            raise SpaceMismatchError(f"the reward is {reprlib.repr(reward)}, not a number,")
        return self._checked(observation), float(value.item()), terminated, truncated, info

    def _checked(self, observation: Any) -> Any:
        for name, limits in self._limits:
            if name is not None and not (isinstance(observation, Mapping) and name in observation):
                raise SpaceMismatchError(f"the observation has no part {name!r}")
            part = np.asarray(observation if name is None else observation[name])
            space = limits.low
            if part.shape != space.shape or not np.can_cast(part.dtype, space.dtype, "same_kind"):
                raise SpaceMismatchError(
                    f"{part_label('the observation', name)} has the shape {part.shape} and dtype "
                    f"{part.dtype}, its space says {space.shape} and {space.dtype},"
                )
        return observation
