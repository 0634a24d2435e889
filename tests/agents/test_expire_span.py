"""Spans and their mask: by hand, by property, by gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.retention.penalty import ramp_penalty


def spans(module: ExpireSpan, hidden: Tensor) -> Tensor:
    """[B, M], since the heads share a span."""
    birth = torch.zeros(hidden.shape[:2], dtype=torch.long)
    return module.spans(module.span_logits(hidden), birth, None).squeeze(1)


def test_ramp_by_hand() -> None:
    """Span 4, ramp 2: alive up to age 4, half at 5, gone from 6."""
    module = ExpireSpan(3, max_span=8, ramp=2, initial_span_fraction=0.5)
    span = spans(module, torch.zeros(1, 1, 3))
    assert span.item() == pytest.approx(4.0)
    mask = module.mask(span - torch.tensor([0, 4, 5, 6, 7]))
    assert mask.flatten().tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0, 0.0])


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_every_span_starts_at_the_stated_fraction(fraction: float) -> None:
    module = ExpireSpan(5, max_span=1000, ramp=3, initial_span_fraction=fraction)
    torch.testing.assert_close(spans(module, torch.randn(2, 7, 5)), torch.full((2, 7), 1000 * fraction))


@given(
    max_span=st.integers(1, 50),
    ramp=st.integers(1, 80),
    seed=st.integers(0, 2**16),
    scale=st.floats(0.1, 50.0),
)
def test_a_memory_never_comes_back(max_span: int, ramp: int, seed: int, scale: float) -> None:
    """Masks lie in [0, 1] and never rise with age, also for ramps longer than the maximum span."""
    generator = torch.Generator().manual_seed(seed)
    module = ExpireSpan(4, max_span=max_span, ramp=ramp)
    torch.nn.init.normal_(module.predictor.weight, std=scale, generator=generator)
    span = spans(module, torch.randn(1, 5, 4, generator=generator)).detach()
    assert bool((span >= 0).all())
    assert bool((span <= max_span).all())
    remaining = span.unsqueeze(1) - torch.arange(max_span + ramp + 2).view(1, -1, 1)
    mask = module.mask(remaining)
    for close in (remaining, ramp * (SMALLEST_MASK * (1.0 + torch.arange(-9, 10) / 10) - 1.0)):
        assert torch.equal(module.expired(close), module.mask(close) == 0.0)
    assert float(mask.min()) >= 0.0
    assert float(mask.max()) <= 1.0
    assert bool((mask[:, 1:] <= mask[:, :-1]).all())
    assert bool((mask[:, -1] == 0.0).all()), "after max_span + ramp steps everything is gone"


def test_gradient_reaches_the_predictor_only_on_the_ramp() -> None:
    module = ExpireSpan(2, max_span=8, ramp=2, initial_span_fraction=0.5)
    for age, learns in [(0, False), (5, True), (8, False)]:
        module.zero_grad()
        module.mask(spans(module, torch.ones(1, 3, 2)) - age).sum().backward()
        assert module.predictor.bias.grad is not None
        assert bool(module.predictor.bias.grad != 0) is learns, f"age {age}"


def test_ramp_penalty_by_hand() -> None:
    """Two queries, ramp 4: pairs with r = -1 and -3 lie on the ramp, those with 2 and -5 do not."""
    remaining = torch.tensor([[[2.0, -1.0], [-3.0, -5.0]]], requires_grad=True)
    mask = (1 + remaining.detach() / 4).clamp(0, 1)
    penalty = ramp_penalty(remaining.unsqueeze(2), mask.unsqueeze(2), 4)
    assert penalty.tolist() == pytest.approx([(-1.0 - 3.0) / (4 * 2)])
    penalty.sum().backward()
    assert remaining.grad is not None
    torch.testing.assert_close(remaining.grad, torch.tensor([[[0.0, 0.125], [0.125, 0.0]]]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_span": 0}, "max_span"),
        ({"ramp": 0}, "ramp"),
        ({"initial_span_fraction": 0.0}, "initial_span_fraction"),
        ({"initial_span_fraction": 1.0}, "initial_span_fraction"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], named: str) -> None:
    settings: dict[str, float] = {"max_span": 8, "ramp": 2} | change
    with pytest.raises(ValueError, match=named):
        ExpireSpan(4, **settings)  # type: ignore[arg-type]
