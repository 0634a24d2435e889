"""Attention over memories that expire, forward and backward in as few passes as possible.

There are two ways to attend to a memory, equal up to rounding: q . (W h_i) = (W' q) . h_i and
sum_i a_i (V h_i) = V (sum_i a_i h_i).

- As it is stored. The key projection is applied to the query, and the value projection to the context that
  it reads. No key or value is ever computed, and all heads read the same vectors (as in "multi-query"
  attention, https://arxiv.org/abs/1911.02150). Acting does this.
- Projected. Keys and values of each head are computed once for a block; a pair of a query and a memory
  then costs each head D / H products instead of D. `should_project_kv` says when that is less work.

The gradient of equation 4 is written out by hand: automatic differentiation would keep and traverse
about three times as many arrays of one number per (query, head, memory), and on a CPU those passes,
not the matrix products, are what a block costs. `tests/agents/test_expiring_attention.py` compares
it with automatic differentiation of the equations.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memory_suite.agents.model.attention.positions import BlockPositions
from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.store.base import INVISIBLE


def should_project_kv(*, num_steps: int, num_heads: int, width: int) -> bool:
    """Whether a block should project keys and values.

    Number of products per stored memory for a block of W queries, forward and backward:
        as stored: 4 W H D  (score and context; backward, gradients of queries and attention)
        projected: 6 W D    (the same for vectors of D / H, and gradients of keys and values)
                 + 4 D D    (key and value; backward, gradients of both weights)
    The answer depends on nothing that changes during a run, so all its blocks compute in the same way.

    Args:
        num_steps: W.
        num_heads: H.
        width: D.
    """
    return 3 * num_steps + 2 * width < 2 * num_steps * num_heads


class ExpiringAttention(torch.autograd.Function):
    """a'_ti = m_ti a_ti / sum_j m_tj a_tj, with m_ti = clamp(expiry_i - time_t, 0, 1)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BWHK: Float[Tensor, "B W H K"],
        key_BHTK: Float[Tensor, "B _ T K"],
        value_BHTK: Float[Tensor, "B _ T K"] | None,
        position_BWHP: Float[Tensor, "B W H P"],
        expiry_BGT: Float[Tensor, "B G T"],
        stored_time_BW: Float[Tensor, "B W"],
        time_W: Float[Tensor, " W"],
        blocked_BWN: Bool[Tensor, "B W N"],
        positions: BlockPositions | None,
        need_attention: bool = False,
        need_mask: bool = False,
        never_blind: bool = False,
        *written: Float[Tensor, "B _ K"],
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Attend to memories.

        Args:
            ctx: autograd's.
            query_BWHK: scaled queries.
            key_BHTK: keys of memories from before the block, then of the N that come to exist in it, of
                which the last W are written by its steps, in order. One key for all heads, or one for each.
            value_BHTK: values. None: the keys, which are then the memories as they are stored; gradients flow
                not into them but into `written`.
            position_BWHP: additions to scores by age; `positions` says which.
            expiry_BGT: time at which m_ti reaches 0, in ramp lengths: (e_i + birth_i) / R + 1.
            stored_time_BW: t / R for stored memories; infinite for a query that must not see them.
            time_W: t / R for the N memories of the block.
            blocked_BWN: True where a query must not see one of these, whatever its span.
            positions: where position_BWHP is added; None: nowhere.
            need_attention: also return a'_ti.
            need_mask: also return m_ti.
            never_blind: every query sees some memory.
            written: the last N keys, in parts, where keys are memories as they are stored. They receive the
                gradient, so that none is allocated for memories from before the block.

        Returns:
            Context [B, W, H, K], zero for a query that sees nothing; m [B, W, G, T] or None; and a'
            [B, W, H, T], zero for such a query, or None. No gradient flows into the last two.
        """
        batch, steps = query_BWHK.shape[:2]
        num_sets = key_BHTK.shape[1]
        num_spans, num_memories = expiry_BGT.shape[1:]
        num_stored = num_memories - blocked_BWN.shape[2]
        mask_BWGT = query_BWHK.new_empty(batch, steps, num_spans, num_memories, dtype=expiry_BGT.dtype)
        expiry_B1GT = expiry_BGT.unsqueeze(1)
        stored_time_BW11, time_W11 = stored_time_BW[:, :, None, None], time_W[:, None, None]
        torch.sub(expiry_B1GT[..., :num_stored], stored_time_BW11, out=mask_BWGT[..., :num_stored])
        torch.sub(expiry_B1GT[..., num_stored:], time_W11, out=mask_BWGT[..., num_stored:])
        mask_BWGT[..., num_stored:].masked_fill_(blocked_BWN.unsqueeze(2), 0.0)
        expired_BWGT = mask_BWGT <= SMALLEST_MASK
        blind_BWG1 = None if never_blind else expired_BWGT.all(3, keepdim=True)
        mask_BWGT.clamp_(SMALLEST_MASK, 1.0)
        # log(0) itself takes a slow path in the vector library, so it is filled in afterwards. A row of -inf
        # would have no softmax: INVISIBLE is finite. The context of a query that sees nothing is set to 0.
        kept_mask_BWGT = None
        if need_mask or ctx.needs_input_grad[4]:
            kept_mask_BWGT = mask_BWGT.masked_fill(expired_BWGT, 0.0)
            ctx.mark_non_differentiable(kept_mask_BWGT)
        log_mask_BWGT = mask_BWGT.log_().masked_fill_(expired_BWGT, INVISIBLE)
        key = key_BHTK.flatten(0, 1)
        value = key if value_BHTK is None else value_BHTK.flatten(0, 1)
        score = torch.bmm(_by_set(query_BWHK, num_sets), key.transpose(1, 2))
        score_BWHT = _by_query(score, steps, num_sets)
        if positions is not None:
            positions.add_to(score_BWHT, position_BWHP)
        score_BWHT += log_mask_BWGT
        attention = score.softmax(-1)
        context_BWHK = _by_query(torch.bmm(attention, value), steps, num_sets).contiguous()
        if blind_BWG1 is not None:
            context_BWHK.masked_fill_(blind_BWG1, 0.0)
        attention_BWHT = None
        if need_attention:
            attention_BWHT = _by_query(attention, steps, num_sets).clone()
            if blind_BWG1 is not None:
                attention_BWHT.masked_fill_(blind_BWG1, 0.0)
            ctx.mark_non_differentiable(attention_BWHT)
        ctx.save_for_backward(query_BWHK, key, value, attention, kept_mask_BWGT, context_BWHK, blind_BWG1)
        ctx.num_stored, ctx.num_sets, ctx.as_stored = num_stored, num_sets, value_BHTK is None
        ctx.num_written = [part.shape[1] for part in written]
        ctx.positions = positions
        return context_BWHK, kept_mask_BWGT, attention_BWHT

    @staticmethod
    def backward(
        ctx: Any, grad_context_BWHK: Tensor, _grad_mask: Tensor | None, _grad_attention: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Apply the chain rule through softmax and mask."""
        query_BWHK, key, value, attention, mask_BWGT, context_BWHK, blind_BWG1 = ctx.saved_tensors
        batch, steps = query_BWHK.shape[:2]
        num_sets, num_stored = ctx.num_sets, ctx.num_stored
        if blind_BWG1 is not None:
            grad_context_BWHK = grad_context_BWHK.masked_fill(blind_BWG1, 0.0)
        query, grad_context = _by_set(query_BWHK, num_sets), _by_set(grad_context_BWHK, num_sets)
        grad_score = torch.bmm(grad_context, value.transpose(1, 2))
        grad_score -= _by_set((grad_context_BWHK * context_BWHK).sum(-1, keepdim=True), num_sets)
        grad_score *= attention
        grad_query = _by_query(torch.bmm(grad_score, key), steps, num_sets)
        grad_key = grad_value = None
        grad_written: tuple[Tensor, ...] = ()
        if ctx.as_stored:
            grad_new = torch.bmm(grad_score[:, :, num_stored:].transpose(1, 2), query)
            grad_new.baddbmm_(attention[:, :, num_stored:].transpose(1, 2), grad_context)
            grad_written = torch.split(grad_new, ctx.num_written, 1)
        else:
            shape = batch, num_sets, *key.shape[1:]
            grad_key = torch.bmm(grad_score.transpose(1, 2), query).view(shape)
            grad_value = torch.bmm(attention.transpose(1, 2), grad_context).view(shape)
        grad_score_BWHT = _by_query(grad_score, steps, num_sets)
        grad_expiry = grad_position = None
        if ctx.needs_input_grad[4]:
            # d log m / d m = 1 / m, and m moves only on the ramp.
            flat_BWGT = (mask_BWGT == 0.0) | (mask_BWGT == 1.0)
            shared = mask_BWGT.shape[2] == 1
            grad_log_mask_BWGT = grad_score_BWHT.sum(2, keepdim=True) if shared else grad_score_BWHT
            grad_expiry = (grad_log_mask_BWGT / mask_BWGT.masked_fill(flat_BWGT, torch.inf)).sum(1)
        if ctx.positions is not None:
            grad_position = ctx.positions.gradient(grad_score_BWHT)
        grads = grad_query, grad_key, grad_value, grad_position, grad_expiry
        return *grads, None, None, None, None, None, None, None, *grad_written


def _by_set(part_BWHK: Tensor, num_sets: int) -> Tensor:
    """Group heads that share keys: [B * sets, W * H / sets, K], where the number of sets is 1 or H."""
    batch, steps, _, size = part_BWHK.shape
    by_set = part_BWHK.view(batch, steps, num_sets, -1, size).transpose(1, 2)
    return by_set.reshape(batch * num_sets, -1, size)


def _by_query(part: Tensor, num_steps: int, num_sets: int) -> Tensor:
    """Invert `_by_set`: [B, W, H, K], a view."""
    size = part.shape[2]
    by_query = part.view(-1, num_sets, num_steps, part.shape[1] // num_steps, size).transpose(1, 2)
    return by_query.view(by_query.shape[0], num_steps, -1, size)
