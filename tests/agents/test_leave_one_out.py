"""What single memories are good for: against really deleting them, and against distributions by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from memory_suite.agents.model.attention.leave_one_out import leave_one_out
from memory_suite.agents.model.settings import MemoryKind, PenaltySpec
from memory_suite.agents.model.transformer import MemoryTransformer
from tests.agents.reference_transformer import Seen, Written, attention, read, seen
from tests.agents.test_transformer import SMALL, episode_starts, lively

MARGIN = 3.0
EFFECT = PenaltySpec("log", use_weight=5.0, use_margin=MARGIN)
ONE_LAYER = replace(SMALL, num_layers=1, max_span=40)


def span_of(model: MemoryTransformer, memory: Seen, head: int) -> float:
    retention: Any = model.layers[0].retention
    if hasattr(retention, "predictor"):
        return float(retention.max_span * retention.predictor(memory.vector_D).sigmoid())
    return float(retention.max_span * retention.logit_G[head].sigmoid())


@torch.no_grad()
def without_single_memories(
    model: MemoryTransformer, x_TD: Tensor, is_first: list[bool]
) -> tuple[Tensor, Tensor]:
    """For each step and head: what comes out when the memory it attends to most is deleted; its shortfall."""
    layer = model.layers[0]
    written: list[Written] = []
    outputs, shortfalls = [], []
    for now, (x_D, first) in enumerate(zip(x_TD, is_first, strict=True)):
        written = [] if first else written
        h_D = layer.memory_norm(x_D)
        memories = seen(layer, written, now, math.inf)
        for head in range(layer.num_heads):
            left, shortfall = memories, 0.0
            weights = attention(layer, h_D, memories)[head] if memories else torch.zeros(1)
            if float(weights.max()) > 0.0:
                index = int(weights.argmax())
                age = memories[index].age
                assert age is not None
                shortfall = max(0.0, math.log(MARGIN * age / span_of(model, memories[index], head)))
                left = memories[:index] + memories[index + 1 :]
            y_D = x_D + layer.attention_out(read(layer, h_D, left))
            y_D = y_D + layer.narrow(F.relu(layer.widen(layer.feedforward_norm(y_D))))
            outputs.append(model.final_norm(y_D))
            shortfalls.append(shortfall)
        written.append(Written(now, h_D, 0))
    heads = layer.num_heads
    return torch.stack(outputs).view(len(is_first), heads, -1), torch.tensor(shortfalls).view(-1, heads)


@settings(max_examples=40)
@given(
    kind=st.sampled_from(["expire-span", "adaptive-span"]), seed=st.integers(0, 2**16),
    heads=st.sampled_from([1, 2, 4]), null_memory=st.booleans(), projected=st.booleans(),
    rate=st.sampled_from([0.0, 0.2]), cut=st.integers(0, 13), share=st.sampled_from([0.0, 0.5, 1.0]),
)  # fmt: skip
def test_it_is_as_if_the_memory_had_been_deleted(
    kind: MemoryKind,
    seed: int,
    heads: int,
    null_memory: bool,
    projected: bool,
    rate: float,
    cut: int,
    share: float,
) -> None:
    """Memories carried from an earlier block and written in this one, across episode ends."""
    chosen = replace(ONE_LAYER, memory=kind, num_heads=heads, null_memory=null_memory)
    model = lively(chosen, seed)
    x = torch.randn(2, 14, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first = episode_starts(seed, 2, 14, rate)
    asked = torch.rand(2, 14, generator=torch.Generator().manual_seed(seed)) < share
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("memory_suite.agents.model.layer.should_project_kv", lambda **_: projected)
        state = model.initial_state(2)
        if cut:
            carried = model.block(x[:, :cut], state, first[:, :cut]).state
            assert carried is not None
            state = carried
        output = model.block(
            x[:, cut:], state, first[:, cut:], penalty=EFFECT, ablation_mask_BW=asked[:, cut:]
        )
    assert output.ablation is not None
    for row in range(2):
        y_TCD, shortfall_TC = without_single_memories(model, x[row], first[row].tolist())
        mine = asked[:row, cut:].sum() + torch.arange(int(asked[row, cut:].sum()))
        y_NCD, shortfall_NC = (part[cut:][asked[row, cut:]] for part in (y_TCD, shortfall_TC))
        torch.testing.assert_close(output.ablation.y_NTD[mine], y_NCD, rtol=1e-7, atol=1e-9)
        found_NC = output.ablation.shortfall_NT[mine].float()
        torch.testing.assert_close(found_NC, shortfall_NC, rtol=1e-4, atol=1e-5)


def test_what_changes_below_reaches_the_layers_above() -> None:
    """Two layers, of which the upper one reads nothing: it only passes on."""
    model = lively(replace(ONE_LAYER, num_layers=2), 3)
    torch.nn.init.zeros_(model.layers[1].attention_out.weight)
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    first = torch.zeros(1, 12, dtype=torch.bool)
    with torch.no_grad():
        ablation = model.block(x, model.initial_state(1), first, penalty=EFFECT).ablation
        alone = MemoryTransformer(ONE_LAYER).double()
        alone.layers[0] = model.layers[0]
        alone.final_norm = torch.nn.Identity()
        expected = without_single_memories(alone, x[0], first[0].tolist())[0]
        expected = model.final_norm(model.layers[1].feedforward(expected))
    assert ablation is not None
    assert ablation.y_NTD.shape == (12, 4, 8), "two heads of two layers"
    torch.testing.assert_close(ablation.y_NTD[:, :2], expected)


def test_the_only_memory_leaves_nothing() -> None:
    value = torch.randn(1, 1, 3, 4)
    read_NHQ = value[0, :, 1].expand(2, 2, 4)
    attention_NHM = torch.tensor([0.0, 1.0, 0.0]).expand(2, 2, 3)
    others, place = leave_one_out(read_NHQ, value, attention_NHM, torch.tensor([0, 0]))
    assert place.eq(1).all()
    assert others.eq(0.0).all()


@pytest.mark.parametrize("null_memory", [False, True])
def test_by_effect_the_task_does_not_teach_spans(null_memory: bool) -> None:
    """They are taught by what they cost and by what falls short, whichever of the two is asked for."""
    model = lively(replace(ONE_LAYER, ramp=20, null_memory=null_memory), 3)
    x, first = torch.randn(2, 14, 8, dtype=torch.float64), torch.zeros(2, 14, dtype=torch.bool)

    def taught(kind: PenaltySpec | None, part: str) -> bool:
        model.zero_grad()
        output = model.block(x, model.initial_state(2), first, penalty=kind)
        penalty_B, ablation = output.reports[0].penalty_B, output.ablation
        asked = {
            "task": output.y_BWD.square().sum(),
            "cost": None if penalty_B is None else penalty_B.sum(),
            "use": None if ablation is None else ablation.shortfall_NT.sum(),
        }[part]
        if asked is None:
            return False
        asked.backward()
        gradients = [p.grad for name, p in model.named_parameters() if "retention" in name]
        assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
        return any(gradient is not None and float(gradient.abs().max()) > 0 for gradient in gradients)

    assert taught(None, "task")
    assert taught(PenaltySpec("log"), "task")
    assert not taught(EFFECT, "task")
    assert taught(EFFECT, "cost")
    assert taught(EFFECT._replace(form="ramp"), "cost")
    assert taught(EFFECT, "use")
    assert not taught(EFFECT._replace(use_weight=0.0), "use"), "before the task is solved"


def test_a_layer_that_is_skipped_pays_nothing_since_nothing_is_known_of_its_use() -> None:
    model = lively(replace(ONE_LAYER, num_layers=2, layer_drop=0.5), 3).train()
    x, first = torch.randn(2, 14, 8, dtype=torch.float64), torch.zeros(2, 14, dtype=torch.bool)
    seen = set()
    for _ in range(40):
        output = model.block(x, model.initial_state(2), first, penalty=EFFECT)
        asked = 0 if output.ablation is None else output.ablation.y_NTD.shape[1] // ONE_LAYER.num_heads
        paying = sum(report.penalty_B is not None for report in output.reports)
        assert paying == asked
        seen.add(paying)
        without_use = model.block(x, model.initial_state(2), first, penalty=PenaltySpec("log")).reports
        assert all(report.penalty_B is not None for report in without_use), "as in the paper"
    assert seen == {0, 1, 2}
