"""The memory transformer: against a slow reference, step against block, and what must never leak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents.expire_span import SpanNoise
from agents.memory_state import NEVER, MemoryState
from agents.transformer import BlockView, MemoryTransformer, TransformerSettings
from tests.agents.reference_transformer import reference_outputs

SMALL = TransformerSettings(
    width=8, num_layers=2, num_heads=2, max_span=12, ramp=3, initial_span_fraction=0.3, position_window=4
)


def lively(settings: TransformerSettings, seed: int = 0, *, spread: float = 1.5) -> MemoryTransformer:
    """A model whose memories have different spans and whose positions matter."""
    torch.manual_seed(seed)
    model = MemoryTransformer(settings).double().eval()
    for layer in model.layers:
        torch.nn.init.normal_(layer.expire_span.predictor.weight, std=spread)
        if settings.position_window:
            torch.nn.init.normal_(layer.position_HPK)
    return model


def episode_starts(seed: int, batch: int, steps: int, rate: float) -> Tensor:
    first = torch.rand(batch, steps, generator=torch.Generator().manual_seed(seed)) < rate
    first[:, 0] = True
    return first


def by_steps(
    model: MemoryTransformer, x: Tensor, first: Tensor, state: MemoryState, noise: SpanNoise | None = None
) -> tuple[Tensor, MemoryState]:
    outputs = []
    for t in range(x.shape[1]):
        now = None if noise is None else SpanNoise(noise.limit_BT[:, t : t + 1], noise.rate_BT[:, t : t + 1])
        output = model.step(x[:, t], state, first[:, t], now)
        state = output.state
        outputs.append(output.y_BD)
    return torch.stack(outputs, 1), state


def by_blocks(
    model: MemoryTransformer, x: Tensor, first: Tensor, sizes: list[int], noise: SpanNoise | None = None
) -> Tensor:
    state, outputs, begin = model.initial_state(x.shape[0]), [], 0
    for size in sizes:
        part = slice(begin, begin + size)
        now = None if noise is None else SpanNoise(noise.limit_BT[:, part], noise.rate_BT[:, part])
        output = model.block(x[:, part], state, first[:, part], now)
        assert output.state is not None
        state, begin = output.state, begin + size
        outputs.append(output.y_BTD)
    return torch.cat(outputs, 1)


shapes: dict[str, Any] = {
    "seed": st.integers(0, 2**16),
    "heads": st.sampled_from([1, 2, 4]),
    "max_span": st.sampled_from([1, 4, 12, 100]),
    "ramp": st.sampled_from([1, 3, 20]),
    "window": st.sampled_from([0, 1, 4, 40]),
    "rate": st.sampled_from([0.0, 0.1, 0.5]),
}


@settings(max_examples=25)
@given(**shapes)
def test_step_and_block_equal_the_reference(
    seed: int, heads: int, max_span: int, ramp: int, window: int, rate: float
) -> None:
    """Spans near L with R < T included, where the released code crashes."""
    model = lively(
        replace(SMALL, num_heads=heads, max_span=max_span, ramp=ramp, position_window=window),
        seed,
        spread=4.0,
    )
    batch, steps = 3, 17
    x = torch.randn(batch, steps, 8, dtype=torch.float64)
    first = episode_starts(seed, batch, steps, rate)
    with torch.no_grad():
        expected = torch.stack([reference_outputs(model, x[b], first[b].tolist()) for b in range(batch)])
        stepped, _ = by_steps(model, x, first, model.initial_state(batch))
        torch.testing.assert_close(stepped, expected, rtol=1e-9, atol=1e-10)
        for sizes in ([steps], [1, 5, 11], [8, 8, 1]):
            torch.testing.assert_close(by_blocks(model, x, first, sizes), expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**16), limit=st.floats(0.0, 12.0), rate=st.floats(1.0, 9.0))
def test_span_noise_is_the_same_in_step_block_and_reference(seed: int, limit: float, rate: float) -> None:
    model = lively(SMALL, seed)
    x = torch.randn(1, 15, 8, dtype=torch.float64)
    first = episode_starts(seed, 1, 15, 0.15)
    noise = SpanNoise(torch.full((1, 15), limit), torch.full((1, 15), rate))
    with torch.no_grad():
        expected = reference_outputs(
            model, x[0], first[0].tolist(), limit=float(torch.tensor(limit)), rate=float(torch.tensor(rate))
        )
        stepped, _ = by_steps(model, x, first, model.initial_state(1), noise)
        torch.testing.assert_close(stepped[0], expected, rtol=1e-6, atol=1e-6)  # noise is float32
        torch.testing.assert_close(
            by_blocks(model, x, first, [6, 9], noise)[0], expected, rtol=1e-6, atol=1e-6
        )


def test_gradients_equal_those_of_the_reference() -> None:
    """Every parameter, the span predictors included, with episode ends inside the block."""
    model = lively(SMALL, 3)
    x = torch.randn(2, 14, 8, dtype=torch.float64)
    first = episode_starts(3, 2, 14, 0.15)
    direction = torch.randn(2, 14, 8, dtype=torch.float64)
    (model.block(x, model.initial_state(2), first).y_BTD * direction).sum().backward()
    mine = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    expected = torch.stack([reference_outputs(model, x[b], first[b].tolist()) for b in range(2)])
    (expected * direction).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            mine[name], parameter.grad, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert float(mine["layers.0.expire_span.predictor.weight"].abs().max()) > 0


def test_mask_as_drawn() -> None:
    """The matrix in the module's docstring: two stored memories, an episode that begins at step 2."""
    model = lively(replace(SMALL, num_layers=1), spread=0.0)
    state = model.initial_state(1)
    for _ in range(2):
        state = model.step(torch.randn(1, 8, dtype=torch.float64), state, torch.tensor([False])).state
    view = BlockView.of(state, torch.tensor([[False, False, True, False]]))
    stored = view.stored_time_BT.isfinite().unsqueeze(2).expand(-1, -1, 2)
    visible = torch.cat([stored, ~view.hidden_BTT], 2)
    assert visible[0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]


@pytest.mark.parametrize("acting", [True, False])
def test_nothing_crosses_an_episode_boundary_nor_comes_from_the_future(acting: bool) -> None:
    model = lively(SMALL)
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    first = torch.zeros(2, 20, dtype=torch.bool)
    first[:, [0, 9]] = True

    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return (
                by_steps(model, inputs, first, model.initial_state(2))[0]
                if acting
                else by_blocks(model, inputs, first, [12, 8])
            )

    before = run(x)
    past = x.clone()
    past[:, 4] += 100.0
    assert torch.equal(run(past)[:, 9:], before[:, 9:])
    assert not torch.equal(run(past)[:, 5:9], before[:, 5:9])
    future = x.clone()
    future[:, 15:] += 100.0
    assert torch.equal(run(future)[:, :15], before[:, :15])


def test_rows_delete_what_they_may_whatever_the_others_keep() -> None:
    """One row remembers everything, the other nothing: each holds what it would hold alone."""
    model = MemoryTransformer(replace(SMALL, num_layers=1, max_span=1000, ramp=2, position_window=0)).eval()
    predictor = model.layers[0].expire_span.predictor
    with torch.no_grad():
        predictor.weight.zero_()
        predictor.weight[0, 0] = 50.0
        predictor.bias.fill_(0.0)
    x = torch.randn(2, 60, 8) * 0.1
    x[0, :, 0], x[1, :, 0] = 3.0, -3.0
    first = torch.zeros(2, 60, dtype=torch.bool)
    state = model.initial_state(2)
    for t in range(60):
        output = model.step(x[:, t], state, first[:, t])
        state = output.state
    assert output.reports[0].retained_B.tolist() == [59, 1]
    alive = (model.compact(state).layers[0].birth_BW != NEVER).sum(1)
    assert alive.tolist() == [60, 1]
    after_block = model.block(x, model.initial_state(2), first).state
    assert after_block is not None
    assert (after_block.layers[0].birth_BW != NEVER).sum(1).tolist() == [60, 1]


def test_the_store_is_as_wide_as_the_fullest_row_whatever_the_maximum_span() -> None:
    """10,000 steps with a maximum span of a million: bytes held do not grow, clocks do."""
    settings = replace(SMALL, max_span=1_000_000, initial_span_fraction=5e-6, num_layers=1)
    model = MemoryTransformer(settings).eval()
    state, first = model.initial_state(3), torch.zeros(3, dtype=torch.bool)
    held = []
    for t in range(2_000):
        state = model.step(torch.randn(3, 8), state, first).state
        if t in (200, 1_999):
            held.append(state.bytes_held)
    assert held[1] <= held[0]
    assert state.layers[0].num_slots <= 16
    assert state.clock_B.tolist() == [2_000] * 3


def test_acting_follows_a_change_of_the_weights() -> None:
    """Anything derived from old weights would make acting differ from learning after an update."""
    model = lively(SMALL)
    x, first = torch.randn(2, 12, 8, dtype=torch.float64), torch.zeros(2, 12, dtype=torch.bool)
    with torch.no_grad():
        _, state = by_steps(model, x[:, :6], first[:, :6], model.initial_state(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    model.block(x, model.initial_state(2), first).y_BTD.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        expected = model.block(x[:, 6:], state, first[:, 6:]).y_BTD
        torch.testing.assert_close(by_steps(model, x[:, 6:], first[:, 6:], state.clone())[0], expected)
    saved = {name: value + 0.1 for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    with torch.no_grad():
        expected = model.block(x[:, 6:], state, first[:, 6:]).y_BTD
        torch.testing.assert_close(by_steps(model, x[:, 6:], first[:, 6:], state)[0], expected)


def test_asking_without_writing_leaves_the_state_as_it_is() -> None:
    model = lively(SMALL)
    x, first = torch.randn(2, 8, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.bool)
    _, state = by_steps(model, x, first, model.initial_state(2))
    before = {name: value.clone() for name, value in state.state_dict().items()}
    asked = model.step(x[:, 0], state, torch.tensor([True, False]), write=False)
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())
    told = model.step(x[:, 0], state, torch.tensor([True, False]))
    assert torch.equal(asked.y_BD, told.y_BD)


def test_state_survives_its_flat_form() -> None:
    model = lively(SMALL)
    x, first = torch.randn(2, 20, 8, dtype=torch.float64), torch.zeros(2, 20, dtype=torch.bool)
    _, state = by_steps(model, x[:, :10], first[:, :10], model.initial_state(2))
    copy = MemoryState.from_state_dict({name: value.clone() for name, value in state.state_dict().items()})
    a, _ = by_steps(model, x[:, 10:], first[:, 10:], state)
    b, _ = by_steps(model, x[:, 10:], first[:, 10:], copy)
    torch.testing.assert_close(a, b)


def test_memory_free_twin_has_no_memory_and_no_attention() -> None:
    model = MemoryTransformer(replace(SMALL, remember=False)).eval()
    assert not any("query" in name or "expire" in name for name, _ in model.named_parameters())
    state, x = model.initial_state(2), torch.randn(2, 8)
    first = torch.zeros(2, dtype=torch.bool)
    once = model.step(x, state, first)
    again = model.step(x, once.state, first)
    assert torch.equal(once.y_BD, again.y_BD)
    assert model.block(x.unsqueeze(1), model.initial_state(2), first.unsqueeze(1)).y_BTD.shape == (2, 1, 8)


def test_layer_drop_skips_layers_only_in_training() -> None:
    model = lively(replace(SMALL, layer_drop=0.9))
    x, first = torch.randn(2, 6, 8, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.bool)
    calm = model.block(x, model.initial_state(2), first).y_BTD
    assert torch.equal(calm, model.block(x, model.initial_state(2), first).y_BTD)
    model.train()
    outputs = [model.block(x, model.initial_state(2), first).y_BTD for _ in range(10)]
    assert any(not torch.allclose(output, calm) for output in outputs)


@pytest.mark.parametrize("change", [{"num_heads": 3}, {"layer_drop": 1.0}])
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        MemoryTransformer(replace(SMALL, **change))
