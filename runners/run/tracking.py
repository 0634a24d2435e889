"""Logging of a run: metrics.jsonl is authoritative, all other formats mirror it.

All are writers of stable-baselines3's logger. `MetricsFile` is written before training goes on.
Weights & Biases, TensorBoard and CSV each live behind a `BackgroundWriter`, in a thread of their own: if
one is slow it loses rows, if one fails it is switched off, and training notices neither.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

from stable_baselines3.common.logger import (
    CSVOutputFormat,
    KVWriter,
    Logger,
    TensorBoardOutputFormat,
)

from memory_suite.configs.run_config import RunConfig, to_dict
from memory_suite.runners.run.background_writer import (
    CLOSE_TIMEOUT_S,
    BackgroundWriter,
    Notify,
    write_to_stderr,
)
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import (
    Excluded,
    MetricsFile,
    Row,
    is_histogram,
    read_metrics,
    to_plain,
)
from memory_suite.runners.run.wandb_writer import WandbProcess, WandbWriter


class RunLogger(Logger):
    """A stable-baselines3 logger that knows its metrics.jsonl."""

    def __init__(self, folder: str, metrics: MetricsFile, mirrors: list[BackgroundWriter]) -> None:
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
    """The logger of a run: metrics.jsonl, and the mirrors that the configuration enables.

    Args:
        folder: where everything is written.
        config: which mirrors; also shown by Weights & Biases.
        resume_offset: `MetricsFile.offset` of the checkpoint that the run resumes from; later rows go.
        notify: told, in one sentence, when a mirror is switched off or loses rows; None: stderr. May be
            called from any thread.

    Returns:
        The logger; its `close` ends all writers and waits for each a limited time.
    """
    notify = write_to_stderr if notify is None else notify
    metrics = MetricsFile(folder.metrics_file)
    if resume_offset is not None:
        metrics.truncate(resume_offset)
    mirror = functools.partial(BackgroundWriter, notify=notify, close_timeout_seconds=CLOSE_TIMEOUT_S)
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


class _CsvMirror(KVWriter):
    """stable-baselines3's CSV file, of scalars only, with the rows from before a resume."""

    def __init__(self, path: Path, rows_before: list[Row]) -> None:
        """Rewrite the file from the beginning."""
        self._writer = CSVOutputFormat(str(path))
        for row in rows_before:
            self.write(row, {})

    def write(self, key_values: Row, key_excluded: Excluded, step: int = 0) -> None:
        scalars = {
            key: to_plain(value)
            for key, value in key_values.items()
            if not is_histogram(value) and not isinstance(value, dict | list)
        }
        self._writer.write(scalars, key_excluded, step)

    def close(self) -> None:
        self._writer.close()
