"""Averages and intervals for a handful of runs.

After R. Agarwal, M. Schwarzer, P. S. Castro, A. Courville and M. G. Bellemare, "Deep Reinforcement
Learning at the Edge of the Statistical Precipice", NeurIPS 2021, arXiv 2108.13264; their library rliable
gives the same numbers (tested).

Shape letters:
    N  scores
    K  bootstrap resamples
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 20_000
"""number of bootstrap resamples; the interval's ends are then exact to about 1% of its width"""
CONFIDENCE = 0.95

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Takes scores along the last axis: [..., N] to [...]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of scores, with its confidence interval."""

    value: float
    low: float
    """NaN, like `high`, with fewer than two runs"""
    high: float


def interquartile_mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean of the middle half of the scores along the last axis.

    A quarter of them, rounded down, is left out at either end: one of 5, none of 3.

    Args:
        scores: [..., N], N at least 1.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=-1)
    num_scores = ordered.shape[-1]
    cut = num_scores // 4
    middle: NDArray[np.float64] = ordered[..., cut : num_scores - cut].mean(-1)
    return middle


def mean(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean along the last axis."""
    result: NDArray[np.float64] = np.asarray(scores, dtype=np.float64).mean(-1)
    return result


def estimate(
    strata: Sequence[ArrayLike],
    statistic: Statistic = interquartile_mean,
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """A statistic over all scores, with its interval by stratified bootstrap (percentile method).

    The runs of each stratum (a task, say) are drawn again with replacement, as many as there are, within
    the stratum; the statistic is taken over all strata together.

    Args:
        strata: the scores of each stratum's runs, at least one each.
        statistic: what to estimate.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples, K.
        seed: seed of the resampling.

    Raises:
        ValueError: a stratum has no score, or a score is not finite.
    """
    scores = [np.asarray(stratum, dtype=np.float64).reshape(-1) for stratum in strata]
    if not scores or any(len(stratum) == 0 for stratum in scores):
        raise ValueError("every stratum must have at least one score")
    together_N = np.concatenate(scores)
    if not np.isfinite(together_N).all():
        raise ValueError("scores must be finite")
    value = float(statistic(together_N))
    if any(len(stratum) < 2 for stratum in scores):
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn_KN = np.concatenate(
        [stratum[rng.integers(len(stratum), size=(resamples, len(stratum)))] for stratum in scores], axis=1
    )
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(statistic(drawn_KN), [tail, 1.0 - tail])
    return Estimate(value, float(low), float(high))
