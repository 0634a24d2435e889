"""The logged metrics of a run as series and heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.run.metrics_file import STEP_KEY, Row

MAX_HEAT_BINS = 48


class RunData:
    """The logged rows of a run, by metric."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        """Collect the names of metrics and layers.

        Args:
            rows: rows of metrics.jsonl.
            config: configuration of the run.
        """
        self.config = config
        self.rows = rows
        self.names = sorted({name for row in rows for name in row})
        self.layers = sorted({name.split("/")[1] for name in self.names if name.startswith("memory/layer")})

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Millions of steps, and the metric, at the rows that have it."""
        known = [(row[STEP_KEY] / 1e6, row[name]) for row in self.rows if _is_number(row.get(name))]
        return [x for x, _ in known], [y for _, y in known]

    def heat(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """A logged distribution over time, on logarithmic bins; None with fewer than two rows.

        Returns:
            steps: millions of steps.
            bins: edges of the bins.
            shares: [bins, steps].
        """
        known = [
            (row[STEP_KEY] / 1e6, *_histogram(row[name])) for row in self.rows if row.get(name) is not None
        ]
        known = [entry for entry in known if entry[1].sum() > 0]
        if len(known) < 2:
            return None
        highest = max(float(edges[-1]) for _, _, edges in known)
        # Edges at halves: ages are whole numbers, which then lie inside bins.
        bins = np.unique(np.ceil(np.geomspace(1.0, max(highest, 2.0) + 1.0, MAX_HEAT_BINS + 1))) - 0.5
        shares = np.stack([rebin_histogram(counts, edges, bins) for _, counts, edges in known], 1)
        return np.array([x for x, _, _ in known]), bins, shares


def _histogram(value: Any) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of a logged value: a stored histogram, or the numbers of a short array."""
    if isinstance(value, dict):
        return np.array(value["counts"], dtype=float), np.array(value["edges"], dtype=float)
    numbers = np.atleast_1d(np.array(value, dtype=float))
    counts, edges = np.histogram(numbers, 32)
    return counts.astype(float), edges


def rebin_histogram(counts: np.ndarray, edges: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Shares of a histogram on other bins; each count is spread evenly over its old bin."""
    total = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    edges = np.maximum.accumulate(edges + np.arange(len(edges)) * 1e-9)
    cumulative = np.interp(bins, edges, total, left=0.0, right=1.0)
    cumulative[0] = 0.0  # the first bin includes all that lies below it
    return np.diff(cumulative)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
