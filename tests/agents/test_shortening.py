"""The effect of shorter spans: against loops over memories, and what must have no influence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from memory_suite import MemoryPolicy
from memory_suite.agents.model import shortening
from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.settings import MemoryKind
from memory_suite.agents.model.shortening import (
    COST_DECAY,
    FAR_MEAN,
    FAR_SHARE,
    FAR_WEIGHT,
    IMITATION_WEIGHT,
    LENGTHENED_SHARE,
    MARGIN,
    NOTHING_SHARE,
    RAMP_EFOLDINGS,
    SMALLEST_EFFECT,
    USEFULNESS_WEIGHT,
    effect_of,
    sample_log_factors,
    shortened_block,
    shortened_effect,
)
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer
from tests.agents.reference_transformer import Seen, Written, read
from tests.agents.test_transformer import SMALL, episode_starts, lively

KEEPS_ALL = 1e6
"""steps; floor of spans in these tests"""


def spans_of(model: MemoryTransformer, layer: int, h_D: Tensor) -> list[Tensor]:
    """e_i for each head."""
    retention: Any = model.layers[layer].retention
    if isinstance(retention, ExpireSpan):
        logit = retention.predictor(h_D.detach()).squeeze(-1)
        return [retention.max_span * logit.sigmoid()] * SMALL.num_heads
    return [retention.max_span * logit.sigmoid() for logit in retention.logit_G]


def presence(span: Tensor, age: int, log_factor: float) -> Tensor:
    """1 up to the age e * factor / `MARGIN`, 0 from e * factor on."""
    if log_factor == -math.inf:
        return span.new_zeros(())
    return ((span.log() - math.log(age) + log_factor) / math.log(MARGIN)).clamp(0.0, 1.0)


def run(
    model: MemoryTransformer,
    x_TD: Tensor,
    is_first: list[bool],
    written: list[list[Written]],
    start: int,
    log_factor: float | None,
) -> tuple[Tensor, Tensor]:
    """Outputs of the steps from the clock reading `start` on, and the cost of the memories they saw.

    `written` has what each layer remembers so far, and gets what it writes. With a factor of None everything
    is seen.
    """
    outputs, cost = [], torch.zeros((), dtype=x_TD.dtype)
    for now, (x_D, first) in enumerate(zip(x_TD, is_first, strict=True), start=start):
        for index, layer in enumerate(model.layers):
            if first:
                written[index].clear()
            h_D = layer.memory_norm(x_D)
            memories = []
            for memory in written[index]:
                age, spans = now - memory.clock, spans_of(model, index, memory.h_D)
                for span in spans:
                    if age <= float(span):
                        decay = (age / float(span)) ** COST_DECAY
                        cost = cost + COST_DECAY * decay / age * span.log() / len(spans)
                weights = [
                    torch.ones_like(span) if log_factor is None else presence(span, age, log_factor)
                    for span in spans
                ]
                memories.append(Seen(memory.h_D, weights, age, 0))
            x_D = x_D + layer.attention_out(read(layer, h_D, memories))
            x_D = x_D + layer.narrow(F.relu(layer.widen(layer.feedforward_norm(x_D))))
            written[index].append(Written(now, h_D, 0))
        outputs.append(model.final_norm(x_D))
    return torch.stack(outputs), cost


def full_memory(model: MemoryTransformer, batch: int) -> MemoryState:
    state = model.initial_state(batch)
    state.span_floor_B = torch.full((batch,), KEEPS_ALL, dtype=torch.double)
    return state


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["expire-span", "adaptive-span"]), seed=st.integers(0, 2**16),
    layers=st.integers(1, 3), null_memory=st.booleans(), window=st.sampled_from([0, 4]),
    rate=st.sampled_from([0.0, 0.15]), before=st.integers(0, 9),
    log_factor=st.floats(-4.0, 3.0) | st.just(-math.inf),
)  # fmt: skip
def test_a_block_with_other_spans_equals_the_loop(
    kind: MemoryKind,
    seed: int,
    layers: int,
    null_memory: bool,
    window: int,
    rate: float,
    before: int,
    log_factor: float,
) -> None:
    """With its cost; stored memories stay as they were written, those of the block are written anew."""
    chosen = replace(SMALL, memory=kind, num_layers=layers, null_memory=null_memory, position_window=window)
    model = lively(chosen, seed)
    batch, steps = 2, before + 7
    x = torch.randn(batch, steps, SMALL.width, dtype=torch.double)
    first = episode_starts(seed, batch, steps, rate)
    state = full_memory(model, batch)
    if before:
        new_state = model.block(x[:, :before], state, first[:, :before]).state
        assert new_state is not None
        state = new_state
    factors = torch.tensor([log_factor, 0.3], dtype=torch.double)
    with torch.no_grad():
        y, cost_B = shortened_block(model, x[:, before:], state, first[:, before:], factors)
        for row in range(batch):
            written: list[list[Written]] = [[] for _ in model.layers]
            if before:
                run(model, x[row, :before], first[row, :before].tolist(), written, 0, None)
            expected, cost = run(
                model, x[row, before:], first[row, before:].tolist(), written, before, float(factors[row])
            )
            torch.testing.assert_close(y[row], expected)
            torch.testing.assert_close(cost_B[row], cost)


def test_without_memories_the_null_memory_is_all_there_is() -> None:
    """A factor of 0 equals a first step of an episode, at every step."""
    model = lively(replace(SMALL, null_memory=True))
    x = torch.randn(1, 6, SMALL.width, dtype=torch.double)
    first = episode_starts(0, 1, 6, 0.0)
    nothing = torch.tensor([-math.inf], dtype=torch.double)
    y, _ = shortened_block(model, x, full_memory(model, 1), first, nothing)
    alone = model.block(x, model.initial_state(1), torch.ones_like(first)).y_BWD
    torch.testing.assert_close(y, alone)


def test_empty_slots_stay_empty_however_long_spans_are() -> None:
    model = lively(SMALL)
    x = torch.randn(2, 4, SMALL.width, dtype=torch.double)
    first = torch.tensor([[True, False, False, False], [True, False, False, True]])
    state = model.block(x, full_memory(model, 2), first).state
    assert state is not None and state.layers[0].num_slots > 1
    more, starts = torch.randn(2, 3, SMALL.width, dtype=torch.double), torch.zeros(2, 3, dtype=torch.bool)
    longest = torch.full((2,), 60.0, dtype=torch.double)
    y, _ = shortened_block(model, more, state, starts, longest)
    torch.testing.assert_close(y, model.block(more, state, starts).y_BWD)


def squared_distance(y_full: Tensor) -> Any:
    """A divergence between outputs that tests can compute by hand."""
    return lambda rows, y_NWD: (y_full[rows].detach() - y_NWD).square().sum(-1)


def test_gradients_of_spans_and_of_other_weights_have_their_own_weights() -> None:
    """Spans: usefulness and cost; the rest: imitation alone; the input: nothing."""
    model = lively(replace(SMALL, null_memory=True), seed=3)
    # Spans of the second layer do not depend on what it remembers, since no gradient passes there.
    torch.nn.init.zeros_(model.layers[1].retention.predictor.weight)
    x = torch.randn(3, 9, SMALL.width, dtype=torch.double, requires_grad=True)
    first, state = episode_starts(0, 3, 9, 0.1), full_memory(model, 3)
    y = model.block(x.detach(), state, first).y_BWD
    factors = torch.tensor([-0.4, -2.0, 0.8], dtype=torch.double)
    effect = shortened_effect(model, x, state, first, factors, squared_distance(y))
    assert float(effect.effect_NW.max()) > 0.1
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(effect.loss, parameters, allow_unused=True), strict=True))
    assert torch.autograd.grad(
        shortened_effect(model, x, state, first, factors, squared_distance(y)).loss, x, allow_unused=True
    ) == (None,)

    def parts(row: int) -> tuple[Tensor, Tensor]:
        output = shortened_block(
            model,
            x[row : row + 1].detach(),
            full_memory(model, 1),
            first[row : row + 1],
            factors[row : row + 1],
        )
        return effect_of((y[row] - output.y_BWD[0]).square().sum(-1)).sum() / 9, output.cost_B.sum() / 9

    step = 1e-6
    for name in ("layers.1.query.weight", "layers.0.attention_out.bias", "final_norm.weight"):
        parameter = dict(model.named_parameters())[name]
        with torch.no_grad():
            index = tuple(0 for _ in parameter.shape)
            values = []
            for sign in (1, -1):
                parameter[index] += sign * step
                values.append(sum(float(parts(row)[0]) for row in range(3)))
                parameter[index] -= sign * step
        slope = (values[0] - values[1]) / (2 * step)
        gradient = found[name]
        assert gradient is not None
        assert float(gradient[index]) == pytest.approx(IMITATION_WEIGHT * slope, rel=1e-4, abs=1e-9)

    for layer in range(2):
        name = f"layers.{layer}.retention.predictor.bias"
        bias = dict(model.named_parameters())[name]
        expected = 0.0
        for row, weight in enumerate([USEFULNESS_WEIGHT, FAR_WEIGHT, USEFULNESS_WEIGHT]):
            with torch.no_grad():
                values = []
                for sign in (1, -1):
                    bias += sign * step
                    values.append(float(parts(row)[0]))
                    bias -= sign * step
            expected += weight * (values[0] - values[1]) / (2 * step)
            # The cost's rate is a constant: only the logarithm is differentiated.
            expected += float(torch.autograd.grad(parts(row)[1], bias)[0])
        gradient = found[name]
        assert gradient is not None
        assert float(gradient) == pytest.approx(expected, rel=1e-4)
        assert abs(expected) > 1e-2


def test_a_memory_that_lives_long_enough_pays_about_one() -> None:
    """The gradient of its cost in log e, over all ages up to e."""
    model = lively(replace(SMALL, num_layers=1, max_span=400))
    retention: Any = model.layers[0].retention
    torch.nn.init.zeros_(retention.predictor.weight)
    torch.nn.init.zeros_(retention.predictor.bias)  # e = 200
    steps = 300
    x, first = torch.randn(1, steps, SMALL.width, dtype=torch.double), episode_starts(0, 1, steps, 0.0)
    factor = torch.zeros(1, dtype=torch.double)
    cost = shortened_block(model, x, full_memory(model, 1), first, factor).cost_B.sum()
    (slope,) = torch.autograd.grad(cost, retention.predictor.bias)
    per_efolding = float(slope) / 0.5  # d log e / d bias = 1 - sigmoid
    by_hand = sum(
        COST_DECAY * (age / 200) ** COST_DECAY / age
        for t in range(steps)
        for age in range(1, min(t, 200) + 1)
    )
    assert per_efolding == pytest.approx(by_hand)
    whole = sum(COST_DECAY * (age / 200) ** COST_DECAY / age for age in range(1, 201))
    assert 0.75 < whole < 1.1


def test_groups_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(replace(SMALL, null_memory=True))
    x, first = torch.randn(5, 8, SMALL.width, dtype=torch.double), episode_starts(1, 5, 8, 0.3)
    state = full_memory(model, 5)
    y = model.block(x, state, first).y_BWD
    factors = torch.tensor([-0.1, 0.4, math.nan, -3.0, -math.inf], dtype=torch.double)
    found = []
    for at_a_time in (1, 2 * 8 * 2 * 20, 2**20):
        monkeypatch.setattr(shortening, "SCORES_AT_A_TIME", at_a_time)
        found.append(shortened_effect(model, x, state, first, factors, squared_distance(y)))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)
    assert found[0].log_factor_N.tolist() == [-0.1, 0.4, -3.0, -math.inf]
    assert found[0].effect_NW.shape == (4, 8)


def test_rows_without_a_factor_are_never_computed() -> None:
    model = lively(SMALL)
    x, first = torch.randn(3, 4, SMALL.width, dtype=torch.double), episode_starts(1, 3, 4, 0.0)
    rows: list[int] = []

    def divergence(rows_N: Tensor, y_NWD: Tensor) -> Tensor:
        rows.extend(rows_N.tolist())
        return y_NWD.sum(-1)

    factors = torch.tensor([math.nan, 0.0, math.nan], dtype=torch.double)
    shortened_effect(model, x, full_memory(model, 3), first, factors, divergence)
    assert rows == [1]
    nothing = shortened_effect(model, x, full_memory(model, 3), first, factors * math.nan, divergence)
    assert rows == [1] and float(nothing.loss) == 0.0


def test_factors_have_the_stated_distribution() -> None:
    torch.manual_seed(0)
    drawn = sample_log_factors((200_000,), torch.device("cpu"))
    nothing = drawn == -math.inf
    longer, far = drawn[drawn > 0], drawn[(drawn < -RAMP_EFOLDINGS) & ~nothing]
    near = drawn[(drawn <= 0) & (drawn >= -RAMP_EFOLDINGS)]
    for part, share in ((drawn[nothing], NOTHING_SHARE), (longer, LENGTHENED_SHARE), (far, FAR_SHARE)):
        assert len(part) / len(drawn) == pytest.approx(share, abs=0.01)
    assert float(longer.mean()) == pytest.approx(FAR_MEAN, rel=0.03)
    assert float((-far - RAMP_EFOLDINGS).mean()) == pytest.approx(FAR_MEAN, rel=0.03)
    assert float(near.mean()) == pytest.approx(-RAMP_EFOLDINGS / 2, rel=0.02)


def test_small_differences_have_no_effect() -> None:
    divergence = torch.tensor([0.0, SMALLEST_EFFECT, SMALLEST_EFFECT + math.log(2), 100.0])
    torch.testing.assert_close(effect_of(divergence), torch.tensor([0.0, 0.0, 0.5, 1.0]))


ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1.0, 1.0, (3,)),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}


def kl_by_hand(policy: MemoryPolicy, y: Tensor, other: Tensor) -> Tensor:
    """KL of the action distributions, summed over the action's parts."""
    mine, theirs = policy.action_net(y), policy.action_net(other)
    space = policy.action_space
    if isinstance(space, spaces.Box):
        assert policy.log_std is not None
        std = policy.log_std.exp().expand_as(mine)
        return kl_divergence(Normal(mine, std), Normal(theirs, std)).sum(-1)
    if isinstance(space, spaces.MultiBinary):
        return kl_divergence(Bernoulli(logits=mine), Bernoulli(logits=theirs)).sum(-1)
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [mine.shape[-1]]
    parts = zip(mine.split(sizes, -1), theirs.split(sizes, -1), strict=True)
    return torch.stack(
        [kl_divergence(Categorical(logits=one), Categorical(logits=two)) for one, two in parts]
    ).sum(0)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_effect_is_what_the_actions_would_change_by(action: str) -> None:
    torch.manual_seed(0)
    policy = MemoryPolicy(
        spaces.Box(-1.0, 1.0, (8,)), ACTIONS[action], lambda _: 1e-3,
        width=8, num_layers=2, num_heads=2, max_span=30, initial_span_fraction=0.3,
    )  # fmt: skip
    torch.nn.init.normal_(policy.action_net.weight, std=1.5)
    batch, steps = 3, 10
    features = policy.encoder.preprocess(torch.rand(batch * steps, 8))
    policy.action_space.seed(0)
    samples = np.array([policy.action_space.sample() for _ in range(batch * steps)])
    actions = torch.as_tensor(samples)
    if action == "multi_binary":  # of which torch draws floats
        actions = actions.float()
    first = episode_starts(0, batch, steps, 0.1)
    x = policy.encoder(features).view(batch, steps, -1)
    features = {name: part.view(batch, steps, *part.shape[1:]) for name, part in features.items()}
    actions = actions.view(batch, steps, *actions.shape[1:])
    state = policy.initial_state(batch)
    factors = torch.tensor([-0.5, math.nan, -math.inf])
    found = policy.evaluate_block(features, actions, state, first, log_factor_B=factors).shortened
    assert found is not None
    rows = torch.tensor([0, 2])
    y = policy.transformer.block(x, state, first).y_BWD[rows]
    other = shortened_block(policy.transformer, x[rows], state.select(rows), first[rows], factors[rows])
    effect = effect_of(kl_by_hand(policy, y, other.y_BWD))
    torch.testing.assert_close(found.effect_NW, effect.detach())
    assert float(effect.detach().max()) > 0.05
    total = (IMITATION_WEIGHT * effect.sum() + other.cost_B.sum()) / steps
    torch.testing.assert_close(found.loss, total)
