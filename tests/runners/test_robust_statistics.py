"""Interquartile means and bootstrap intervals: by hand, against SciPy, against rliable's own numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from memory_suite.runners.sweeps.robust_statistics import estimate, interquartile_mean, mean

# What rliable 1.2.0 gives (aggregate_iqm, aggregate_mean; get_interval_estimates with 50,000 repetitions).
EIGHT_RUNS = [0.12, 0.95, 0.55, 1.0, 0.71, 0.33, 0.88, 0.64]
FIVE_RUNS = [0.2, 0.4, 0.9, 1.0, 1.0]
TWO_TASKS = [[0.5, 0.6, 0.7, 0.1, 0.95], [0.9, 0.2, 1.0, 0.8, 0.85]]
RLIABLE = [
    ([EIGHT_RUNS], interquartile_mean, 0.695, (0.3875, 0.915)),
    ([EIGHT_RUNS], mean, 0.6475, (0.43875, 0.8375)),
    ([FIVE_RUNS], interquartile_mean, 0.76666667, (0.26666667, 1.0)),
    ([FIVE_RUNS], mean, 0.7, (0.4, 0.98)),
    (TWO_TASKS, interquartile_mean, 0.725, (0.45, 0.875)),
    (TWO_TASKS, mean, 0.66, (0.475, 0.82)),
]


@pytest.mark.parametrize(("strata", "statistic", "value", "interval"), RLIABLE)
def test_rliable_gives_the_same(strata, statistic, value, interval) -> None:  # type: ignore[no-untyped-def]
    found = estimate(strata, statistic)
    assert found.value == pytest.approx(value, abs=1e-8)
    assert (found.low, found.high) == pytest.approx(interval, abs=0.015)  # by chance


def test_interquartile_means_by_hand() -> None:
    assert interquartile_mean([0.0, 0.2, 0.6, 1.0]) == pytest.approx(
        0.4
    )  # one of 4 is left out at either end
    assert interquartile_mean([3.0, 1.0, 8.0]) == pytest.approx(4.0)  # none of 3
    assert interquartile_mean([[5.0, 1.0, 1.0, 9.0], [2.0, 2.0, 2.0, 2.0]]).tolist() == [3.0, 2.0]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_scipy_gives_the_same(scores: list[float]) -> None:
    assert interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25), abs=1e-9)


def test_tasks_are_drawn_apart() -> None:
    """Two tasks whose runs all agree: drawn together, their share would vary from sample to sample."""
    found = estimate([[0.0] * 5, [1.0] * 5], mean)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    together = estimate([[0.0] * 5 + [1.0] * 5], mean)
    assert together.low < 0.3 and together.high > 0.7


def test_equal_scores_give_equal_intervals() -> None:
    assert estimate([EIGHT_RUNS]) == estimate([EIGHT_RUNS])
    narrow, wide = (estimate([EIGHT_RUNS], confidence=confidence) for confidence in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_an_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    intervals = [estimate([rng.uniform(size=20)], mean, resamples=500) for _ in range(200)]
    assert 0.88 <= np.mean([found.low <= 0.5 <= found.high for found in intervals]) <= 0.98


def test_one_run_has_no_interval() -> None:
    found = estimate([[0.7]])
    assert found.value == 0.7 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize(
    ("strata", "message"),
    [([], "at least one score"), ([[1.0], []], "at least one score"), ([[1.0, math.nan]], "finite")],
)
def test_what_is_no_score_is_refused(strata: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(strata)
