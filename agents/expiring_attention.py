"""Attention over memories that expire, forward and backward in as few passes as possible.

The gradient of equation 4 is written out by hand: automatic differentiation would keep and traverse
about three times as many arrays of one number per (head, query, memory), and on a CPU those passes,
not the matrix products, are what a block costs. `tests/agents/test_expiring_attention.py` compares
it with automatic differentiation of the equations as they stand.

Shape letters:
    B  rows of the batch     T  queries      M  memories
    H  heads                 K  size of one head
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from agents.expire_span import SMALLEST_MASK

INVISIBLE = -1e30
"""score of a pair that may not attend; exp() of it is exactly 0 beside any score of a visible pair"""


class ExpiringAttention(torch.autograd.Function):
    """a'_ti = m_ti a_ti / sum_j m_tj a_tj, with m_ti = clamp(expiry_i - time_t, 0, 1)."""

    @staticmethod
    def forward(
        ctx: Any,
        query_BHTK: Float[Tensor, "B H T K"],
        key_BHMK: Float[Tensor, "B H M K"],
        value_BHMK: Float[Tensor, "B H M K"],
        position_BHTM: Float[Tensor, "B H T M"] | None,
        expiry_BM: Float[Tensor, "B M"],
        time_T: Float[Tensor, " T"],
        hidden_BTM: Bool[Tensor, "B T M"],
    ) -> tuple[Tensor, Tensor]:
        """Read from memory.

        Args:
            ctx: autograd's.
            query_BHTK: queries, already scaled by K**-0.5.
            key_BHMK: keys.
            value_BHMK: values.
            position_BHTM: relative position scores, or None. Overwritten.
            expiry_BM: when m_ti reaches 0, in ramp lengths: (e_i + birth_i) / R + 1.
            time_T: t / R on the same clock.
            hidden_BTM: True where a query may not look, whatever the span.

        Returns:
            What was read [B, H, T, K], zero for a query that sees nothing; and m [B, T, M], without
            gradient.
        """
        mask_BTM = (expiry_BM.unsqueeze(1) - time_T.unsqueeze(1)).clamp_(max=1.0)
        gone_BTM = mask_BTM <= SMALLEST_MASK
        gone_BTM |= hidden_BTM
        mask_BTM.masked_fill_(gone_BTM, 0.0)
        blind_BT = gone_BTM.all(2)
        # log(0) itself takes a slow path in the vector library, so it is filled in afterwards. A row
        # of -inf would have no softmax: INVISIBLE is finite, and a query that sees nothing reads zero.
        log_mask_BTM = mask_BTM.masked_fill(gone_BTM, 1.0).log_().masked_fill_(gone_BTM, INVISIBLE)
        score_BHTM = torch.matmul(query_BHTK, key_BHMK.transpose(2, 3))
        if position_BHTM is not None:
            score_BHTM += position_BHTM
        score_BHTM += log_mask_BTM.unsqueeze(1)
        attention_BHTM = score_BHTM.softmax(-1)
        read_BHTK = torch.matmul(attention_BHTM, value_BHMK)
        read_BHTK.masked_fill_(blind_BT[:, None, :, None], 0.0)
        ctx.save_for_backward(query_BHTK, key_BHMK, value_BHMK, attention_BHTM, mask_BTM, read_BHTK, blind_BT)
        ctx.mark_non_differentiable(mask_BTM)
        return read_BHTK, mask_BTM

    @staticmethod
    def backward(ctx: Any, grad_read_BHTK: Tensor, _grad_mask: Tensor) -> tuple[Tensor | None, ...]:
        """The chain rule through softmax and mask."""
        query_BHTK, key_BHMK, value_BHMK, attention_BHTM, mask_BTM, read_BHTK, blind_BT = ctx.saved_tensors
        grad_read_BHTK = grad_read_BHTK.masked_fill(blind_BT[:, None, :, None], 0.0)
        grad_value = torch.matmul(attention_BHTM.transpose(2, 3), grad_read_BHTK)
        grad_score = torch.matmul(grad_read_BHTK, value_BHMK.transpose(2, 3))
        grad_score -= (grad_read_BHTK * read_BHTK).sum(-1, keepdim=True)
        grad_score *= attention_BHTM
        grad_query = torch.matmul(grad_score, key_BHMK)
        grad_key = torch.matmul(grad_score.transpose(2, 3), query_BHTK)
        grad_expiry = None
        if ctx.needs_input_grad[4]:
            # d log m / d m = 1 / m, and m moves only on the ramp.
            flat_BTM = (mask_BTM == 0.0) | (mask_BTM == 1.0)
            grad_expiry = (grad_score.sum(1) / mask_BTM.masked_fill(flat_BTM, torch.inf)).sum(1)
        grad_position = grad_score if ctx.needs_input_grad[3] else None
        return grad_query, grad_key, grad_value, grad_position, grad_expiry, None, None
