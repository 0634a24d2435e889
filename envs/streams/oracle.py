"""Window oracle: it knows the rules, sees the last N tokens, and guesses when they are not enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, Stream

WINDOWS = (1_024, 4_096, 16_384, 32_768, 65_536)
"""tokens that the oracles of the project's tables see"""
_BLOCK_TOKENS = 8_192


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowErrors:
    """Errors of window oracles on one stream."""

    error: dict[int, float]
    """by window in tokens, 0 to 1"""
    chance_error: float
    """error of guessing"""
    num_targets_scored: int
    median_distance: float
    """tokens; half of the targets need a longer window"""


def window_errors(stream: Stream, windows: Sequence[int], num_tokens: int) -> WindowErrors:
    """Continue reading a stream and count, for each window, the scored targets that it suffices for.

    Args:
        stream: a stream whose targets have known distances; it is read until its end or `num_tokens`.
        windows: numbers of tokens an oracle sees, the one at which it answers included.
        num_tokens: most tokens to read of each row, rounded up to whole blocks.

    Raises:
        ValueError: the stream does not tell distances or its chance accuracy, or nothing in it was scored.
    """
    if stream.chance_accuracy is None:
        raise ValueError(
            f"the task {stream.name!r} has no oracle: the tokens that its targets need are unknown"
        )
    scored = []
    end = stream.position + num_tokens
    while stream.position < end and not stream.exhausted:
        block = stream.read(_BLOCK_TOKENS)
        distance = block.distance[block.targets != IGNORE]
        if (distance == UNKNOWN).any():
            raise ValueError(f"the task {stream.name!r} has targets whose distance is unknown")
        scored.append(distance)
    distances = np.concatenate(scored) if scored else np.empty(0, dtype=np.int64)
    if not len(distances):
        raise ValueError(f"num_tokens ({num_tokens}) is too few: nothing was scored")
    chance_error = 1 - stream.chance_accuracy
    return WindowErrors(
        error=errors_by_window(distances, windows, chance_error),
        chance_error=chance_error,
        num_targets_scored=len(distances),
        median_distance=float(np.median(distances)),
    )


def errors_by_window(
    distances: NDArray[np.integer[Any]], windows: Sequence[int], chance_error: float
) -> dict[int, float]:
    """Error of the oracle for each window, given the distance of each target."""
    return {window: chance_error * float((distances >= window).mean()) for window in windows}
