"""Measured agents in processes of their own: each has its own peak memory and works only in its turn."""

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
"""called by a process with the answer of a turn; returns when the next turn starts"""
P = ParamSpec("P")
CLOSING_SECONDS = 5.0


class BenchmarkError(RuntimeError):
    """A measured process failed; the message is its traceback."""


class WorkerProcess:
    """A process that works one turn at a time; use it as a context manager."""

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
            target=_run_turns, args=(theirs, work, arguments, options), daemon=True
        )
        self._process.start()
        theirs.close()

    def begin(self) -> None:
        """Start its next turn."""
        self._pipe.send(None)

    def answer(self) -> Any:
        """Wait for the end of its turn; raises BenchmarkError if it failed."""
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
        """Run one turn; returns its seconds and its answer."""
        began = time.perf_counter()
        self.begin()
        answer = self.answer()
        return time.perf_counter() - began, answer

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.join()


def _run_turns(
    pipe: Any, work: Callable[..., None], arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    def turn(answer: Any) -> None:
        pipe.send((True, answer))
        pipe.recv()

    try:
        work(turn, *arguments, **options)
    except (EOFError, KeyboardInterrupt):
        pass  # the main process has closed the pipe
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def peak_mebibytes() -> float:
    """Peak resident memory of this process.

    Read from /proc where there is one: `getrusage` also counts the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def stay_on(core: int) -> None:
    """Pin this process to one core, where the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
