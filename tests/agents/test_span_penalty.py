"""The penalty weight waits for success, yields at once, and does not swing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from memory_suite.agents.algorithms.span_penalty import SpanPenalty, SpanPenaltySettings
from memory_suite.agents.algorithms.span_shortening import RandomShortening
from memory_suite.agents.model.retention.adaptive_span import AdaptiveSpan
from memory_suite.agents.model.retention.penalty import span_cost, span_shortfall
from memory_suite.agents.model.settings import PenaltySpec


def by_the_task(**change: Any) -> SpanPenalty:
    """Use does not count."""
    return SpanPenalty(SpanPenaltySettings(use_weight=0.0, **change))


def test_alpha_is_0_until_success_is_known_and_high() -> None:
    penalty = by_the_task(weight=1e-4, target_success=0.9)
    for success in (None, 0.0, 0.5, 0.9, None):
        penalty.update(success)
        assert penalty.weight == 0.0
        assert penalty.spec is None
    assert penalty.ceiling == 1e-4, "the ceiling waits as well"


def test_the_weight_is_the_ceiling_times_the_slack() -> None:
    penalty = by_the_task(weight=1e-4, max_weight=1e-2, growth=1.5, target_success=0.9)
    penalty.update(0.95)
    assert penalty.ceiling == pytest.approx(1.5e-4)
    assert penalty.weight == pytest.approx(0.5 * 1.5e-4)
    penalty.update(0.88)
    assert penalty.ceiling == pytest.approx(0.9 * 1.5e-4)
    assert penalty.weight == pytest.approx(-0.2 * 1e-2), "below the target remembering is subsidized"
    penalty.update(0.1)
    assert penalty.weight == -1e-2, "by no more than the largest weight"
    penalty.update(None)
    assert penalty.weight == 0.0
    for _ in range(100):
        penalty.update(1.0)
    assert penalty.weight == penalty.ceiling == 1e-2


def test_a_fixed_weight_stays_whatever_happens() -> None:
    penalty = SpanPenalty(SpanPenaltySettings(kind="fixed", weight=3e-5))
    for success in (None, 0.0, 1.0):
        penalty.update(success)
        assert penalty.weight == 3e-5
    assert SpanPenalty(SpanPenaltySettings(kind="none")).spec is None


def test_the_weight_settles_where_spans_still_suffice() -> None:
    """A crude world: the penalty shortens a span, learning restores it, success is known late.

    Success falls by 1% for each step that the span falls short of 200, and is known 5 updates late.
    The span must not swing, and must stay near what is needed.
    """
    penalty = by_the_task(weight=1e-4, max_weight=0.05, growth=1.02, target_success=0.97)
    spans = crude_world(penalty)
    assert min(spans) > 185.0
    assert max(spans) < 225.0


def test_a_fixed_weight_shortens_spans_too_much_in_the_same_simulation() -> None:
    """The control: the test above can fail."""
    spans = crude_world(SpanPenalty(SpanPenaltySettings(kind="fixed", weight=0.2, max_weight=0.2)))
    assert max(spans) < 150.0


def crude_world(penalty: SpanPenalty) -> list[float]:
    """The last quarter of 4,000 updates' spans."""
    span, known, spans = 500.0, [1.0] * 5, []
    for _ in range(4_000):
        span = max(0.0, span + 0.1 * max(0.0, 205.0 - span) - 50.0 * penalty.weight)
        known.append(min(1.0, max(0.5, 1.0 - 0.01 * max(0.0, 200.0 - span))))
        penalty.update(known[-5])
        spans.append(span)
    return spans[-1_000:]


def by_effect(**change: Any) -> SpanPenalty:
    settings = {"use_weight": 300.0, "use_margin": 3.0, "target_success": 0.5}
    return SpanPenalty(SpanPenaltySettings(**{**settings, **change}))


def test_with_usefulness_alpha_stays_the_ceiling_after_the_first_success() -> None:
    penalty = by_effect(weight=1e-4, max_weight=1e-2, growth=1.5)
    task_does_not_teach = PenaltySpec("log", use_weight=0.0, use_margin=3.0)
    for success in (None, 0.4):
        penalty.update(success)
        assert penalty.weight == 0.0
        assert penalty.spec == task_does_not_teach
    counts = PenaltySpec("log", use_weight=300.0, use_margin=3.0)
    for success, weight in ((1.0, 1.5e-4), (None, 1.5e-4), (1.0, 2.25e-4), (0.4, 2.025e-4), (None, 2.025e-4)):
        penalty.update(success)
        assert penalty.weight == penalty.ceiling == pytest.approx(weight)
        assert penalty.spec == counts
    for _ in range(100):
        penalty.update(1.0)
    assert penalty.weight == 1e-2
    for _ in range(100):
        penalty.update(0.0)
    assert penalty.weight == 1e-4


@pytest.mark.parametrize("change", [{"kind": "none"}, {"kind": "fixed", "weight": 0.0}])
def test_without_a_penalty_spans_learn_from_the_task_loss(change: dict[str, Any]) -> None:
    penalty = by_effect(**change)
    penalty.update(1.0)
    assert penalty.spec is None


@pytest.mark.parametrize("make", [by_effect, by_the_task])
@pytest.mark.parametrize("success", [1.0, 0.2])
def test_state_survives(success: float, make: Callable[..., SpanPenalty]) -> None:
    penalty = make(growth=1.5)
    penalty.update(1.0)
    penalty.update(success)
    other = make(growth=1.5)
    other.load_state_dict(penalty.state_dict())
    assert other == penalty
    assert other.weight == penalty.weight != 0.0
    penalty.update(0.99)
    other.update(0.99)
    assert other == penalty


def test_the_log_form_charges_by_factors() -> None:
    spans = torch.tensor([0.0, 1.0, 1e6], requires_grad=True)
    cost = span_cost(spans, "log")
    assert cost.tolist() == pytest.approx([0.0, 0.6931, 13.8155], rel=1e-4)
    cost.sum().backward()
    assert spans.grad is not None
    assert (spans.grad * spans).tolist() == pytest.approx([0.0, 0.5, 1.0], rel=1e-4)


def test_the_shortfall_is_relative_to_the_useful_age_times_the_margin() -> None:
    span = torch.tensor([41.0, 39.0, 4.0, 0.0, 1e6], requires_grad=True)
    age = torch.tensor([10.0, 10.0, 10.0, 1.0, 100.0])
    shortfall = span_shortfall(span, age, 4.0)
    assert shortfall.tolist() == pytest.approx([0.0, 0.02532, 2.3026, 15.2018, 0.0], abs=1e-4)
    shortfall.sum().backward()
    assert span.grad is not None
    assert span.grad.tolist() == pytest.approx([0.0, -1 / 39, -1 / 4, 0.0, 0.0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": -1.0}, "weight"),
        ({"weight": -1.0, "kind": "fixed"}, "weight"),
        ({"weight": 0.0}, "weight"),
        ({"weight": 1.0, "max_weight": 0.5}, "max_weight"),
        ({"growth": 0.5}, "growth"),
        ({"shrinkage": 0.0}, "shrinkage"),
        ({"target_success": 1.0}, "target_success"),
        ({"use_margin": 0.5}, "use_margin"),
        ({"use_weight": -1.0}, "use_weight"),
    ],
)
def test_invalid_penalty_settings_are_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SpanPenaltySettings(**change)


def test_a_fixed_weight_may_exceed_max_weight() -> None:
    assert SpanPenalty(SpanPenaltySettings(kind="fixed", weight=1.0, max_weight=0.5)).weight == 1.0


def test_span_limits_are_constant_within_an_episode() -> None:
    shortening = RandomShortening(enabled=True)
    all_start, none_start = np.ones(500, dtype=bool), np.zeros(500, dtype=bool)
    span_limit_B1 = shortening.sample(all_start, 100)
    assert span_limit_B1 is not None
    assert 0.0 <= float(span_limit_B1.min()) < 20.0 < 80.0 < float(span_limit_B1.max()) <= 100.0
    again_B1 = shortening.sample(none_start, 100)
    assert again_B1 is not None
    assert torch.equal(again_B1, span_limit_B1)
    one = none_start.copy()
    one[3] = True
    other_B1 = shortening.sample(one, 100)
    assert other_B1 is not None
    assert (other_B1 != span_limit_B1).squeeze(1).tolist() == one.tolist()
    assert RandomShortening(enabled=False).sample(all_start, 100) is None


def test_usefulness_can_hold_an_adaptive_span_of_any_length() -> None:
    """Where use counts, each e-folding costs the same; otherwise the span itself is paid."""
    memory = AdaptiveSpan(2, max_span=4096, ramp=1, initial_span_fraction=0.5)
    span_BGT = torch.tensor([[[10.0], [1000.0]]], requires_grad=True)
    nothing = torch.zeros(1, 2, 1)
    by_use = memory.penalty(PenaltySpec("log", use_weight=100.0), span_BGT, nothing, None, torch.zeros(1))
    assert by_use.tolist() == pytest.approx([(math.log(11.0) + math.log(1001.0)) / 2])
    assert memory.penalty(PenaltySpec("log"), span_BGT, nothing, None, torch.zeros(1)).tolist() == [505.0]
