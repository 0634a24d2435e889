"""The hand-written gradient against automatic differentiation of equations 3 and 4 as they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from memory_suite.agents.model.attention.expiring import ExpiringAttention, should_project_kv
from memory_suite.agents.model.attention.positions import BlockPositions
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.model.transformer import MemoryTransformer
from memory_suite.configs import agent_schema as schema
from memory_suite.configs import sequence_schema


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    position: Tensor,
    expiry: Tensor,
    stored_time: Tensor,
    time: Tensor,
    hidden: Tensor,
    age: Tensor,
) -> Tensor:
    num_memories, steps, heads = key.shape[2], *query.shape[1:3]
    num_stored = num_memories - hidden.shape[2]
    if value is None:
        key = torch.cat([key[:, :, :num_stored].detach(), key[:, :, num_stored:]], 2)
        value = key
    key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
    expiry = expiry.unsqueeze(1)
    stored_mask = (expiry[..., :num_stored] - stored_time[:, :, None, None]).clamp(0, 1)
    new_mask = (expiry[..., num_stored:] - time[:, None, None]).clamp(0, 1) * ~hidden.unsqueeze(2)
    mask = torch.cat([stored_mask, new_mask], 3)
    score = torch.einsum("bthq,bhmq->bthm", query, key)
    if window := position.shape[3]:
        step = torch.arange(steps).unsqueeze(1)
        age_BTW = age.unsqueeze(1) + step
        pooled_BTN = torch.full((*age_BTW.shape[:2], num_memories - num_stored - steps), window + 1)
        age_BTT = (step - step.T).expand(len(age), -1, -1)
        age_BTHM = torch.cat([age_BTW, pooled_BTN, age_BTT], 2).unsqueeze(2)
        near = (age_BTHM >= 1) & (age_BTHM <= window)
        for_age = position.gather(3, (window - age_BTHM).clamp(0, window - 1).expand(-1, -1, heads, -1))
        score = score + for_age * near
    weight = mask * score.exp()
    total = weight.sum(-1, keepdim=True)
    attention = torch.where(total > 0, weight / total.clamp_min(1e-300), 0.0)
    return torch.einsum("bthm,bhmq->bthq", attention, value)


NAMES = ("query", "key", "value", "position", "expiry", "stored_time", "time", "hidden", "age")


def inputs(
    seed: int,
    batch: int,
    heads: int,
    steps: int,
    num_stored: int,
    *,
    mask_per_head: bool = False,
    num_pooled: int = 0,
    projected: bool = False,
) -> dict[str, Any]:
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    time = torch.arange(steps, dtype=torch.float64) / 3
    # Away from the corners of the clamp, where the derivative is not defined.
    num_new = num_pooled + steps
    num_memories = num_stored + num_new
    shape = (batch, heads if mask_per_head else 1, num_memories)
    expiry = torch.randint(-2, steps // 2 + 3, shape, generator=g) / 3 + 0.171
    no_stored = torch.rand(batch, steps, generator=g) < 0.3
    window = int(torch.randint(0, steps + 3, (), generator=g))  # also longer than the block
    # Of each row all different, as they are; in any order, so that near ones lie behind old ones too.
    age = torch.stack([1 + torch.randperm(num_stored + 4, generator=g)[:num_stored] for _ in range(batch)])
    parts = (
        normal(batch, steps, heads, 4),
        normal(batch, heads if projected else 1, num_memories, 4),
        normal(batch, heads, num_memories, 4) if projected else None,
        normal(batch, steps, heads, window),
        expiry.double(),
        time.masked_fill(no_stored, torch.inf),
        time,
        torch.rand(batch, steps, num_new, generator=g) < 0.4,
        age,
    )
    return dict(zip(NAMES, parts, strict=True))


def learned(parts: dict[str, Any]) -> list[str]:
    return [name for name in NAMES[:5] if parts[name] is not None]


def attend(
    parts: dict[str, Any],
    *,
    need_attention: bool = False,
    need_mask: bool = True,
    never_blind: bool = False,
    num_first: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As a layer calls it; memories as they are stored get their gradient as two parts that were written."""
    key, written = parts["key"], []
    if parts["value"] is None:
        num_stored = key.shape[2] - parts["hidden"].shape[2]
        recent = key[:, 0, num_stored:]
        written = [recent[:, :num_first], recent[:, num_first:]]
        key = key.detach()
    position, age = parts["position"], parts["age"]
    positions = None
    if position.shape[3]:
        positions = BlockPositions.of(age, num_steps=position.shape[1], window=position.shape[3])
    arguments = {**parts, "key": key, "age": positions}.values()
    read, mask, attention = ExpiringAttention.apply(
        *arguments, need_attention, need_mask, never_blind, *written
    )
    return read, mask, attention


@given(
    seed=st.integers(0, 2**16), batch=st.integers(1, 3), heads=st.integers(1, 3), steps=st.integers(1, 9),
    num_stored=st.integers(0, 12), mask_per_head=st.booleans(), num_pooled=st.sampled_from([0, 0, 1, 4]),
    projected=st.booleans(), need_mask=st.booleans(), num_first=st.integers(0, 2),
)  # fmt: skip
def test_values_and_gradients_equal_automatic_differentiation(
    seed: int,
    batch: int,
    heads: int,
    steps: int,
    num_stored: int,
    mask_per_head: bool,
    num_pooled: int,
    projected: bool,
    need_mask: bool,
    num_first: int,
) -> None:
    sizes = {"mask_per_head": mask_per_head, "num_pooled": num_pooled, "projected": projected}
    mine, plain = (inputs(seed, batch, heads, steps, num_stored, **sizes) for _ in range(2))
    for parts in (mine, plain):
        for name in learned(parts):
            parts[name].requires_grad_()
    read, mask, _ = attend(mine, need_mask=need_mask, num_first=min(num_first, steps))
    assert need_mask <= (mask is not None)
    expected = plain_attention(*plain.values())
    torch.testing.assert_close(read, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn(
        read.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    (read * direction).sum().backward()
    (expected * direction).sum().backward()
    for name in learned(mine):
        torch.testing.assert_close(
            mine[name].grad, plain[name].grad, rtol=1e-8, atol=1e-11, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("projected", [False, True])
def test_a_query_that_sees_nothing_reads_zero_and_teaches_nothing(projected: bool) -> None:
    parts = inputs(0, 2, 2, 5, 6, projected=projected)
    parts["hidden"][0, 3] = True
    parts["stored_time"][0, 3] = torch.inf
    for name in learned(parts):
        parts[name].requires_grad_()
    read, mask, _ = attend(parts)
    assert bool((read[0, 3] == 0).all())
    assert bool((mask[0, 3] == 0).all())
    read[0, 3].sum().backward()
    for name in learned(parts):
        grad = parts[name].grad
        assert grad is not None
        assert bool((grad == 0).all())


def test_expired_memories_contribute_exactly_nothing() -> None:
    """Not merely little: changing them by any amount changes no bit."""
    parts = {
        name: part.float() if part is not None and part.is_floating_point() else part
        for name, part in inputs(1, 1, 1, 4, 6).items()
    }
    parts["position"] = torch.zeros(1, 4, 1, 0)
    parts["expiry"] = torch.tensor([[[9.0] * 3 + [-1.0] * 7]])
    before, _, _ = attend(parts)
    parts["key"][:, :, 3:] *= 1e20
    after, _, _ = attend(parts)
    assert torch.equal(before, after)


def test_a_head_that_sees_nothing_is_blind_alone() -> None:
    """Two heads, of which the first has let everything go."""
    parts = inputs(0, 1, 2, 3, 5, mask_per_head=True)
    parts["expiry"][:, 0], parts["expiry"][:, 1] = -1.0, 9.0
    parts["stored_time"] = parts["time"].expand(1, -1).clone()
    read, mask, _ = attend(parts)
    assert bool((read[:, :, 0] == 0).all())
    assert bool((read[:, :, 1] != 0).any(-1).all())
    assert bool((mask[:, :, 0] == 0).all())


@pytest.mark.parametrize("projected", [False, True])
def test_attention_is_returned_on_request(projected: bool) -> None:
    """Against the plain equations: values of one at the memory in question and zero elsewhere."""
    parts = inputs(4, 2, 3, 6, 5, projected=projected)
    assert attend(parts)[2] is None
    attention_BTHM = attend(parts, need_attention=True)[2]
    assert not attention_BTHM.requires_grad
    for index in range(11):
        value = torch.zeros_like(parts["key"])
        value[:, :, index] = 1.0
        expected_BTH = plain_attention(**{**parts, "value": value})[..., 0]
        torch.testing.assert_close(attention_BTHM[..., index], expected_BTH)
    assert float(attention_BTHM[..., :5].max()) > 0


@pytest.mark.parametrize("projected", [False, True])
def test_a_stored_memory_costs_the_products_that_the_choice_goes_by(
    projected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by torch: 4 T H D as stored, 6 T D + 4 D D projected, forward and backward."""
    steps, width, heads = 6, 8, 4
    monkeypatch.setattr("memory_suite.agents.model.layer.should_project_kv", lambda **_: projected)
    settings = TransformerSettings(width=width, num_heads=heads, num_layers=1, memory="transformer-xl")
    model = MemoryTransformer(replace(settings, memory_size=99))
    first = torch.zeros(1, steps, dtype=torch.bool)

    def products(num_stored: int) -> int:
        before, none_first = torch.randn(1, num_stored, width), torch.zeros(1, num_stored, dtype=torch.bool)
        state = model.block(before, model.initial_state(1), none_first).state
        assert state is not None
        state = state.trimmed()
        assert state.layers[0].num_slots == num_stored
        with FlopCounterMode(display=False) as counter:
            model.block(torch.randn(1, steps, width), state, first, need_state=False).y_BWD.sum().backward()
        return counter.get_total_flops() // 2

    expected = 6 * steps * width + 4 * width**2 if projected else 4 * steps * heads * width
    # Beyond the position window, so that nothing else grows with what is stored.
    assert products(50) - products(30) == 20 * expected


def test_projecting_pays_where_it_saves_products() -> None:
    for steps in range(1, 300):
        for heads in (1, 2, 4, 8):
            for width in (16, 48, 64, 256):
                stored, projected = 4 * steps * heads * width, 6 * steps * width + 4 * width**2
                assert should_project_kv(num_steps=steps, num_heads=heads, width=width) == (
                    projected < stored
                )


def test_how_agents_read_memories() -> None:
    """PPO projects them, A2C does not: another choice would change the numbers of every run."""
    config = schema.TrainConfig()
    sizes = {"num_heads": config.policy.num_heads, "width": config.policy.width}
    assert should_project_kv(num_steps=config.ppo.n_steps, **sizes)
    assert not should_project_kv(num_steps=config.a2c.n_steps, **sizes)


@pytest.mark.parametrize("task", ["text", "collision", "copy", "instruction"])
def test_sequence_tasks_read_projected_memories(task: str) -> None:
    config = sequence_schema.load(["--task", task])
    sizes = {"num_heads": config.model.num_heads, "width": config.model.width}
    assert should_project_kv(num_steps=config.block_size, **sizes)
