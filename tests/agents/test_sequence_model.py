"""The sequence model: token by token equals block by block, whatever the memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.model.store.rows import NEVER
from memory_suite.agents.model.store.state import SpanBounds

KINDS: dict[str, dict[str, Any]] = {
    "expire-span": {"max_span": 40, "ramp": 4, "initial_span_fraction": 0.3},
    "transformer-xl": {"memory_size": 9},
    "adaptive-span": {"max_span": 40, "ramp": 4, "initial_span_fraction": 0.3},
    "compressive": {"memory_size": 5, "compressed_size": 3, "compression_rate": 2},
    "none": {},
}


def make(kind: str = "expire-span", **changes: Any) -> SequenceModel:
    torch.manual_seed(0)
    settings = {"width": 16, "num_layers": 2, "num_heads": 2, "position_window": 4, **KINDS[kind], **changes}
    model = SequenceModel(
        TransformerSettings(memory=kind, **settings), vocabulary_size=11, num_targets=7
    ).double()
    torch.nn.init.normal_(model.head.weight)
    for name, parameter in model.named_parameters():
        if "predictor.weight" in name:  # spans that depend on the token
            torch.nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_equals_block_by_block(kind: str) -> None:
    model = make(kind)
    tokens, first = torch.randint(11, (3, 60)), torch.rand(3, 60) < 0.05
    state, in_blocks = model.initial_state(3), []
    for start, end in ((0, 7), (7, 30), (30, 31), (31, 60)):
        output = model.block(tokens[:, start:end], state, first[:, start:end])
        assert output.state is not None
        state = output.state
        in_blocks.append(model.predict(output.y_BWD))
    state, in_steps = model.initial_state(3), []
    for t in range(60):
        step = model.step(tokens[:, t], state, first[:, t])
        state = step.state
        in_steps.append(model.predict(step.y_BD))
    torch.testing.assert_close(torch.cat(in_blocks, 1), torch.stack(in_steps, 1), rtol=1e-9, atol=1e-9)


def test_at_first_all_targets_are_equally_likely() -> None:
    torch.manual_seed(0)
    model = SequenceModel(TransformerSettings(width=16, num_heads=2), vocabulary_size=11, num_targets=7)
    output = model.block(
        torch.randint(11, (2, 5)), model.initial_state(2), torch.zeros(2, 5, dtype=torch.bool)
    )
    loss = F.cross_entropy(model.predict(output.y_BWD).flatten(0, 1), torch.randint(7, (10,)))
    assert loss.item() == pytest.approx(math.log(7))


@pytest.mark.parametrize("forgets", [False, True])
def test_what_a_limit_hides_is_forgotten_only_if_asked(forgets: bool) -> None:
    model = make(initial_span_fraction=0.5)
    tokens, first = torch.randint(11, (2, 30)), torch.zeros(2, 30, dtype=torch.bool)
    limit_BT = torch.full((2, 30), 3.0)
    output = model.block(tokens, model.initial_state(2), first, limit_BT, limit_forgets=forgets)
    assert output.state is not None
    held = [(layer.birth_BT != NEVER).sum(1).max().item() for layer in output.state.layers]
    if forgets:
        assert max(held) <= 3 + 4  # the limit and the ramp
    else:
        assert min(held) > 3 + 4
    unlimited = model.block(tokens, model.initial_state(2), first)
    assert not torch.equal(output.y_BWD, unlimited.y_BWD)


def test_a_limit_for_one_block_leaves_the_next_as_it_would_be() -> None:
    """With memories of its own spans the next block sees all that the limit had hidden."""
    model = make(num_layers=1, initial_span_fraction=0.5)
    tokens, first = torch.randint(11, (2, 40)), torch.zeros(2, 40, dtype=torch.bool)
    results = []
    for limit_BT in (torch.full((2, 20), 2.0), None):
        state = model.block(tokens[:, :20], model.initial_state(2), first[:, :20], limit_BT).state
        assert state is not None
        results.append(model.block(tokens[:, 20:], state, first[:, 20:]).y_BWD)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_is_close(kind: str) -> None:
    model = make(kind).float()
    tokens, first = torch.randint(11, (3, 24)), torch.zeros(3, 24, dtype=torch.bool)
    exact = model.predict(model.block(tokens, model.initial_state(3), first).y_BWD)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.block(tokens, model.initial_state(3), first)
        rounded = model.predict(output.y_BWD).float()
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.3)  # bfloat16 has 8 bits
    rounded.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert output.state is not None
    assert all(layer.h_BTD.dtype == torch.float32 for layer in output.state.layers)


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    model = make().float()
    model.save(tmp_path / "model.zip")
    again = SequenceModel.load(tmp_path / "model.zip").eval()
    tokens, first = torch.randint(11, (2, 9)), torch.zeros(2, 9, dtype=torch.bool)
    outputs = [m.predict(m.block(tokens, m.initial_state(2), first).y_BWD) for m in (model, again)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", ["vocabulary_size", "num_targets"])
def test_impossible_sizes_are_refused_by_name(name: str) -> None:
    sizes = {"vocabulary_size": 3, "num_targets": 3, name: 0}
    with pytest.raises(ValueError, match=name):
        SequenceModel(TransformerSettings(), **sizes)


def test_mixed_precision_deletes_what_no_query_will_see() -> None:
    """Spans of up to 100,000 steps: rounded to 8 bits they would be wrong by hundreds."""
    model = make(num_layers=1, max_span=131_072, initial_span_fraction=0.01, ramp=1).float()
    steps = 2_048
    tokens, first = torch.randint(11, (1, steps)), torch.zeros(1, steps, dtype=torch.bool)
    clock_B = torch.zeros(1, dtype=torch.long)
    state = model.initial_state(1)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            output = model.block(tokens, state, first)
        assert output.state is not None
        state, clock_B = output.state, clock_B + steps
        layer = model.transformer.layers[0]
        (memory,) = state.layers
        there_BW = memory.birth_BT != NEVER
        torch.testing.assert_close(layer.seen(memory, clock_B, SpanBounds()) & there_BW, there_BW)
        assert 10 < int(there_BW.sum()) < int(clock_B)
