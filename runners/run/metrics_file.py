"""The metrics file: one JSON object a line."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import (
    KVWriter,
    filter_excluded_keys,
)

Row = dict[str, Any]


Excluded = dict[str, tuple[str, ...]]


STEP_KEY = "time/total_timesteps"
"""The metric every chart is drawn over."""


HISTOGRAM_BINS = 32
"""In metrics.jsonl, an array of more entries than this is kept as a histogram of so many bins; W&B too."""


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
            key: to_plain(value)
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


def to_array(value: Any) -> np.ndarray[Any, Any]:
    """A value as a NumPy array."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _finite(value: Any) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = to_array(value).astype(np.float64)
    finite: np.ndarray[Any, Any] = array[np.isfinite(array)]
    return finite


def histogram(value: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Counts and edges; positive numbers that span orders of magnitude (spans, ages) get geometric bins."""
    array = _finite(value)
    if array.size and array.min() > 0.0 and array.max() > 32.0 * array.min():
        edges = np.geomspace(array.min(), array.max(), HISTOGRAM_BINS + 1)
        edges[0], edges[-1] = array.min(), array.max()  # exactly, so that none falls out
        return np.histogram(array, edges)
    return np.histogram(array, HISTOGRAM_BINS)


def is_histogram(value: object) -> bool:
    """Whether a value is an array of several entries, which trackers show as a histogram."""
    return isinstance(value, np.ndarray | torch.Tensor) and to_array(value).size != 1


def to_plain(value: Any) -> Any:
    """A value in JSON's types; NaN and infinity become None."""
    if isinstance(value, np.ndarray | torch.Tensor):
        array = to_array(value)
        if array.size == 1:
            return to_plain(array.item())
        if array.size > HISTOGRAM_BINS:
            counts, edges = histogram(array)
            return {"counts": counts.tolist(), "edges": edges.tolist()}
        return [to_plain(entry) for entry in array.ravel().tolist()]
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
