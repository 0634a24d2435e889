"""Log writers that run in a background thread."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import (
    KVWriter,
)

from memory_suite.runners.run.metrics_file import Excluded, Row, to_array

Notify = Callable[[str], None]


CLOSE_TIMEOUT_S = 40.0
"""how long the end of a run waits for each background writer"""


class BackgroundWriter(KVWriter):
    """Runs another writer in a thread of its own, so that its errors cannot stop or slow training.

    If the other writer raises, it is switched off. If it is so slow that the queue fills up,
    rows are dropped and counted. The thread is a daemon: a writer that hangs does not keep the
    process alive.
    """

    def __init__(
        self,
        make_writer: Callable[[], KVWriter],
        name: str,
        *,
        notify: Notify | None = None,
        queue_rows: int = 1000,
        close_timeout_seconds: float = CLOSE_TIMEOUT_S,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            make_writer: creates the writer; called in the thread.
            name: name of the writer in messages.
            notify: called when the writer is switched off or loses rows; None: print on stderr.
            queue_rows: capacity of the queue.
            close_timeout_seconds: how long `close` waits until the queue is empty.
            give_up: called after that time; kills what the writer may be waiting for.
        """
        self._make_writer = make_writer
        self._name = name
        self._notify = write_to_stderr if notify is None else notify
        self._close_timeout_seconds = close_timeout_seconds
        self._give_up = give_up
        self._queue: queue.Queue[tuple[Row, Excluded, int] | None] = queue.Queue(queue_rows)
        self._closed = False
        self.rows_dropped = 0
        """rows that never reached the writer because it was too slow"""
        self.is_off = False
        """whether the writer failed or was given up on"""
        self._thread = threading.Thread(target=self._run, name=f"writer {name}", daemon=True)
        self._thread.start()

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        if self.is_off or self._closed:
            return
        row = {key: _snapshot(value) for key, value in key_values.items()}
        try:
            self._queue.put_nowait((row, dict(key_excluded), step))
        except queue.Full:
            self.rows_dropped += 1

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        deadline = time.monotonic() + self._close_timeout_seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            try:
                self._queue.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._say(
                f"{self._name} was given up on after {self._close_timeout_seconds:g} s with about "
                f"{self._queue.qsize()} rows unwritten; metrics.jsonl has them all"
            )
            self.is_off = True
            if self._give_up is not None:
                self._give_up()
                self._thread.join(1.0)
        if self.rows_dropped:
            self._say(
                f"{self._name} was too slow and lost {self.rows_dropped} rows; metrics.jsonl has them all"
            )

    def _run(self) -> None:
        writer: KVWriter | None = None
        try:
            writer = self._make_writer()
            while (item := self._queue.get()) is not None:
                writer.write(*item)
        except BaseException as error:  # also SystemExit: no error may reach training
            self._switch_off(error)
        try:
            if writer is not None:
                writer.close()
        except BaseException as error:
            self._switch_off(error)

    def _switch_off(self, error: BaseException) -> None:
        if not self.is_off:
            self.is_off = True
            reason = " ".join(str(error).split()) or "no reason given"
            self._say(
                f"{self._name} is switched off ({type(error).__name__}: {reason}); "
                "training goes on and metrics.jsonl has every row"
            )

    def _say(self, message: str) -> None:
        with contextlib.suppress(Exception):  # an error of the listener must not reach training either
            self._notify(message)


def write_to_stderr(message: str) -> None:
    """Print a line on standard error."""
    sys.stderr.write(f"{message}\n")


def _snapshot(value: Any) -> Any:
    """A copy, since training may change arrays before the thread writes them."""
    return to_array(value).copy() if isinstance(value, np.ndarray | torch.Tensor) else value
