"""Rivals in processes of their own: each has its own peak memory, and works only when it is its turn."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

Turn = Callable[[Any], None]
"""A process calls it with an answer when it has worked; it returns when there is more to do."""
P = ParamSpec("P")
CLOSING_SECONDS = 5.0


class BenchmarkError(RuntimeError):
    """A rival failed; the message is its traceback."""


class OwnProcess:
    """A process that works in turns; use it as a context manager."""

    def __init__(
        self,
        work: Callable[Concatenate[Turn, P], None],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> None:
        """Start it. Its first answer, once it is ready, is `answer()`'s.

        Args:
            work: a function of a module, called there; its first argument is its `Turn`.
            arguments: what else it is called with; these are pickled.
            options: likewise.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work_in_turns, args=(theirs, work, arguments, options), daemon=True
        )
        self._process.start()
        theirs.close()

    def begin(self) -> None:
        """Let it work."""
        self._pipe.send(None)

    def answer(self) -> Any:
        """Wait until it has worked; raises BenchmarkError if it failed."""
        try:
            good, value = self._pipe.recv()
        except EOFError:
            self._process.join(CLOSING_SECONDS)
            code = self._process.exitcode
            raise BenchmarkError(f"a measured process ended with exit code {code}") from None
        if not good:
            raise BenchmarkError(value)
        return value

    def turn(self) -> tuple[float, Any]:
        """Let it work and wait for it; gives the seconds that took, and the answer."""
        began = time.perf_counter()
        self.begin()
        answer = self.answer()
        return time.perf_counter() - began, answer

    def __enter__(self) -> OwnProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()


def _work_in_turns(
    pipe: Any, work: Callable[..., None], arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    def turn(answer: Any) -> None:
        pipe.send((True, answer))
        pipe.recv()

    try:
        work(turn, *arguments, **options)
    except (EOFError, KeyboardInterrupt):
        pass  # nobody wants to know any more
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def peak_mebibytes() -> float:
    """The largest resident memory that this process has had.

    Where there is a /proc, from there: `getrusage` also counts what the process had been forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def stay_on(core: int) -> None:
    """Keep this process on one core, where the system lets it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
