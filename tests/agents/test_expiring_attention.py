"""The hand-written gradient against automatic differentiation of equations 3 and 4 as they stand."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from agents.expiring_attention import ExpiringAttention


def plain_attention(
    query: Tensor,
    stored: Tensor,
    new: Tensor,
    near: Tensor,
    inside: Tensor,
    expiry: Tensor,
    stored_time: Tensor,
    time: Tensor,
    hidden: Tensor,
) -> Tensor:
    memory = torch.cat([stored, new], 1)
    num_stored, steps = stored.shape[1], query.shape[1]
    expiry = expiry.unsqueeze(1)
    stored_mask = (expiry[..., :num_stored] - stored_time[:, :, None, None]).clamp(0, 1)
    new_mask = (expiry[..., num_stored:] - time[:, None, None]).clamp(0, 1) * ~hidden.unsqueeze(2)
    mask = torch.cat([stored_mask, new_mask], 3)
    position = torch.zeros(*query.shape[:3], memory.shape[1], dtype=query.dtype).transpose(1, 2).clone()
    position[:, :, : near.shape[2], : near.shape[3]] += near
    position[..., memory.shape[1] - steps :] += inside
    score = torch.einsum("bthd,bmd->bthm", query, memory) + position.transpose(1, 2)
    weight = mask * score.exp()
    total = weight.sum(-1, keepdim=True)
    attention = torch.where(total > 0, weight / total.clamp_min(1e-300), 0.0)
    return torch.einsum("bthm,bmd->bthd", attention, memory)


NAMES = ("query", "stored", "new", "near", "inside", "expiry", "stored_time", "time", "hidden")


def inputs(
    seed: int,
    batch: int,
    heads: int,
    steps: int,
    num_stored: int,
    *,
    mask_per_head: bool = False,
    num_pooled: int = 0,
) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    time = torch.arange(steps, dtype=torch.float64) / 3
    # Away from the corners of the clamp, where the derivative is not defined.
    num_new = num_pooled + steps
    shape = (batch, heads if mask_per_head else 1, num_stored + num_new)
    expiry = torch.randint(-2, steps // 2 + 3, shape, generator=g) / 3 + 0.171
    no_stored = torch.rand(batch, steps, generator=g) < 0.3
    near = int(torch.randint(1, steps + 1, (), generator=g))
    columns = int(torch.randint(0, num_stored + 1, (), generator=g))
    parts = (
        normal(batch, steps, heads, 4),
        normal(batch, num_stored, 4),
        normal(batch, num_new, 4),
        normal(batch, heads, near, columns),
        normal(batch, heads, steps, steps),
        expiry.double(),
        time.masked_fill(no_stored, torch.inf),
        time,
        torch.rand(batch, steps, num_new, generator=g) < 0.4,
    )
    return dict(zip(NAMES, parts, strict=True))


LEARNED = ("query", "new", "near", "inside", "expiry")


@given(
    seed=st.integers(0, 2**16), batch=st.integers(1, 3), heads=st.integers(1, 3), steps=st.integers(1, 9),
    num_stored=st.integers(0, 12), mask_per_head=st.booleans(), num_pooled=st.sampled_from([0, 0, 1, 4]),
)  # fmt: skip
def test_values_and_gradients_equal_automatic_differentiation(
    seed: int, batch: int, heads: int, steps: int, num_stored: int, mask_per_head: bool, num_pooled: int
) -> None:
    sizes = {"mask_per_head": mask_per_head, "num_pooled": num_pooled}
    mine, plain = (inputs(seed, batch, heads, steps, num_stored, **sizes) for _ in range(2))
    for parts in (mine, plain):
        for name in LEARNED:
            parts[name].requires_grad_()
    read, _, _ = ExpiringAttention.apply(*mine.values())
    expected = plain_attention(*plain.values())
    torch.testing.assert_close(read, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn(
        read.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    (read * direction).sum().backward()
    (expected * direction).sum().backward()
    for name in LEARNED:
        torch.testing.assert_close(
            mine[name].grad, plain[name].grad, rtol=1e-8, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_query_that_sees_nothing_reads_zero_and_teaches_nothing() -> None:
    parts = inputs(0, 2, 2, 5, 6)
    parts["hidden"][0, 3] = True
    parts["stored_time"][0, 3] = torch.inf
    for name in LEARNED:
        parts[name].requires_grad_()
    read, mask, _ = ExpiringAttention.apply(*parts.values())
    assert bool((read[0, 3] == 0).all())
    assert bool((mask[0, 3] == 0).all())
    read[0, 3].sum().backward()
    for name in LEARNED:
        grad = parts[name].grad
        assert grad is not None
        assert bool((grad == 0).all())


def test_expired_memories_contribute_exactly_nothing() -> None:
    """Not merely little: changing them by any amount changes no bit."""
    parts = {
        name: part.float() if part.is_floating_point() else part
        for name, part in inputs(1, 1, 1, 4, 6).items()
    }
    parts |= {"near": None, "inside": None}  # type: ignore[dict-item]
    parts["expiry"] = torch.tensor([[[9.0] * 3 + [-1.0] * 7]])
    before, _, _ = ExpiringAttention.apply(*parts.values())
    parts["stored"][:, 3:] *= 1e20
    parts["new"] *= 1e20
    after, _, _ = ExpiringAttention.apply(*parts.values())
    assert torch.equal(before, after)


def test_a_head_that_sees_nothing_is_blind_alone() -> None:
    """Two heads, of which the first has let everything go."""
    parts = inputs(0, 1, 2, 3, 5, mask_per_head=True)
    parts["expiry"][:, 0], parts["expiry"][:, 1] = -1.0, 9.0
    parts["stored_time"] = parts["time"].expand(1, -1).clone()
    read, mask, _ = ExpiringAttention.apply(*parts.values())
    assert bool((read[:, :, 0] == 0).all())
    assert bool((read[:, :, 1] != 0).any(-1).all())
    assert bool((mask[:, :, 0] == 0).all())


def test_late_attention_is_what_stored_memories_got_from_late_queries() -> None:
    """Against the plain equations: one more column on the reading side marks the memory in question."""
    parts = inputs(4, 2, 3, 6, 5)
    _, _, late = ExpiringAttention.apply(*parts.values(), 2)
    for index in range(5):
        attention_BTH = _attention_to(parts, index)
        torch.testing.assert_close(late[:, index], attention_BTH[:, 2:].mean(2).sum(1))
    assert float(late.max()) > 0


def _attention_to(parts: dict[str, Tensor], index: int) -> Tensor:
    """[B, T, H] attention on one stored memory."""
    widened = {**parts, "query": torch.nn.functional.pad(parts["query"], (0, 1))}
    widened["new"] = torch.nn.functional.pad(parts["new"], (0, 1))
    widened["stored"] = torch.nn.functional.pad(parts["stored"], (0, 1))
    widened["stored"][:, index, -1] = 1.0
    return plain_attention(*widened.values())[..., -1]
