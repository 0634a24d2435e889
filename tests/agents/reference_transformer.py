"""The method as its equations stand, one number at a time: slow, and easy to believe.

Nothing is deleted, cached, batched or vectorized over memories. Tests compare the product with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from agents.expire_span import SMALLEST_MASK
from agents.transformer import MemoryLayer, MemoryTransformer


def reference_outputs(
    model: MemoryTransformer,
    x_TD: Tensor,
    is_first: list[bool],
    *,
    limit: float = math.inf,
    rate: float = 1.0,
) -> Tensor:
    """Outputs [T, D] for one sequence that starts with empty memories."""
    start, steps = 0, []
    history: list[list[Tensor]] = [[] for _ in model.layers]
    for t, first in enumerate(is_first):
        if first:
            start = t
            history = [[] for _ in model.layers]
        x_D = x_TD[t]
        for layer, memories in zip(model.layers, history, strict=True):
            assert isinstance(layer, MemoryLayer)
            h_D = layer.memory_norm(x_D)
            x_D = x_D + layer.attention_out(_read(layer, h_D, memories, t - start, limit, rate))
            x_D = x_D + layer.narrow(F.relu(layer.widen(layer.feedforward_norm(x_D))))
            memories.append(h_D)
        steps.append(model.final_norm(x_D))
    return torch.stack(steps)


def _read(
    layer: MemoryLayer, h_D: Tensor, memories: list[Tensor], t: int, limit: float, rate: float
) -> Tensor:
    """Equations 1 to 4 for one query; `memories[i]` was written at step i of the episode."""
    size = layer.head_size
    query_D = layer.query(h_D)
    expire = layer.expire_span
    weights: list[Tensor] = []  # m_ti
    for i, memory_D in enumerate(memories):
        logit = expire.predictor(memory_D / expire.span_divisor).squeeze(-1)
        span = torch.clamp(expire.max_span * torch.sigmoid(logit), max=limit) / rate  # e_i (1)
        remaining = span - (t - i)  # r_ti (2)
        mask = (1 + remaining / expire.ramp).clamp(0, 1)  # m_ti (3)
        weights.append(mask if mask.item() > SMALLEST_MASK else torch.zeros_like(mask))
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        numerator, denominator = torch.zeros_like(h_D[part]), torch.zeros_like(h_D[0])
        for i, (memory_D, m) in enumerate(zip(memories, weights, strict=True)):
            key_K, value_K = layer.key(memory_D)[part], layer.value(memory_D)[part]
            query_K = query_D[part] * size**-0.5
            score = query_K @ key_K
            age = t - i
            if layer.position_window and age <= layer.position_window:
                score = score + query_K @ layer.position_HPK[head, layer.position_window - age]
            numerator = numerator + m * score.exp() * value_K
            denominator = denominator + m * score.exp()
        heads.append(numerator / denominator if denominator.item() > 0 else numerator)  # (4)
    return torch.cat(heads)
