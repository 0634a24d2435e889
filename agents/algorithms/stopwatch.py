"""Accumulates wall-clock time."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the wall-clock time spent inside `with stopwatch:`."""

    def __init__(self) -> None:
        """Start at zero."""
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_fault: object) -> None:
        self.seconds += time.perf_counter() - self._began
