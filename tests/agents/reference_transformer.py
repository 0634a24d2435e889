"""The methods as their definitions stand, one number at a time: slow, and easy to believe.

Nothing is deleted, cached, batched or vectorized over memories: every step looks at the whole episode and
asks the definition of its kind of memory what there is to be seen. Tests compare the product with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from memory_suite.agents.model.layer import MemoryLayer
from memory_suite.agents.model.retention.adaptive_span import AdaptiveSpan
from memory_suite.agents.model.retention.base import SMALLEST_MASK, FixedSpan
from memory_suite.agents.model.retention.compressive import Compressive
from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.transformer import MemoryTransformer


class Written(NamedTuple):
    """What a layer wrote in one step of the present episode."""

    clock: int
    h_D: Tensor
    tag: int


class Seen(NamedTuple):
    """What a step can see."""

    vector_D: Tensor
    weights: list[Tensor]
    """m_ti for each head"""
    age: int | None
    """None: it has no position"""
    tag: int


class Reference(NamedTuple):
    """What the product should give for one sequence."""

    y_TD: Tensor
    retained_TL: list[list[int]]
    """memories that at least one head can see"""
    on_ramp_TL: list[list[int]]
    tagged_TL: list[list[int]]


def reference(
    model: MemoryTransformer,
    x_TD: Tensor,
    is_first: list[bool],
    tags: list[int] | None = None,
    *,
    limit: float = math.inf,
    clock: int = 0,
) -> Reference:
    """One sequence that starts with empty memories, the row's clock reading `clock`."""
    tags = [0] * len(is_first) if tags is None else tags
    result = Reference(torch.empty(0), [], [], [])
    steps = []
    episode: list[list[Written]] = [[] for _ in model.layers]
    for now, (x_D, first, tag) in enumerate(zip(x_TD, is_first, tags, strict=True), start=clock):
        if first:
            episode = [[] for _ in model.layers]
        for counts in result[1:]:
            counts.append([])
        for layer, written in zip(model.layers, episode, strict=True):
            assert isinstance(layer, MemoryLayer)
            h_D = layer.memory_norm(x_D)
            memories = seen(layer, written, now, limit)
            x_D = x_D + layer.attention_out(read(layer, h_D, memories))
            x_D = x_D + layer.narrow(F.relu(layer.widen(layer.feedforward_norm(x_D))))
            strongest = [max(weight.item() for weight in memory.weights) for memory in memories]
            result.retained_TL[-1].append(sum(m > 0 for m in strongest))
            result.on_ramp_TL[-1].append(sum(0 < m < 1 for m in strongest))
            result.tagged_TL[-1].append(
                sum(m > 0 and memory.tag > 0 for m, memory in zip(strongest, memories, strict=True))
            )
            written.append(Written(now, h_D, tag))
        steps.append(model.final_norm(x_D))
    return result._replace(y_TD=torch.stack(steps))


def seen(layer: MemoryLayer, written: list[Written], now: int, limit: float) -> list[Seen]:
    """The memories of an episode as the step at `now` sees them."""
    retention = layer.retention
    if isinstance(retention, Compressive):
        return _seen_compressed(layer, written, now, retention)
    memories = []
    for clock, h_D, tag in written:
        age = now - clock
        if isinstance(retention, ExpireSpan):
            logit = retention.predictor(h_D).squeeze(-1)
            spans = [retention.max_span * torch.sigmoid(logit)] * layer.num_heads  # e_i (1)
        elif isinstance(retention, AdaptiveSpan):
            spans = [retention.max_span * torch.sigmoid(logit) for logit in retention.logit_G]
        if isinstance(retention, ExpireSpan | AdaptiveSpan):
            remaining = [torch.clamp(span, max=limit) - age for span in spans]  # r_ti (2)
            weights = [(1 + r / retention.ramp).clamp(0, 1) for r in remaining]  # m_ti (3)
            weights = [m if m.item() > SMALLEST_MASK else torch.zeros_like(m) for m in weights]
        else:
            assert isinstance(retention, FixedSpan)
            weights = [h_D.new_tensor(float(age <= retention.size))] * layer.num_heads
        memories.append(Seen(h_D, weights, age, tag))
    return memories


def _seen_compressed(
    layer: MemoryLayer, written: list[Written], now: int, retention: Compressive
) -> list[Seen]:
    """Groups on the row's clock: as they are, then as their mean, then not at all."""
    size, rate, means = retention.size, retention.compression_rate, retention.compressed_size
    memories = []
    for group in sorted({memory.clock // rate for memory in written}):
        members = [memory for memory in written if memory.clock // rate == group]
        last_clock = group * rate + rate - 1  # of the whole group, whether or not the episode has come there
        age_of_group = now - last_clock
        one = [torch.ones_like(members[0].h_D[0])] * layer.num_heads
        if age_of_group <= size:
            memories += [Seen(member.h_D, one, now - member.clock, member.tag) for member in members]
        elif age_of_group <= size + rate * means:
            mean_D = torch.stack([member.h_D for member in members]).mean(0)
            memories.append(Seen(mean_D, one, None, max(member.tag for member in members)))
    return memories


def attention(layer: MemoryLayer, h_D: Tensor, memories: list[Seen]) -> Tensor:
    """a'_ti of equation 4 for one query, [H, M]; zeros for a head that sees nothing."""
    size = layer.head_size
    query_D = layer.query(h_D)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        query_K = query_D[part] * size**-0.5
        weights = []
        for memory in memories:
            score = query_K @ layer.key(memory.vector_D)[part]
            if memory.age is not None and memory.age <= layer.position_window:
                score = score + query_K @ layer.position_HPK[head, layer.position_window - memory.age]
            weights.append(memory.weights[head] * score.exp())
        # A null memory is one of zeros that never expires: its score is 0, and its value zero.
        total = torch.stack(weights).sum() + float(layer.null_memory)
        heads.append(torch.stack([weight / total if total.item() > 0 else weight for weight in weights]))
    return torch.stack(heads)


def read(layer: MemoryLayer, h_D: Tensor, memories: list[Seen]) -> Tensor:
    """What one query gets."""
    if not memories:
        return torch.zeros_like(h_D)
    value_MHK = torch.stack([layer.value(memory.vector_D) for memory in memories])
    value_MHK = value_MHK.view(len(memories), layer.num_heads, -1)
    return torch.einsum("hm,mhk->hk", attention(layer, h_D, memories), value_MHK).flatten()
