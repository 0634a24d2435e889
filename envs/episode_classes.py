"""Classes of episodes by length, so that results can be reported for short and long episodes apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class EpisodeClasses:
    """Ranges of episode lengths, named as in "20-60": lengths above 20, up to 60."""

    shortest: int
    """shortest length of the first class"""
    bounds: tuple[int, ...]
    """longest length of each class but the last, which has no bound"""

    @cached_property
    def _names(self) -> NDArray[np.object_]:
        starts = (self.shortest, *self.bounds[:-1])
        ranges = [f"{first}-{last}" for first, last in zip(starts, self.bounds, strict=True)]
        return np.array([*ranges, f"{self.bounds[-1]}+"], dtype=object)

    def name(self, length: int) -> str:
        """Name of the class of a length."""
        name: str = self._names[np.searchsorted(self.bounds, length)]
        return name

    def names(self, length_N: NDArray[np.int64]) -> NDArray[np.object_]:
        """Name of the class of each length."""
        names: NDArray[np.object_] = self._names[np.searchsorted(self.bounds, length_N)]
        return names

    def between(self, shortest: int, longest: int) -> tuple[str, ...]:
        """Names of all classes of the lengths from `shortest` to `longest`."""
        first, last = np.searchsorted(self.bounds, [shortest, longest])
        return tuple(self._names[first : last + 1].tolist())
