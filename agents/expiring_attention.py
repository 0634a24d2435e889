"""Attention over memories that expire, forward and backward in as few passes as possible.

Memories are read as they are stored. A query is taken through the key projection before it meets them,
and what it read goes through the value projection afterwards: q . (W h_i) = (W' q) . h_i and
sum_i a_i (V h_i) = V (sum_i a_i h_i). So no key or value of a memory is ever computed or kept, and all
heads read the same rows (the reading side of "multi-query" attention, https://arxiv.org/abs/1911.02150).

The gradient of equation 4 is written out by hand: automatic differentiation would keep and traverse
about three times as many arrays of one number per (query, head, memory), and on a CPU those passes,
not the matrix products, are what a block costs. `tests/agents/test_expiring_attention.py` compares
it with automatic differentiation of the equations as they stand.

Shape letters:
    B  rows of the batch     T  queries, and the memories written with them      H  heads
    G  masks: 1 if all heads share one, else H       W  stored memories         D  model width
    N  memories that come up in the block: those written in it last, before them any others
    M  all memories, W + N, the stored ones first
    S  first queries of the block that have a position relative to the first C stored memories
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.retention import SMALLEST_MASK

INVISIBLE = -1e30
"""score of a pair that may not attend; exp() of it is exactly 0 beside any score of a visible pair"""


class ExpiringAttention(torch.autograd.Function):
    """a'_ti = m_ti a_ti / sum_j m_tj a_tj, with m_ti = clamp(expiry_i - time_t, 0, 1)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BTHD: Float[Tensor, "B T H D"],
        stored_BWD: Float[Tensor, "B W D"],
        new_BND: Float[Tensor, "B N D"],
        near_BHSC: Float[Tensor, "B H S C"] | None,
        inside_BHTT: Float[Tensor, "B H T T"] | None,
        expiry_BGM: Float[Tensor, "B G M"],
        stored_time_BT: Float[Tensor, "B T"],
        time_T: Float[Tensor, " T"],
        hidden_BTN: Bool[Tensor, "B T N"],
        late: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read from memory.

        Args:
            ctx: autograd's.
            query_BTHD: queries as the memories understand them, already scaled.
            stored_BWD: memories from before the block; no gradient flows into them.
            new_BND: memories that come up in the block; the last T are those written in it, in order.
            near_BHSC: relative position scores of the first queries and stored memories, or None.
            inside_BHTT: the same among the block's own steps, or None.
            expiry_BGM: when m_ti reaches 0, in ramp lengths: (e_i + birth_i) / R + 1.
            stored_time_BT: t / R on the same clock as the stored memories see it; infinite for a query
                that may see none of them.
            time_T: t / R for the memories that come up in the block.
            hidden_BTN: True where a query may not look at one of them, whatever the span.
            late: also say how much attention stored memories get from the queries from this one on.

        Returns:
            What was read [B, T, H, D], zero for a query that sees nothing; m [B, T, G, M], without
            gradient; and that attention [B, W], summed over queries, mean over heads, without gradient (or
            None).
        """
        batch, steps, heads, width = query_BTHD.shape
        num_stored = stored_BWD.shape[1]
        num_spans, num_memories = expiry_BGM.shape[1:]
        mask_BTGM = query_BTHD.new_empty(batch, steps, num_spans, num_memories, dtype=expiry_BGM.dtype)
        expiry_B1GM = expiry_BGM.unsqueeze(1)
        stored_time_BT11, time_T11 = stored_time_BT[:, :, None, None], time_T[:, None, None]
        torch.sub(expiry_B1GM[..., :num_stored], stored_time_BT11, out=mask_BTGM[..., :num_stored])
        torch.sub(expiry_B1GM[..., num_stored:], time_T11, out=mask_BTGM[..., num_stored:])
        mask_BTGM[..., num_stored:].masked_fill_(hidden_BTN.unsqueeze(2), 0.0)
        gone_BTGM = mask_BTGM <= SMALLEST_MASK
        mask_BTGM.clamp_(max=1.0).masked_fill_(gone_BTGM, 0.0)
        blind_BTG1 = gone_BTGM.all(3, keepdim=True)
        # log(0) itself takes a slow path in the vector library, so it is filled in afterwards. A row
        # of -inf would have no softmax: INVISIBLE is finite, and a query that sees nothing reads zero.
        log_mask_BTGM = mask_BTGM.masked_fill(gone_BTGM, 1.0).log_().masked_fill_(gone_BTGM, INVISIBLE)
        memory_BMD = torch.cat([stored_BWD, new_BND], 1)
        flat_query = query_BTHD.view(batch, steps * heads, width)
        score = torch.bmm(flat_query, memory_BMD.transpose(1, 2))
        score_BTHM = score.view(batch, steps, heads, -1)
        if near_BHSC is not None:
            score_BTHM[:, : near_BHSC.shape[2], :, : near_BHSC.shape[3]] += near_BHSC.transpose(1, 2)
        if inside_BHTT is not None:
            score_BTHM[..., num_memories - steps :] += inside_BHTT.transpose(1, 2)
        score_BTHM += log_mask_BTGM
        attention = score.softmax(-1)
        read_BTHD = torch.bmm(attention, memory_BMD).view_as(query_BTHD)
        read_BTHD.masked_fill_(blind_BTG1, 0.0)
        late_BW = None
        if late is not None:
            late_BTHW = attention.view(batch, steps, heads, -1)[:, late:, :, :num_stored]
            late_BW = late_BTHW.masked_fill(blind_BTG1[:, late:], 0.0).mean(2).sum(1)
            ctx.mark_non_differentiable(late_BW)
        ctx.save_for_backward(query_BTHD, memory_BMD, attention, mask_BTGM, read_BTHD, blind_BTG1)
        ctx.num_stored = num_stored
        ctx.near = None if near_BHSC is None else near_BHSC.shape[2:]
        ctx.mark_non_differentiable(mask_BTGM)
        return read_BTHD, mask_BTGM, late_BW

    @staticmethod
    def backward(
        ctx: Any, grad_read_BTHD: Tensor, _grad_mask: Tensor, _grad_late: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The chain rule through softmax and mask."""
        query_BTHD, memory_BMD, attention, mask_BTGM, read_BTHD, blind_BTG1 = ctx.saved_tensors
        batch, steps, heads, width = query_BTHD.shape
        num_stored = ctx.num_stored
        grad_read_BTHD = grad_read_BTHD.masked_fill(blind_BTG1, 0.0)
        flat_grad_read = grad_read_BTHD.view(batch, steps * heads, width)
        grad_score = torch.bmm(flat_grad_read, memory_BMD.transpose(1, 2))
        grad_score -= (grad_read_BTHD * read_BTHD).sum(-1).view(batch, -1, 1)
        grad_score *= attention
        grad_query = torch.bmm(grad_score, memory_BMD).view_as(query_BTHD)
        grad_new = torch.bmm(
            grad_score[:, :, num_stored:].transpose(1, 2), query_BTHD.view(batch, steps * heads, width)
        )
        grad_new.baddbmm_(attention[:, :, num_stored:].transpose(1, 2), flat_grad_read)
        grad_score_BTHM = grad_score.view(batch, steps, heads, -1)
        grad_expiry = grad_near = grad_inside = None
        if ctx.needs_input_grad[5]:
            # d log m / d m = 1 / m, and m moves only on the ramp.
            flat_BTGM = (mask_BTGM == 0.0) | (mask_BTGM == 1.0)
            shared = mask_BTGM.shape[2] == 1
            grad_log_mask_BTGM = grad_score_BTHM.sum(2, keepdim=True) if shared else grad_score_BTHM
            grad_expiry = (grad_log_mask_BTGM / mask_BTGM.masked_fill(flat_BTGM, torch.inf)).sum(1)
        if ctx.needs_input_grad[3]:
            grad_near = grad_score_BTHM[:, : ctx.near[0], :, : ctx.near[1]].transpose(1, 2)
        if ctx.needs_input_grad[4]:
            grad_inside = grad_score_BTHM[..., memory_BMD.shape[1] - steps :].transpose(1, 2)
        return grad_query, None, grad_new, grad_near, grad_inside, grad_expiry, None, None, None, None
