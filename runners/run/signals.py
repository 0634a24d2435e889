"""Signals that request a checkpoint, or a checkpoint and exit.

SIGINT and SIGTERM only set a flag: the loop finishes its update, saves and exits with `EXIT_SAVED`.
A second one ends the process at once with exit code 128 + signal number (130 for SIGINT, 143 for
SIGTERM), without saving; the last checkpoint stays. SIGUSR1 asks for a checkpoint now.

Of several processes each may get the same request more than once: from whoever asks, and from `torchrun`,
which hands on what it gets. What comes within `ECHO_SECONDS` is the same request.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType, TracebackType

from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext

EXIT_SAVED = 75
"""Exit code of a run that was interrupted and saved (EX_TEMPFAIL: start it again, with --resume)."""

ECHO_SECONDS = 2.0
"""with several processes: a signal within this time of another counts as the same request"""

_SHOW_CURSOR = b"\x1b[?25h\n"
"""terminal sequence that shows the cursor again after a live display"""
_SAVE_SIGNALS = [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []  # Windows has none
_STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM]


class GracefulStop:
    """Context manager that turns signals into flags; use it in the main thread."""

    def __init__(self, ranks: DistributedContext = SINGLE_PROCESS) -> None:
        """No request yet; `ranks` are the processes of the run."""
        self.stop_signal: signal.Signals | None = None
        """the signal that requested saving and exit"""
        self._ranks = ranks
        self._echo_seconds = ECHO_SECONDS if ranks.is_distributed else 0.0
        self._asked_at = 0.0
        self._save_requested = False
        self._previous: dict[signal.Signals, signal.Handlers | object] = {}

    @property
    def stop_requested(self) -> bool:
        """Whether to save and exit after this update."""
        return self.stop_signal is not None

    def take_save_request(self) -> bool:
        """Whether a checkpoint was requested since the last call."""
        requested, self._save_requested = self._save_requested, False
        return requested

    def leave_together(self) -> None:
        """Wait for the other ranks, then ignore further signals.

        All is saved, and every process ends with the exit code that says so. `torchrun` ends the others as
        soon as one has left.
        """
        if not self._ranks.is_distributed:
            return
        self._ranks.barrier()
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)
        self._previous.clear()

    def __enter__(self) -> GracefulStop:
        for number in _STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._on_stop)
        for number in _SAVE_SIGNALS:
            self._previous[number] = signal.signal(number, self._on_save)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        self._previous.clear()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            if time.monotonic() - self._asked_at < self._echo_seconds:
                return
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), _SHOW_CURSOR)
            os._exit(128 + number)  # no clean-up: a second signal means now
        self._asked_at = time.monotonic()
        self.stop_signal = signal.Signals(number)

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self._save_requested = True
