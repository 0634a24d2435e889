"""How long something takes that is done again and again."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the wall-clock time spent inside `with stopwatch:`."""

    def __init__(self) -> None:
        """Nothing is spent yet."""
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_fault: object) -> None:
        self.seconds += time.perf_counter() - self._began
