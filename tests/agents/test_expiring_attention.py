"""The hand-written gradient against automatic differentiation of equations 3 and 4 as they stand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.expiring_attention import ExpiringAttention


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, position: Tensor, expiry: Tensor, time: Tensor, hidden: Tensor
) -> Tensor:
    mask = (expiry.unsqueeze(1) - time.unsqueeze(1)).clamp(0, 1) * ~hidden
    weight = mask.unsqueeze(1) * (query @ key.transpose(2, 3) + position).exp()
    total = weight.sum(-1, keepdim=True)
    return torch.where(total > 0, weight / total.clamp_min(1e-300), 0.0) @ value


def inputs(seed: int, batch: int, heads: int, steps: int, memories: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    time = torch.arange(steps, dtype=torch.float64) / 3
    # Away from the corners of the clamp, where the derivative is not defined.
    expiry = torch.randint(-2, steps // 2 + 3, (batch, memories), generator=g) / 3 + 0.171
    return [
        normal(batch, heads, steps, 4),
        normal(batch, heads, memories, 4),
        normal(batch, heads, memories, 4),
        normal(batch, heads, steps, memories),
        expiry.double(),
        time,
        torch.rand(batch, steps, memories, generator=g) < 0.3,
    ]


@given(
    seed=st.integers(0, 2**16), batch=st.integers(1, 3), heads=st.integers(1, 3), steps=st.integers(1, 9),
    memories=st.integers(1, 12),
)  # fmt: skip
def test_values_and_gradients_equal_automatic_differentiation(
    seed: int, batch: int, heads: int, steps: int, memories: int
) -> None:
    *learned, time, hidden = inputs(seed, batch, heads, steps, memories)
    mine = [part.clone().requires_grad_() for part in learned]
    plain = [part.clone().requires_grad_() for part in learned]
    read, _ = ExpiringAttention.apply(*mine[:3], mine[3] * 1.0, mine[4], time, hidden)
    expected = plain_attention(*plain, time, hidden)
    torch.testing.assert_close(read, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn(
        read.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    (read * direction).sum().backward()
    (expected * direction).sum().backward()
    for name, a, b in zip(["query", "key", "value", "position", "expiry"], mine, plain, strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, rtol=1e-8, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_query_that_sees_nothing_reads_zero_and_teaches_nothing() -> None:
    *learned, time, hidden = inputs(0, 2, 2, 5, 6)
    hidden[0, 3] = True
    learned = [part.requires_grad_() for part in learned]
    read, mask = ExpiringAttention.apply(*learned[:3], None, learned[4], time, hidden)
    assert bool((read[0, :, 3] == 0).all())
    assert bool((mask[0, 3] == 0).all())
    read[0, :, 3].sum().backward()
    assert all(bool((part.grad == 0).all()) for part in (*learned[:3], learned[4]) if part.grad is not None)


def test_expired_memories_contribute_exactly_nothing() -> None:
    """Not merely little: changing them by any amount changes no bit."""
    query, key, value, _, _, time, _ = (
        part.float() if part.is_floating_point() else part for part in inputs(1, 1, 1, 4, 6)
    )
    hidden = torch.zeros(1, 4, 6, dtype=torch.bool)
    expiry = torch.tensor([[9.0, 9.0, 9.0, -1.0, -1.0, -1.0]])
    before, _ = ExpiringAttention.apply(query, key, value, None, expiry, time, hidden)
    key[:, :, 3:] *= 1e4
    value[:, :, 3:] = 1e30
    after, _ = ExpiringAttention.apply(query, key, value, None, expiry, time, hidden)
    assert torch.equal(before, after)
