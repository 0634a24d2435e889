"""The fused path against the plain one.

FlexAttention has a backward pass on GPUs only and says so; the operator behind it, which evaluates the same
mask and score functions and their gradients on all pairs, has both passes everywhere. Numbers are tested
with that; what only a GPU can show is tested where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex_module

from memory_suite.agents.model import layer as layer_module
from memory_suite.agents.model.attention import flex as fused_module
from memory_suite.agents.model.attention.flex import fused_attention, visible_steps
from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.settings import AttentionKind, MemoryKind, PenaltySpec, TransformerSettings
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer
from tests.agents.test_transformer import KINDS, SMALL, episode_starts, lively

# torch, tracing an operator that is given tensors of a larger graph.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
every_kind = pytest.mark.parametrize("kind", KINDS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDTH = 64
LIVELY = replace(
    SMALL, width=WIDTH, ramp=4, max_span=30, memory_size=12, compressed_size=3, attention="fused"
)
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture
def trains_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_module, "TRAINS_ON", ("cuda", "cpu"))
    monkeypatch.setattr(flex_module, "_validate_device", lambda *_: None)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the fused path is asked."""
    asked: list[tuple[Any, ...]] = []

    def spy(*args: Any) -> Tensor:
        asked.append(args)
        return fused_attention(*args)

    monkeypatch.setattr(layer_module, "fused_attention", spy)
    return asked


def carried(model: MemoryTransformer, x: Tensor, first: Tensor, steps: int) -> MemoryState:
    with torch.no_grad():
        state = model.block(x[:, :steps], model.initial_state(len(x)), first[:, :steps]).state
    assert state is not None
    return state


def results(
    settings: TransformerSettings,
    attention: AttentionKind,
    device: str,
    dtype: torch.dtype,
    *,
    mixed: bool = False,
) -> dict[str, Tensor]:
    """Output, penalty and all gradients of a block that has memories to read."""
    with torch.device("cpu"):
        model = lively(replace(settings, attention=attention), 5).to(device, dtype)
    generator = torch.Generator().manual_seed(5)
    x, direction = torch.randn(2, 2, 34, settings.width, dtype=torch.float64, generator=generator)
    x, direction = x.to(device, dtype, copy=True), direction.to(device)
    first = episode_starts(5, 2, 34, 0.06).to(device)
    limit_BT = None
    if model.learns_spans:
        limit_BT = torch.full((2, 17), 25.0, device=device)
    plain = lively(replace(settings, attention="plain"), 5).to(device, dtype)
    state = carried(plain, x, first, 17)
    inputs = x[:, 17:].clone().requires_grad_()
    penalty = PenaltySpec("all") if model.learns_spans else None
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
        output = model.block(inputs, state, first[:, 17:], limit_BT, penalty=penalty)
    (output.y_BWD * direction[:, 17:]).sum().backward()
    assert inputs.grad is not None
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if output.reports[0].penalty_B is not None:
        found["penalty"] = torch.stack(
            [r.penalty_B.detach() for r in output.reports if r.penalty_B is not None]
        )
    return {"y": output.y_BWD.detach(), "inputs": inputs.grad, **found}


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    """In terms of the norm of each tensor, or of its module: a bias is one sum in which much cancels."""
    assert found.keys() == expected.keys()
    modules: dict[str, list[Tensor]] = {}
    for name, part in expected.items():
        modules.setdefault(name.rpartition(".")[0] or name, []).append(part)
    for name, part in expected.items():
        whole = torch.cat([each.flatten() for each in modules[name.rpartition(".")[0] or name]])
        error = float((found[name].double() - part).norm() / whole.norm().clamp_min(1e-12))
        assert error <= limit, (name, error)


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, torch.float32) for kind in KINDS), ("expire-span", torch.float64)]
)
@pytest.mark.usefixtures("trains_on_cpu")
def test_outputs_and_gradients_equal_the_plain_path(kind: MemoryKind, dtype: torch.dtype) -> None:
    settings = replace(LIVELY, memory=kind)
    expected = results(settings, "plain", "cpu", torch.float64)
    assert float(expected["y"].abs().max()) > 0
    limit = 1e-11 if dtype == torch.float64 else 1e-5
    assert_near(results(settings, "fused", "cpu", dtype), expected, limit)


@pytest.mark.usefixtures("trains_on_cpu")
@pytest.mark.parametrize(
    "settings",
    [replace(LIVELY, position_window=0), *(replace(LIVELY, memory=kind, null_memory=True) for kind in KINDS)],
    ids=["no positions", *(f"{kind} beside a null memory" for kind in KINDS)],
)
def test_equal_too_with(settings: TransformerSettings) -> None:
    expected = results(settings, "plain", "cpu", torch.float64)
    assert_near(results(settings, "fused", "cpu", torch.float64), expected, 1e-11)


@needs_cuda
@every_kind
def test_on_a_gpu_outputs_and_gradients_equal_the_plain_path(kind: MemoryKind) -> None:
    settings = replace(LIVELY, memory=kind)
    expected = results(settings, "plain", "cpu", torch.float64)
    assert_near(results(settings, "fused", "cuda", torch.float32), expected, 1e-4)


@pytest.mark.usefixtures("trains_on_cpu")
@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_stays_near(device: str) -> None:
    """The bound is that of matrix products in bfloat16, which the plain path has too."""
    settings = replace(LIVELY)
    expected = results(settings, "plain", "cpu", torch.float64)
    assert_near(results(settings, "plain", device, torch.float32, mixed=True), expected, 0.1)
    assert_near(results(settings, "fused", device, torch.float32, mixed=True), expected, 0.1)


def test_queries_are_bfloat16_and_clocks_are_not(calls: list[tuple[Any, ...]]) -> None:
    model = lively(LIVELY).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.block(torch.randn(1, 5, WIDTH), model.initial_state(1), torch.zeros(1, 5, dtype=torch.bool))
    query, key, value, position, birth, expiry, stored_time, time, _ = calls[0]
    assert {part.dtype for part in (query, key, value)} == {torch.bfloat16}
    assert {part.dtype for part in (position, expiry, stored_time, time)} == {torch.float32}
    assert birth.dtype == torch.int32


@every_kind
def test_who_sees_whom_is_what_the_plain_mask_says(
    kind: MemoryKind, calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the tiles: one is left out, or taken as a whole, exactly where no pair, or every pair, is seen."""
    monkeypatch.setattr(fused_module, "TILE", 4)
    masks = []
    real_mask = fused_module.block_mask

    def spy(begin: Tensor, end: Tensor, num_steps: int, seen: Callable[..., Tensor]) -> Any:
        masks.append((begin, end, real_mask(begin, end, num_steps, seen)))
        return real_mask(begin, end, num_steps, seen)

    monkeypatch.setattr(fused_module, "block_mask", spy)
    model = lively(replace(LIVELY, memory=kind, max_span=40, num_layers=1), 3)
    x, first = torch.randn(3, 40, WIDTH, dtype=torch.float64), episode_starts(3, 3, 40, 0.05)
    with torch.no_grad():
        model.block(x[:, 21:], carried(model, x, first, 21), first[:, 21:])
    (*_, expiry, stored_time, time, hidden), (begin, end, tiles) = calls[1], masks[1]
    num_stored = expiry.shape[2] - hidden.shape[2]
    clock = torch.cat(
        [stored_time.unsqueeze(2).expand(-1, -1, num_stored), time.view(1, -1, 1).expand_as(hidden)], 2
    )
    mask = expiry.unsqueeze(1) - clock.unsqueeze(2)
    mask[..., num_stored:].masked_fill_(hidden.unsqueeze(2), 0.0)
    visible = (mask > SMALLEST_MASK).transpose(1, 2)  # [B, G, T, M]
    step = torch.arange(19).view(1, 1, -1, 1)
    assert torch.equal(visible, (step >= begin[:, None, None]) & (step < end.unsqueeze(2)))
    assert 0.02 < float(visible.double().mean()) < 0.98

    padded = torch.nn.functional.pad(visible, (0, -visible.shape[3] % 4, 0, 1))
    blocks = padded.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).transpose(3, 4).flatten(4)
    full = _dense(tiles.full_kv_num_blocks, tiles.full_kv_indices)
    partial = _dense(tiles.kv_num_blocks, tiles.kv_indices)
    assert torch.equal(full, blocks.all(4))
    assert torch.equal(partial, blocks.any(4) & ~blocks.all(4))
    assert bool(full.any())
    assert not bool((full | partial).all())
    assert tiles.seq_lengths == visible.shape[2:]


def _dense(counts: Tensor, indices: Tensor) -> Tensor:
    tiles = torch.zeros(indices.shape, dtype=torch.bool)
    listed = torch.arange(indices.shape[3]) < counts.unsqueeze(3)
    return tiles.scatter(3, indices.long(), listed)


def test_intervals_as_drawn() -> None:
    """The matrix in the module's docstring."""
    model = lively(replace(LIVELY, num_layers=1, max_span=1000), spread=0.0)
    state = carried(
        model, torch.randn(1, 2, WIDTH, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.bool), 2
    )
    view = BlockView.of(state, torch.tensor([[False, False, True, False]]))
    begin, end = visible_steps(
        torch.full((1, 1, 6), 99.0), view.stored_time_BW, view.step_W, view.blocked_BWW
    )
    seen = [[int(b <= t < e) for b, e in zip(begin[0], end[0, 0], strict=True)] for t in range(4)]
    assert seen == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]]
    assert begin[0].tolist() == [0, 0, 1, 0, 3, 0]
    assert end[0, 0].tolist() == [2, 2, 2, 0, 4, 0]


@pytest.mark.parametrize("span", [131_072, 131_071, 1_000_000])
def test_long_spans_end_at_the_very_step(span: int) -> None:
    """In float32, whole steps are exact up to 2^24."""
    birth = torch.arange(-span - 3, 5 - span)
    time = torch.arange(9.0)
    expiry = (span + birth.float() + 1.0).view(1, 1, -1)
    hidden = torch.ones(1, 9, 0, dtype=torch.bool)
    _, end = visible_steps(expiry, time.view(1, -1), time, hidden)
    expected = [[t for t in range(9) if t - int(b) <= span] for b in birth]
    assert end[0, 0].tolist() == [len(queries) for queries in expected]


def test_it_evaluates_on_a_cpu_but_does_not_train_there() -> None:
    fused, plain = lively(LIVELY), lively(replace(LIVELY, attention="plain"))
    x, first = torch.randn(2, 9, WIDTH, dtype=torch.float64), episode_starts(0, 2, 9, 0.1)
    with torch.no_grad():
        found, expected = (model.block(x, model.initial_state(2), first) for model in (fused, plain))
    torch.testing.assert_close(found.y_BWD, expected.y_BWD)
    message = "attention=fused cannot be had here: FlexAttention trains on cuda only, not on cpu; choose auto"
    with pytest.raises(ValueError, match=message):
        fused.block(x, fused.initial_state(2), first)


@pytest.mark.parametrize("penalty", [PenaltySpec("ramp"), PenaltySpec("all", use_weight=1.0)])
@pytest.mark.usefixtures("trains_on_cpu")
def test_penalties_that_look_at_every_pair_are_refused(penalty: PenaltySpec) -> None:
    model = lively(LIVELY)
    x, first = torch.randn(2, 9, WIDTH, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.bool)
    with pytest.raises(ValueError, match=r'attention=fused .* "ramp" and use_weight'):
        model.block(x, model.initial_state(2), first, penalty=penalty)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("form", ["all", "ramp"])
def test_auto_is_fused_on_a_gpu_where_that_can_give_what_is_asked(
    device: str, form: str, calls: list[tuple[Any, ...]]
) -> None:
    model = lively(replace(LIVELY, attention="auto")).to(device, torch.float32)
    x, first = torch.randn(2, 9, WIDTH, device=device), torch.zeros(2, 9, dtype=torch.bool, device=device)
    penalty = PenaltySpec(form)  # type: ignore[arg-type]
    model.block(x, model.initial_state(2), first, penalty=penalty)
    assert bool(calls) == (device == "cuda" and form == "all")


def test_an_unknown_attention_is_refused() -> None:
    chosen = replace(SMALL)
    object.__setattr__(chosen, "attention", "flash")
    with pytest.raises(ValueError, match="attention must be one of auto, plain, fused, got 'flash'"):
        MemoryTransformer(chosen)


@needs_cuda
def test_the_compiled_kernel_stores_no_scores() -> None:
    """A block of 128 queries and 65,536 memories: less memory than its scores alone would take."""
    settings = replace(LIVELY, num_layers=1, num_heads=4, memory="transformer-xl", memory_size=65_536)
    model = MemoryTransformer(settings).to("cuda")
    state = model.initial_state(1)
    memory = state.layers[0].padded(65_536)
    memory.birth_BT[:] = torch.arange(-1, -65_537, -1, device="cuda")
    state.layers[0] = memory
    x, first = torch.randn(1, 128, WIDTH, device="cuda"), torch.zeros(1, 128, dtype=torch.bool, device="cuda")
    for _ in range(2):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        model.block(x, state, first, need_state=False).y_BWD.sum().backward()
    scores = 128 * 65_536 * 4 * 4
    keys_and_values = 65_536 * WIDTH * 4
    assert torch.cuda.max_memory_allocated() - before < 8 * keys_and_values < 2 * scores
