"""The effect of shorter spans on what a transformer computes: the rule of the method "counterfactual".

A block is computed a second time with all spans of a row, in all layers, multiplied by one factor. Where the
output then differs, the memories that are missing are needed. Memories with the same content have the same
span, so they are left out together, as is evidence that adds up, and a memory of a lower layer that serves
to write those of an upper layer is missed through them (within the block; stored memories stay as they are).

The factor is random. Its distribution says at which ages, relative to the span e, a memory is left out:

- near (40%, 1 / `MARGIN` to 1): a memory used at an age of nearly e or more is missed, so that spans stay at
  least `MARGIN` times as long as the longest age at which the memory is used;
- longer (25%): factors above 1. In rows that keep all memories, a memory that has expired is compared with
  what is missing without it, so that spans can grow again;
- far (25%, with less weight): uses at ages far below the span, which happen often, pay for part of the
  memory's cost;
- nothing (10%): no memory at all. No span has a gradient there; the effect says how much depends on memory.

Spans have a cost, whose gradient in log e is (a / e)^(1/4) / (4 a) at each age a up to e: its sum over all
ages is about 1 for each memory. It falls with a / e like the probability that a far factor leaves a memory of
this age out, so that uses and costs of a memory far below its span keep their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from memory_suite.agents.model.layer import MemoryLayer
from memory_suite.agents.model.retention.penalty import SHORTEST_SPAN
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.rows import NEVER, RowStore
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer

MARGIN = 2.0
"""a span's multiple of the longest age at which its memory is used"""
RAMP_EFOLDINGS = math.log(MARGIN)
"""e-foldings of the span over which a memory fades out in the second computation"""
LENGTHENED_SHARE, FAR_SHARE, NOTHING_SHARE = 0.25, 0.25, 0.1
"""probabilities of factors above 1, of factors far below 1, and of no memory at all; the rest are near 1"""
FAR_MEAN = 4.0
"""mean e-foldings of the factors above 1, and of those far below 1 beyond `MARGIN`, which are exponentially
distributed"""
COST_DECAY = 1.0 / FAR_MEAN
"""exponent with which the cost of a memory falls with its age relative to its span"""
USEFULNESS_WEIGHT = 60.0
"""weight of the effect of shorter spans relative to the cost of memories"""
FAR_WEIGHT = 4.0
"""the same for factors far below 1. They are drawn more often than their weight says, since few large
gradients would slow down Adam, which divides by their size"""
IMITATION_WEIGHT = 0.02
"""weight of the same effect in the loss of all other weights, which learn to compute the same without the
memories that are left out"""
SMALLEST_EFFECT = 0.05
"""nats; smaller differences of the output have no effect"""
PRESENT_MASK = 1e-6
"""at or below it a memory is absent"""
ABSENT, NO_NULL = -1e30, -1e29
"""scores of absent memories, and of the null memory of layers without one, which absent memories never
exceed"""
SCORES_AT_A_TIME = 2**20
"""number of scores (one per query, head and memory) of the rows that are computed together"""


class ShortenedOutput(NamedTuple):
    """Output of `shortened_block`."""

    y_BWD: Float[Tensor, "B W D"]
    cost_B: Float[Tensor, " B"]
    """cost of the memories of all layers, summed over steps, with a gradient to spans"""


class ShortenedEffect(NamedTuple):
    """Effect of shorter spans on some rows of a block."""

    loss: Float[Tensor, ""]
    """to add to the loss; summed over rows, mean over steps"""
    effect_NW: Float[Tensor, "N W"]
    """`effect_of` the difference at each step of the evaluated rows"""
    log_factor_N: Float[Tensor, " N"]
    """log of the factor on the spans of each evaluated row; -inf: nothing was left"""


def sample_log_factors(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw logs of factors on spans from the distribution in the module's docstring."""
    kind, uniform = torch.rand(2, *shape, device=device)
    far = FAR_MEAN * -torch.log1p(-uniform)  # exponentially distributed
    log_factor = -RAMP_EFOLDINGS * uniform
    is_far = kind < LENGTHENED_SHARE + FAR_SHARE + NOTHING_SHARE
    log_factor = torch.where(is_far, -RAMP_EFOLDINGS - far, log_factor)
    log_factor = torch.where(kind < LENGTHENED_SHARE + NOTHING_SHARE, far, log_factor)
    return torch.where(kind < NOTHING_SHARE, -torch.inf, log_factor)


def effect_of(divergence: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Effect of a difference of the output, in [0, 1), from its KL divergence in nats."""
    return -torch.expm1(-(divergence - SMALLEST_EFFECT).clamp_min(0.0))


def shortened_effect(
    transformer: MemoryTransformer,
    x_BWD: Float[Tensor, "B W D"],
    state: MemoryState,
    episode_start_BW: Bool[Tensor, "B W"],
    log_factor_B: Float[Tensor, " B"],
    divergence: Callable[[Tensor, Tensor], Float[Tensor, "N W"]],
) -> ShortenedEffect:
    """Compute the effect of shorter spans.

    Args:
        transformer: the transformer; its spans must be learned.
        x_BWD: embedded inputs of a block.
        state: memories before the block.
        episode_start_BW: where an episode begins.
        log_factor_B: log of the factor on the spans of each row; NaN: the row is not evaluated.
        divergence: KL divergence between the output for the given rows (indices) with all memories and the
            output of these hidden states [N, W, D].
    """
    rows_N = (~log_factor_B.isnan()).nonzero().squeeze(1)
    num_steps = episode_start_BW.shape[1]
    losses, effects = [x_BWD.new_zeros(())], [x_BWD.new_zeros(0, num_steps)]
    for rows in _groups(rows_N, state, num_steps * transformer.settings.num_heads):
        output = shortened_block(
            transformer,
            x_BWD[rows].detach(),
            state.select(rows).trimmed(),
            episode_start_BW[rows],
            log_factor_B[rows],
        )
        effect_NW = effect_of(divergence(rows, output.y_BWD))
        losses.append((IMITATION_WEIGHT * effect_NW.sum() + output.cost_B.sum()) / num_steps)
        effects.append(effect_NW.detach())
    return ShortenedEffect(torch.stack(losses).sum(), torch.cat(effects), log_factor_B[rows_N])


def _groups(rows_N: Int[Tensor, " N"], state: MemoryState, scores_per_memory: int) -> list[Tensor]:
    """Rows in groups whose scores are at most `SCORES_AT_A_TIME`, unless a group is a single row."""
    groups: list[list[int]] = []
    widest = 0
    retained = state.retained_NB.amax(0)[rows_N].tolist()
    for row, count in zip(rows_N.tolist(), retained, strict=True):
        widest = max(widest, count)
        if not groups or (len(groups[-1]) + 1) * widest * scores_per_memory > SCORES_AT_A_TIME:
            groups.append([])
            widest = count
        groups[-1].append(row)
    return [torch.tensor(group, device=rows_N.device) for group in groups]


def shortened_block(
    transformer: MemoryTransformer,
    x_BWD: Float[Tensor, "B W D"],
    state: MemoryState,
    episode_start_BW: Bool[Tensor, "B W"],
    log_factor_B: Float[Tensor, " B"],
) -> ShortenedOutput:
    """Compute a block with the spans of each row multiplied by a factor.

    A memory of age a fades out on a logarithmic ramp: its mask is 1 up to the age e * factor / `MARGIN`, and
    0 from e * factor on, whatever bounds the spans of the row have. The gradient of the output in the mask
    reaches spans alone, with the weight `USEFULNESS_WEIGHT` (or `FAR_WEIGHT`) / `IMITATION_WEIGHT`.
    """
    view = BlockView.of(state, episode_start_BW, dtype=x_BWD.dtype)
    costs = []
    for layer, memory in zip(transformer.layers, state.layers, strict=True):
        attended_BWD, cost_B = _attend(layer, x_BWD, memory.to_rows(), view, log_factor_B)
        x_BWD = layer.feedforward(x_BWD + attended_BWD)
        costs.append(cost_B)
    return ShortenedOutput(transformer.final_norm(x_BWD), torch.stack(costs).sum(0))


def _attend(
    layer: MemoryLayer,
    x_BWD: Float[Tensor, "B W D"],
    store: RowStore,
    view: BlockView,
    log_factor_B: Float[Tensor, " B"],
) -> tuple[Float[Tensor, "B W D"], Float[Tensor, " B"]]:
    """What a layer's attention adds with the changed spans, and the cost of its memories."""
    h_BWD = layer.memory_norm(x_BWD)
    query_BWHD, position_BWHP = layer.project_queries(h_BWD, projected=False)
    memories = RowStore.cat([store, view.new_memory(h_BWD)])
    # Spans have a gradient for what predicts them, none for what is remembered.
    span_BGT = layer.retention.spans_of(memories.map(Tensor.detach))
    log_span_B1GT = span_BGT.clamp_min(SHORTEST_SPAN).log().unsqueeze(1)
    age_BWT = view.step_W.view(1, -1, 1) - view.relative(memories.birth_BT).unsqueeze(1)
    log_age_BW1T = age_BWT.clamp_min(1.0).log().unsqueeze(2)
    other_episode_BWS = view.stored_time_BW.isinf().unsqueeze(2).expand(-1, -1, store.num_slots)
    blocked_BWT = torch.cat([other_episode_BWS, view.blocked_BWW], 2)
    blocked_BW1T = (blocked_BWT | (memories.birth_BT == NEVER).unsqueeze(1)).unsqueeze(2)

    with torch.no_grad():
        held = (log_age_BW1T <= log_span_B1GT) & ~blocked_BW1T
        rate_BWGT = COST_DECAY * (COST_DECAY * (log_age_BW1T - log_span_B1GT) - log_age_BW1T).exp()
        rate_BGT = rate_BWGT.masked_fill(~held, 0.0).sum(1)
    cost_B = (rate_BGT * log_span_B1GT.squeeze(1)).mean(1).sum(1)

    remaining_BWGT = log_span_B1GT - log_age_BW1T + log_factor_B.view(-1, 1, 1, 1)
    mask_BWGT = (remaining_BWGT / RAMP_EFOLDINGS).clamp(0.0, 1.0)
    absent_BWGT = (mask_BWGT <= PRESENT_MASK) | blocked_BW1T
    log_mask_BWGT = mask_BWGT.clamp_min(PRESENT_MASK).log()
    # The effect is differentiated once for the spans and once, with another weight, for everything else.
    is_far_B = log_factor_B < -RAMP_EFOLDINGS
    weight_B = torch.where(is_far_B, FAR_WEIGHT, USEFULNESS_WEIGHT) / IMITATION_WEIGHT
    weight = weight_B.view(-1, 1, 1, 1)
    log_mask_BWGT = log_mask_BWGT.detach() + weight * (log_mask_BWGT - log_mask_BWGT.detach())

    h_BTD = memories.h_BTD
    score_BWHT = torch.bmm(query_BWHD.flatten(1, 2), h_BTD.transpose(1, 2)).view(*query_BWHD.shape[:3], -1)
    if layer.position_window:
        score_BWHT = score_BWHT + _position_scores(position_BWHP, age_BWT)
    score_BWHT = (score_BWHT + log_mask_BWGT).masked_fill(absent_BWGT, ABSENT)
    null_BWH1 = score_BWHT.new_full((*score_BWHT.shape[:3], 1), 0.0 if layer.null_memory else NO_NULL)
    attention_BWHT = torch.cat([score_BWHT, null_BWH1], 3).softmax(3)[..., :-1]
    context_BWHD = torch.bmm(attention_BWHT.flatten(1, 2), h_BTD).view_as(query_BWHD)
    return layer.output_projection(context_BWHD, projected=False), cost_B


def _position_scores(
    position_BWHP: Float[Tensor, "B W H P"], age_BWT: Float[Tensor, "B W T"]
) -> Float[Tensor, "B W H T"]:
    """Additions to scores by age: entry j of a query's products belongs to age P - j; none beyond P."""
    window, num_heads = position_BWHP.shape[3], position_BWHP.shape[2]
    index_BWT = (window + 1 - age_BWT).clamp(0, window).long().masked_fill(age_BWT < 1, 0)
    padded = F.pad(position_BWHP, (1, 0))
    return padded.gather(3, index_BWT.unsqueeze(2).expand(-1, -1, num_heads, -1))
