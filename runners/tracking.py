"""What happened, update by update: metrics.jsonl is the truth, everything else mirrors it.

All are writers of stable-baselines3's logger. `MetricsFile` is written before training goes on.
Weights & Biases, TensorBoard and CSV each live behind a `MirrorWriter`, in a thread of their own: if
one is slow it loses rows, if one fails it is switched off, and training notices neither.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
    filter_excluded_keys,
)

from configs.run_config import RunConfig, to_dict
from runners.run_folder import RunFolder

if TYPE_CHECKING:
    from wandb import Run

Row = dict[str, Any]
Excluded = dict[str, tuple[str, ...]]
Notify = Callable[[str], None]

STEP_KEY = "time/total_timesteps"
"""The metric every chart is drawn over."""

PROJECT = "memory-suite"
"""Weights & Biases project of all runs."""

HISTOGRAM_BINS = 32
"""In metrics.jsonl, an array of more entries than this is kept as a histogram of so many bins; W&B too."""

WANDB_START_S = 15.0
"""how long W&B may take to begin a run before it is one that stays on this disk"""
WANDB_FINISH_S = 30.0
"""how long it may take to send what is left"""
MIRROR_CLOSE_S = 40.0
"""how long the end of a run waits for any mirror"""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A finished video, for writers that show media; others leave it out."""

    path: Path
    caption: str


NOT_MEDIA = ("stdout", "log", "json", "csv", "tensorboard")
"""writers that show no media: what to exclude when a `VideoFile` is recorded"""


class RunLogger(Logger):
    """A stable-baselines3 logger that knows its metrics.jsonl."""

    def __init__(self, folder: str, metrics: MetricsFile, mirrors: list[MirrorWriter]) -> None:
        """Write to metrics.jsonl first, then to the mirrors."""
        super().__init__(folder, [metrics, *mirrors])
        self.metrics = metrics
        self.mirrors = mirrors


def make_logger(
    folder: RunFolder,
    config: RunConfig,
    *,
    resume_offset: int | None = None,
    notify: Notify | None = None,
) -> RunLogger:
    """The logger of a run: metrics.jsonl, and the mirrors that the configuration asks for.

    Args:
        folder: where everything is written.
        config: which mirrors; also shown by Weights & Biases.
        resume_offset: `MetricsFile.offset` of the checkpoint that the run resumes from; later rows go.
        notify: told, in one sentence, when a mirror is switched off or loses rows; None: stderr. May be
            called from any thread.

    Returns:
        The logger; its `close` ends all writers and waits for each a limited time.
    """
    notify = _to_stderr if notify is None else notify
    metrics = MetricsFile(folder.metrics_file)
    if resume_offset is not None:
        metrics.truncate(resume_offset)
    mirror = functools.partial(MirrorWriter, notify=notify, close_timeout_seconds=MIRROR_CLOSE_S)
    mirrors = []
    if config.csv:
        rows_before = read_metrics(folder.metrics_file)
        mirrors.append(mirror(lambda: _CsvMirror(folder.csv_file, rows_before), "metrics.csv"))
    if config.tensorboard:
        mirrors.append(mirror(lambda: TensorBoardOutputFormat(str(folder.tensorboard)), "TensorBoard"))
    if config.track != "disabled":
        mode: Literal["offline", "online"] = config.track
        process = WandbProcess()
        mirrors.append(
            mirror(
                lambda: WandbWriter(folder.path, to_dict(config), mode=mode, process=process, notify=notify),
                "Weights & Biases",
                give_up=process.kill,
            )
        )
    return RunLogger(str(folder.path), metrics, mirrors)


class MetricsFile(KVWriter):
    """One JSON object per line and update, appended and flushed at once.

    NaN and infinity become null; media are left out. Arrays become lists, long ones
    `{"counts": [...], "edges": [...]}`.
    """

    def __init__(self, path: Path) -> None:
        """Append to a file; a last line that a crash cut short is removed."""
        self.path = path
        _end_after_last_newline(path)
        self._file = path.open("ab", buffering=0)

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        row = {
            key: _plain(value)
            for key, value in sorted(filter_excluded_keys(key_values, key_excluded, "json").items())
            if isinstance(value, str | bool | int | float | np.generic | np.ndarray | torch.Tensor)
        }
        rest = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n")
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @property
    def offset(self) -> int:
        """Bytes written so far, on the disk when this returns; a checkpoint keeps this number."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def truncate(self, offset: int) -> None:
        """Go back to an earlier `offset`: forget the rows after the checkpoint that a run resumes from."""
        size = self._file.seek(0, os.SEEK_END)
        if size < offset:
            warnings.warn(
                f"{self.path} is {offset - size} bytes shorter than when the checkpoint was written: "
                "some of its rows are lost",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._file.truncate(offset)
        self._file.seek(offset)

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[Row]:
    """Every whole row of a metrics.jsonl; none if there is no such file."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut short by a crash
    return [json.loads(line) for line in lines]


class MirrorWriter(KVWriter):
    """Runs another writer in its own thread, so that no fault of it can stop or slow training.

    If the other writer raises, the mirror is switched off. If it is so slow that the queue fills up,
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
        close_timeout_seconds: float = MIRROR_CLOSE_S,
        give_up: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            make_writer: makes the writer, in the thread.
            name: what to call it in messages.
            notify: told when the mirror is switched off or loses rows; None: stderr.
            queue_rows: rows that may wait.
            close_timeout_seconds: how long `close` waits for the writer to catch up.
            give_up: ends by force what the writer may be waiting for after that time.
        """
        self._make_writer = make_writer
        self._name = name
        self._notify = _to_stderr if notify is None else notify
        self._close_timeout_seconds = close_timeout_seconds
        self._give_up = give_up
        self._queue: queue.Queue[tuple[Row, Excluded, int] | None] = queue.Queue(queue_rows)
        self._closed = False
        self.rows_dropped = 0
        """rows that never reached the writer because it was too slow"""
        self.is_off = False
        """whether the writer failed or was given up on"""
        self._thread = threading.Thread(target=self._run, name=f"mirror {name}", daemon=True)
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
        except BaseException as error:  # also SystemExit: nothing of a mirror may reach training
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
        with contextlib.suppress(Exception):  # if whoever listens fails too, there is nobody left to tell
            self._notify(message)


class WandbProcess:
    """The process that Weights & Biases starts; at exit the interpreter waits for it without limit."""

    def __init__(self) -> None:
        """None is known yet."""
        self._process: subprocess.Popen[bytes] | None = None

    def find(self, session: Any) -> None:
        """Remember the one that a session of Weights & Biases started, if it did not join another's."""
        with contextlib.suppress(AttributeError):  # there is no public way to it
            self._process = session.ensure_service()._proc._process

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()


class WandbWriter(KVWriter):
    """Weights & Biases, offline unless asked otherwise; meant to run inside a `MirrorWriter`."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        mode: Literal["offline", "online"],
        process: WandbProcess,
        notify: Notify | None = None,
    ) -> None:
        """Start a W&B run.

        Args:
            folder: run folder; W&B makes its own folder in it.
            config: shown with the run.
            mode: "online" falls back to "offline" without an account or a connection.
            process: told which process W&B starts.
            notify: told about the fallback, and about what could not be sent; None: stderr.
        """
        # Nothing is sent anywhere unless the user asks for it; read when W&B is first imported.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self._notify = _to_stderr if notify is None else notify
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=WANDB_START_S,
            finish_timeout=WANDB_FINISH_S,
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=1.0,  # the default loses the last 15 s when it is killed
        )
        start = functools.partial(
            wandb.init,
            project=PROJECT,
            name=folder.resolve().name,
            group=folder.resolve().name,  # a resumed run is a second W&B run of the same group
            dir=str(folder),
            config=dict(config),
            settings=settings,
        )
        try:
            process.find(wandb.setup(settings=settings))  # silent from here on, before a run exists
            online = mode == "online" and self._start_online(start)
            self._run = online or start(mode="offline")
            self._run.define_metric("*", step_metric=STEP_KEY)
        except BaseException:
            wandb.teardown()
            raise

    def _start_online(self, start: Callable[..., Run]) -> Run | None:
        """An online run; None if there can be none."""
        try:
            if not self._wandb.login(prompt=False):
                raise ConnectionError("there is no API key; `wandb login` stores one")
            run = start(mode="online")
        except Exception as error:
            reason = " ".join(str(error).split())
            self._notify(f"Weights & Biases goes on offline: {reason}; upload later with `wandb sync`")
            return None
        self._notify(f"Weights & Biases shows this run at {run.url}")
        return run

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        row = {
            key: self._shown(value)
            for key, value in filter_excluded_keys(key_values, key_excluded, "wandb").items()
        }
        self._run.log({**row, STEP_KEY: row.get(STEP_KEY, step)})

    def _shown(self, value: Any) -> Any:
        """A value as Weights & Biases has it."""
        if isinstance(value, VideoFile):
            return self._wandb.Video(str(value.path), caption=value.caption, format="mp4")
        if _is_histogram(value):
            return self._wandb.Histogram(np_histogram=_histogram(value))
        return value

    def close(self) -> None:
        try:
            self._run.finish()
        except TimeoutError:
            self._notify(
                f"Weights & Biases was not done within {WANDB_FINISH_S:g} s; what did not arrive is in "
                f"{Path(self._run.dir).parent}: upload it with `wandb sync --include-online` and that folder"
            )
        finally:
            self._wandb.teardown()  # otherwise done when the process exits, where it may hang or print


class _CsvMirror(KVWriter):
    """stable-baselines3's CSV file, of scalars only, with the rows from before a resume."""

    def __init__(self, path: Path, rows_before: list[Row]) -> None:
        """Write the file anew."""
        self._writer = CSVOutputFormat(str(path))
        for row in rows_before:
            self.write(row, {})

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        scalars = {
            key: _plain(value)
            for key, value in key_values.items()
            if not _is_histogram(value) and not isinstance(value, dict | list)
        }
        self._writer.write(scalars, key_excluded, step)

    def close(self) -> None:
        self._writer.close()


def _to_stderr(message: str) -> None:
    sys.stderr.write(f"{message}\n")


def _array(value: Any) -> np.ndarray[Any, Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _finite(value: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = _array(value).astype(np.float64)
    finite: np.ndarray[Any, Any] = array[np.isfinite(array)]
    return finite


def _histogram(value: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Counts and edges; positive numbers that span orders of magnitude (spans, ages) get geometric bins."""
    array = _finite(value)
    if array.size and array.min() > 0.0 and array.max() > 32.0 * array.min():
        edges = np.geomspace(array.min(), array.max(), HISTOGRAM_BINS + 1)
        edges[0], edges[-1] = array.min(), array.max()  # exactly, so that none falls out
        return np.histogram(array, edges)
    return np.histogram(array, HISTOGRAM_BINS)


def _is_histogram(value: object) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor) and _array(value).size != 1


def _snapshot(value: Any) -> Any:
    """A copy of what training may change before the mirror gets to it."""
    return _array(value).copy() if isinstance(value, np.ndarray | torch.Tensor) else value


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, np.ndarray | torch.Tensor):
        array = _array(value)
        if array.size == 1:
            return _plain(array.item())
        if array.size > HISTOGRAM_BINS:
            counts, edges = _histogram(array)
            return {"counts": counts.tolist(), "edges": edges.tolist()}
        return [_plain(entry) for entry in array.ravel().tolist()]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _end_after_last_newline(path: Path) -> None:
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
