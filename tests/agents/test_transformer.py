"""The memory transformer: against a slow reference, step against block, and what must never leak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_suite.agents.model import layer as layer_module
from memory_suite.agents.model.retention.adaptive_span import AdaptiveSpan
from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.retention.make import make_retention
from memory_suite.agents.model.settings import MemoryKind, PenaltyForm, PenaltySpec, TransformerSettings
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import NEVER, SPARE_SLOTS
from memory_suite.agents.model.store.state import MemoryState, SpanBounds
from memory_suite.agents.model.transformer import COMPACTION_INTERVAL_STEPS, MemoryTransformer
from tests.agents.reference_transformer import reference

SMALL = TransformerSettings(
    width=8,
    num_layers=2,
    num_heads=2,
    max_span=12,
    ramp=3,
    initial_span_fraction=0.3,
    memory_size=5,
    compressed_size=2,
    compression_rate=3,
    position_window=4,
)


KINDS: list[MemoryKind] = ["expire-span", "transformer-xl", "adaptive-span", "compressive"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def lively(settings: TransformerSettings, seed: int = 0, *, spread: float = 1.5) -> MemoryTransformer:
    """A model whose memories have different spans and whose positions matter."""
    torch.manual_seed(seed)
    model = MemoryTransformer(settings).double().eval()
    for layer in model.layers:
        if isinstance(layer.retention, ExpireSpan):
            torch.nn.init.normal_(layer.retention.predictor.weight, std=spread)
        if isinstance(layer.retention, AdaptiveSpan):
            torch.nn.init.normal_(layer.retention.logit_G, std=spread)
        if settings.position_window:
            torch.nn.init.normal_(layer.position_HPK)
    return model


def episode_starts(seed: int, batch: int, steps: int, rate: float) -> Tensor:
    first = torch.rand(batch, steps, generator=torch.Generator().manual_seed(seed)) < rate
    first[:, 0] = True
    return first


def by_steps(
    model: MemoryTransformer, x: Tensor, first: Tensor, state: MemoryState, limit_BT: Tensor | None = None
) -> tuple[Tensor, MemoryState]:
    outputs = []
    for t in range(x.shape[1]):
        now = None if limit_BT is None else limit_BT[:, t : t + 1]
        output = model.step(x[:, t], state, first[:, t], now)
        state = output.state
        outputs.append(output.y_BD)
    return torch.stack(outputs, 1), state


def by_blocks(
    model: MemoryTransformer, x: Tensor, first: Tensor, sizes: list[int], limit_BT: Tensor | None = None
) -> Tensor:
    state, outputs, begin = model.initial_state(x.shape[0]), [], 0
    for size in sizes:
        part = slice(begin, begin + size)
        now = None if limit_BT is None else limit_BT[:, part]
        output = model.block(x[:, part], state, first[:, part], now)
        assert output.state is not None
        state, begin = output.state, begin + size
        outputs.append(output.y_BWD)
    return torch.cat(outputs, 1)


@st.composite
def transformers(draw: st.DrawFn) -> TransformerSettings:
    """Every kind, with memories shorter and longer than blocks, windows, groups and each other."""
    return replace(
        SMALL,
        memory=draw(st.sampled_from(KINDS)),
        num_heads=draw(st.sampled_from([1, 2, 4])),
        max_span=draw(st.sampled_from([1, 4, 12, 100])),
        ramp=draw(st.sampled_from([1, 3, 20])),
        memory_size=draw(st.sampled_from([1, 2, 5, 30])),
        compressed_size=draw(st.sampled_from([1, 2, 9])),
        compression_rate=draw(st.sampled_from([1, 2, 3, 7])),
        position_window=draw(st.sampled_from([0, 1, 4, 40])),
        null_memory=draw(st.booleans()),
    )


seeds = st.integers(0, 2**16)
rates = st.sampled_from([0.0, 0.1, 0.5])


@settings(max_examples=50)
@given(chosen=transformers(), seed=seeds, rate=rates)
def test_step_and_block_equal_the_reference(chosen: TransformerSettings, seed: int, rate: float) -> None:
    """Outputs and counts; spans near L with R < T included, where the released code crashes."""
    model = lively(chosen, seed, spread=4.0)
    batch, steps = 2, 16
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, steps, 8, dtype=torch.float64, generator=generator)
    tags = torch.randint(-1, 2, (batch, steps), generator=generator).clamp_min(0)
    first = episode_starts(seed, batch, steps, rate)
    with torch.no_grad():
        expected = [reference(model, x[b], first[b].tolist(), tags[b].tolist()) for b in range(batch)]
        y = torch.stack([row.y_TD for row in expected])
        state = model.initial_state(batch)
        for t in range(steps):
            output = model.step(x[:, t], state, first[:, t], cue_B=tags[:, t])
            state = output.state
            torch.testing.assert_close(output.y_BD, y[:, t], rtol=1e-9, atol=1e-10)
            for layer, report in enumerate(output.reports):
                assert report.retained_B.tolist() == [row.retained_TL[t][layer] for row in expected]
                assert report.on_ramp_B.tolist() == [row.on_ramp_TL[t][layer] for row in expected]
                assert report.cues_B.tolist() == [row.tagged_TL[t][layer] for row in expected]
        for sizes in ([steps], [1, 5, 10], [7, 8, 1]):
            torch.testing.assert_close(by_blocks(model, x, first, sizes), y, rtol=1e-9, atol=1e-10)


@settings(max_examples=40)
@given(chosen=transformers(), seed=seeds, rate=rates, cut=st.integers(1, 14))
def test_a_block_leaves_what_steps_leave(
    chosen: TransformerSettings, seed: int, rate: float, cut: int
) -> None:
    """The same memories in every row, whichever way they came there, and no slot for anything else."""
    model = lively(chosen, seed)
    x = torch.randn(3, 15, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    tags = torch.arange(45).view(3, 15) % 4
    first = episode_starts(seed, 3, 15, rate)
    with torch.no_grad():
        stepped = model.initial_state(3)
        for t in range(15):
            stepped = model.step(x[:, t], stepped, first[:, t], cue_B=tags[:, t]).state
        blocked: MemoryState | None = model.initial_state(3)
        for part in (slice(0, cut), slice(cut, 15)):
            assert blocked is not None
            blocked = model.block(x[:, part], blocked, first[:, part], cue_BW=tags[:, part]).state
        assert blocked is not None
    for one, other in zip(model.compact(stepped).layers, model.compact(blocked).layers, strict=True):
        used = one.birth_BT != NEVER
        fullest = int(used.sum(1).max())
        assert used.sum(1).tolist() == (other.birth_BT != NEVER).sum(1).tolist()
        used = used[:, :fullest]
        for mine, theirs in zip(one.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(mine[:, :fullest][used], theirs[:, :fullest][used])


@settings(max_examples=30)
@given(
    kind=st.sampled_from(["expire-span", "adaptive-span"]),
    seed=seeds,
    limit=st.floats(0.0, 12.0),
)
def test_a_limit_is_the_same_in_step_block_and_reference(kind: MemoryKind, seed: int, limit: float) -> None:
    model = lively(replace(SMALL, memory=kind), seed)
    x = torch.randn(1, 15, 8, dtype=torch.float64)
    first = episode_starts(seed, 1, 15, 0.15)
    limit_BT = torch.full((1, 15), limit)
    with torch.no_grad():
        rounded = float(limit_BT[0, 0])
        expected = reference(model, x[0], first[0].tolist(), limit=rounded).y_TD
        stepped, _ = by_steps(model, x, first, model.initial_state(1), limit_BT)
        torch.testing.assert_close(stepped[0], expected, rtol=1e-6, atol=1e-6)
        blocks = by_blocks(model, x, first, [6, 9], limit_BT)[0]
        torch.testing.assert_close(blocks, expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30)
@given(chosen=transformers(), seed=seeds, rate=rates)
def test_gradients_equal_those_of_the_reference(chosen: TransformerSettings, seed: int, rate: float) -> None:
    """Every parameter and the inputs, with episode ends inside the block."""
    model = lively(chosen, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 14, 8, dtype=torch.float64, generator=generator)
    first = episode_starts(seed, 2, 14, rate)
    direction = torch.randn(2, 14, 8, dtype=torch.float64, generator=generator)

    def gradients(block: bool) -> dict[str, Tensor]:
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        if block:
            y = model.block(inputs, model.initial_state(2), first).y_BWD
        else:
            y = torch.stack([reference(model, inputs[b], first[b].tolist()).y_TD for b in range(2)])
        (y * direction).sum().backward()
        assert inputs.grad is not None
        of_model = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return {"inputs": inputs.grad, **of_model}

    mine, expected = gradients(True), gradients(False)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            mine[name], gradient, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-12))


@every_kind
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("null_memory", [False, True])
def test_both_ways_to_read_memories_equal_the_reference(
    kind: MemoryKind, projected: bool, null_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs of two blocks, and gradients of one, in float64 and in float32."""
    monkeypatch.setattr("memory_suite.agents.model.layer.should_project_kv", lambda **_: projected)
    x, direction = torch.randn(2, 2, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    first = episode_starts(5, 2, 14, 0.1)

    def results(dtype: torch.dtype, block: bool) -> dict[str, Tensor]:
        model = lively(replace(SMALL, memory=kind, ramp=4, null_memory=null_memory), 5).to(dtype)
        inputs = x.to(dtype, copy=True).requires_grad_()
        if block:
            y = model.block(inputs, model.initial_state(2), first).y_BWD
            with torch.no_grad():
                carried = by_blocks(model, inputs, first, [6, 8])
        else:
            carried = y = torch.stack([reference(model, inputs[b], first[b].tolist()).y_TD for b in range(2)])
        (y * direction).sum().backward()
        assert inputs.grad is not None
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {"y": y.detach(), "carried": carried.detach(), "x": inputs.grad, **gradients}

    expected = results(torch.float64, block=False)
    for dtype, limit in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        found = results(dtype, block=True)
        for name, part in expected.items():
            assert _relative_error(found[name], part) <= limit, (name, dtype)


@every_kind
def test_both_ways_to_read_memories_teach_the_same_from_carried_ones(
    kind: MemoryKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference knows no cut between blocks; here its second block has memories to read."""
    model = lively(replace(SMALL, memory=kind, ramp=4, memory_size=20, null_memory=True), 6)
    x, direction = torch.randn(2, 2, 20, 8, dtype=torch.float64)
    first = episode_starts(6, 2, 20, 0.05)

    def gradients(projected: bool) -> dict[str, Tensor]:
        monkeypatch.setattr("memory_suite.agents.model.layer.should_project_kv", lambda **_: projected)
        model.zero_grad()
        state = model.block(x[:, :9], model.initial_state(2), first[:, :9]).state
        assert state is not None
        (model.block(x[:, 9:], state, first[:, 9:]).y_BWD * direction[:, 9:]).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    as_stored, projected = gradients(False), gradients(True)
    assert as_stored.keys() == projected.keys()
    for name, part in as_stored.items():
        assert _relative_error(projected[name], part) <= 1e-12, name


@pytest.mark.parametrize("kind", ["expire-span", "adaptive-span"])
def test_the_task_teaches_spans(kind: MemoryKind) -> None:
    """The control of the test above: with a ramp to stand on, their gradient is not zero."""
    model = lively(replace(SMALL, memory=kind, ramp=20), 3)
    x, first = torch.randn(2, 14, 8, dtype=torch.float64), torch.zeros(2, 14, dtype=torch.bool)
    model.block(x, model.initial_state(2), first).y_BWD.square().sum().backward()
    learned = [p for name, p in model.named_parameters() if "retention" in name]
    assert learned
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in learned)


@settings(max_examples=30)
@given(chosen=transformers(), seed=seeds, form=st.sampled_from(["all", "log", "ramp"]))
def test_penalties_equal_their_definitions(chosen: TransformerSettings, seed: int, form: PenaltyForm) -> None:
    """Expire-Span: mean cost of what is written, or the ramp's; Adaptive-Span: mean span of the heads."""
    model = lively(chosen, seed)
    x = torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first = episode_starts(seed, 2, 9, 0.2)
    reports = model.block(x, model.initial_state(2), first, penalty=PenaltySpec(form)).reports
    h = model.layers[0].memory_norm(x)
    retention, penalty = model.layers[0].retention, reports[0].penalty_B
    if isinstance(retention, AdaptiveSpan):
        expected = torch.stack([(retention.max_span * torch.sigmoid(b)) for b in retention.logit_G]).mean()
        expected = expected.expand(2)
    elif isinstance(retention, ExpireSpan):
        span = retention.max_span * torch.sigmoid(retention.predictor(h)).squeeze(-1)
        if form == "ramp":
            expected = torch.stack([_ramp_pairs(span[b], first[b].tolist(), chosen.ramp) for b in range(2)])
        else:
            cost = span if form == "all" else torch.log(1.0 + span)
            expected = cost.mean(1)
    else:
        assert penalty is None
        return
    assert penalty is not None
    torch.testing.assert_close(penalty, expected)


def _ramp_pairs(span_T: Tensor, is_first: list[bool], ramp: int) -> Tensor:
    """Sum of r_ti over the pairs of one episode that lie on the ramp, over R * T."""
    total, start = torch.zeros_like(span_T[0]), 0
    for t, begins in enumerate(is_first):
        start = t if begins else start
        for i in range(start, t):
            remaining = span_T[i] - (t - i)
            mask = (1 + remaining / ramp).clamp(0, 1).item()
            if SMALLEST_MASK < mask < 1:
                total = total + remaining
    return total / (ramp * len(is_first))


@settings(max_examples=20)
@given(seed=seeds, size=st.integers(1, 9), kept=st.integers(1, 5), rate=rates)
def test_means_of_single_steps_are_a_longer_transformer_xl(
    seed: int, size: int, kept: int, rate: float
) -> None:
    xl = lively(replace(SMALL, memory="transformer-xl", memory_size=size + kept, position_window=0), seed)
    single = replace(SMALL, memory="compressive", memory_size=size, compressed_size=kept, compression_rate=1)
    compressive = lively(replace(single, position_window=0), seed)
    compressive.load_state_dict(xl.state_dict())
    x, first = torch.randn(2, 17, 8, dtype=torch.float64), episode_starts(seed, 2, 17, rate)
    with torch.no_grad():
        torch.testing.assert_close(by_blocks(compressive, x, first, [5, 12]), by_blocks(xl, x, first, [9, 8]))


def test_compression_as_drawn() -> None:
    """The table in the docstring of agents/model/retention/compressive.py: S = 3, c = 2, N = 2."""
    drawn = replace(
        SMALL, num_layers=1, memory="compressive", memory_size=3, compression_rate=2, compressed_size=2
    )
    model = lively(drawn)
    state, first = model.initial_state(1), torch.zeros(1, dtype=torch.bool)
    contents = {}
    for query in range(10):
        memory = model.compact(state).layers[0]
        used = memory.birth_BT[0] != NEVER
        contents[query] = sorted(
            zip(memory.birth_BT[0, used].tolist(), memory.compressed_BT[0, used].tolist(), strict=True)
        )
        state = model.step(torch.randn(1, 8, dtype=torch.float64), state, first).state
    a, b, c = (1, True), (3, True), (5, True)
    assert contents[4] == [(i, False) for i in (0, 1, 2, 3)]
    assert contents[5] == [a, *((i, False) for i in (2, 3, 4))]
    assert contents[6] == [a, *((i, False) for i in (2, 3, 4, 5))]
    assert contents[7] == [a, b, *((i, False) for i in (4, 5, 6))]
    assert contents[8] == [a, b, *((i, False) for i in (4, 5, 6, 7))]
    assert contents[9] == [b, c, *((i, False) for i in (6, 7, 8))]


@every_kind
def test_rows_whose_clocks_differ_pool_by_their_own(kind: MemoryKind) -> None:
    """A row that began three steps earlier is as it would be alone."""
    model = lively(replace(SMALL, memory=kind, memory_size=3, compression_rate=4, compressed_size=2))
    x = torch.randn(2, 20, 8, dtype=torch.float64)
    first = torch.zeros(2, 20, dtype=torch.bool)
    first[:, 0] = first[1, 9] = True
    state = model.initial_state(2)
    state.clock_B += torch.tensor([0, 3])
    with torch.no_grad():
        expected = torch.stack(
            [reference(model, x[b], first[b].tolist(), clock=3 * b).y_TD for b in range(2)]
        )
        torch.testing.assert_close(by_steps(model, x, first, state.clone())[0], expected)
        torch.testing.assert_close(model.block(x, state, first).y_BWD, expected)


def test_mask_as_drawn() -> None:
    """The matrix in the module's docstring: two stored memories, an episode that begins at step 2."""
    model = lively(replace(SMALL, num_layers=1), spread=0.0)
    state = model.initial_state(1)
    for _ in range(2):
        state = model.step(torch.randn(1, 8, dtype=torch.float64), state, torch.tensor([False])).state
    view = BlockView.of(state, torch.tensor([[False, False, True, False]]))
    stored = view.stored_time_BW.isfinite().unsqueeze(2).expand(-1, -1, 2)
    visible = torch.cat([stored, ~view.blocked_BWW], 2)
    assert visible[0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]


@every_kind
@pytest.mark.parametrize("acting", [True, False])
def test_nothing_crosses_an_episode_boundary_nor_comes_from_the_future(
    acting: bool, kind: MemoryKind
) -> None:
    model = lively(replace(SMALL, memory=kind))
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
    predictor = model.layers[0].retention.predictor
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
    alive = (model.compact(state).layers[0].birth_BT != NEVER).sum(1)
    assert alive.tolist() == [60, 1]
    after_block = model.block(x, model.initial_state(2), first).state
    assert after_block is not None
    assert (after_block.layers[0].birth_BT != NEVER).sum(1).tolist() == [60, 1]


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


@every_kind
@pytest.mark.parametrize("slots_per_allocation", [1, 16])
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_free_slots_never_exceed_the_actual_number(
    kind: MemoryKind, slots_per_allocation: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a memory that is still needed would be written over, and nobody would notice."""
    monkeypatch.setattr(layer_module, "SLOTS_PER_ALLOCATION", {"cpu": slots_per_allocation})
    model = lively(replace(SMALL, memory=kind, max_span=40, memory_size=9), spread=4.0)
    steps = 3 * COMPACTION_INTERVAL_STEPS
    x, first = torch.randn(3, steps, 8, dtype=torch.float64), episode_starts(1, 3, steps, rate)
    state, known = model.initial_state(3), []
    for t in range(steps):
        state = model.step(x[:, t], state, first[:, t]).state
        for layer, memory in zip(model.layers, state.layers, strict=True):
            free_B = (~layer.seen(memory, state.clock_B, SpanBounds())).sum(1)
            assert 0 <= memory.free_slots <= int(free_B.min())
            known.append(memory.free_slots)
    assert max(known) >= min(4, slots_per_allocation)  # and it is known of some


@every_kind
def test_a_compaction_while_acting_knows_how_many_slots_it_left(kind: MemoryKind) -> None:
    """Else the next step looks again, which on a GPU is to wait for it."""
    model = lively(replace(SMALL, memory=kind))
    x, first = torch.randn(2, 12, 8, dtype=torch.float64), torch.zeros(2, 12, dtype=torch.bool)
    state = model.block(x, model.initial_state(2), first).state
    assert state is not None
    state.layers[:] = [memory.to_rows().padded(8) for memory in state.layers]
    state.steps_since_compaction = COMPACTION_INTERVAL_STEPS
    after = model.step(x[:, 0], state, first[:, 0]).state
    assert after.steps_since_compaction == 1
    assert [memory.free_slots for memory in after.layers] == [SPARE_SLOTS - 1] * 2


@every_kind
def test_acting_follows_a_change_of_the_weights(kind: MemoryKind) -> None:
    """Anything derived from old weights would make acting differ from learning after an update."""
    model = lively(replace(SMALL, memory=kind))
    x, first = torch.randn(2, 12, 8, dtype=torch.float64), torch.zeros(2, 12, dtype=torch.bool)
    with torch.no_grad():
        _, state = by_steps(model, x[:, :6], first[:, :6], model.initial_state(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    model.block(x, model.initial_state(2), first).y_BWD.square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        expected = model.block(x[:, 6:], state, first[:, 6:]).y_BWD
        torch.testing.assert_close(by_steps(model, x[:, 6:], first[:, 6:], state.clone())[0], expected)
    saved = {name: value + 0.1 for name, value in model.state_dict().items()}
    model.load_state_dict(saved)
    with torch.no_grad():
        expected = model.block(x[:, 6:], state, first[:, 6:]).y_BWD
        torch.testing.assert_close(by_steps(model, x[:, 6:], first[:, 6:], state)[0], expected)


@every_kind
def test_asking_without_writing_leaves_the_state_as_it_is(kind: MemoryKind) -> None:
    model = lively(replace(SMALL, memory=kind))
    x, first = torch.randn(2, 8, 8, dtype=torch.float64), torch.zeros(2, 8, dtype=torch.bool)
    _, state = by_steps(model, x, first, model.initial_state(2))
    before = {name: value.clone() for name, value in state.state_dict().items()}
    asked = model.step(x[:, 0], state, torch.tensor([True, False]), write=False)
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())
    told = model.step(x[:, 0], state, torch.tensor([True, False]))
    assert torch.equal(asked.y_BD, told.y_BD)


@every_kind
def test_state_survives_its_flat_form(kind: MemoryKind) -> None:
    model = lively(replace(SMALL, memory=kind))
    x, first = torch.randn(2, 20, 8, dtype=torch.float64), torch.zeros(2, 20, dtype=torch.bool)
    _, state = by_steps(model, x[:, :10], first[:, :10], model.initial_state(2))
    copy = MemoryState.from_state_dict({name: value.clone() for name, value in state.state_dict().items()})
    a, _ = by_steps(model, x[:, 10:], first[:, 10:], state)
    b, _ = by_steps(model, x[:, 10:], first[:, 10:], copy)
    torch.testing.assert_close(a, b)


def test_memory_free_twin_has_no_memory_and_no_attention() -> None:
    model = MemoryTransformer(replace(SMALL, memory="none")).eval()
    assert not any("query" in name or "retention" in name for name, _ in model.named_parameters())
    state, x = model.initial_state(2), torch.randn(2, 8)
    first = torch.zeros(2, dtype=torch.bool)
    once = model.step(x, state, first)
    again = model.step(x, once.state, first)
    assert torch.equal(once.y_BD, again.y_BD)
    assert model.block(x.unsqueeze(1), model.initial_state(2), first.unsqueeze(1)).y_BWD.shape == (2, 1, 8)


def test_layer_drop_skips_layers_only_in_training() -> None:
    model = lively(replace(SMALL, layer_drop=0.9))
    x, first = torch.randn(2, 6, 8, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.bool)
    calm = model.block(x, model.initial_state(2), first).y_BWD
    assert torch.equal(calm, model.block(x, model.initial_state(2), first).y_BWD)
    model.train()
    outputs = [model.block(x, model.initial_state(2), first).y_BWD for _ in range(10)]
    assert any(not torch.allclose(output, calm) for output in outputs)


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 3},
        {"layer_drop": 1.0},
        {"memory_size": 0, "memory": "transformer-xl"},
        {"memory_size": 0, "memory": "compressive"},
        {"compressed_size": 0, "memory": "compressive"},
        {"compression_rate": 0, "memory": "compressive"},
        {"max_span": 0, "memory": "adaptive-span"},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        MemoryTransformer(replace(SMALL, **change))


def test_an_unknown_memory_is_refused() -> None:
    chosen = replace(SMALL)
    object.__setattr__(chosen, "memory", "lstm")
    with pytest.raises(ValueError, match=r"memory must be one of expire-span, transformer-xl.*got 'lstm'"):
        make_retention(chosen)
