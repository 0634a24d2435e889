"""Attention over memories that expire, in one kernel that stores nothing of the size (query, memory).

PyTorch's FlexAttention (https://pytorch.org/blog/flexattention/) is given the mask of equation 3 and the
relative positions as functions of a pair's indices. It computes scores tile by tile, again in the backward
pass, and skips the tiles in which no query sees a memory.

A memory is seen by one run of queries: from the first after it was written, to the last of its episode or
of its span. So two integers per memory say exactly which queries see it. The
same 6 x 6 matrix as in `store.block_view`, with those numbers (1: visible as long as its span lasts):

                   s0 s1  0  1  2  3
      begin         0  0  1  0  3  0
      end           2  2  2  0  4  0      0 to 0: no query sees it
      t=0           1  1  .  .  .  .
      t=1           1  1  1  .  .  .
      t=2           .  .  .  .  .  .      an episode begins
      t=3           .  .  .  .  1  .
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import no_type_check

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from memory_suite.agents.model.retention.base import SMALLEST_MASK

TILE = 128
"""number of queries, and of memories, of a tile; a tile is computed or skipped as a whole"""
SMALLEST_HEAD = 16
"""smallest head size of FlexAttention's kernels"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""dtypes of queries, keys and values on a GPU"""
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
TRAINS_ON = ("cuda",)
"""device types on which FlexAttention has a backward pass"""


def fused_unsupported_reason(device: str, dtype: torch.dtype, size: int) -> str | None:
    """The reason why the fused path cannot be used; None if it can."""
    if torch.is_grad_enabled() and device not in TRAINS_ON:
        return f"FlexAttention trains on {' and '.join(TRAINS_ON)} only, not on {device}"
    if device == "cuda" and size < SMALLEST_HEAD:
        return f"heads must be at least {SMALLEST_HEAD} wide, and are {size}"
    if device == "cuda" and dtype not in DTYPES:
        return f"the model's numbers are {dtype}"
    return None


def fused_attention(
    query_BWHK: Float[Tensor, "B W H K"],
    key_BHTK: Float[Tensor, "B H T K"],
    value_BHTK: Float[Tensor, "B H T K"],
    position_BHWP: Float[Tensor, "B H W P"] | None,
    birth_BT: Int[Tensor, "B T"],
    expiry_BGT: Float[Tensor, "B G T"],
    stored_time_BW: Float[Tensor, "B W"],
    time_W: Float[Tensor, " W"],
    blocked_BWN: Bool[Tensor, "B W N"],
) -> Float[Tensor, "B W H K"]:
    """Compute the context of `ExpiringAttention` from projected keys and values, which may be bfloat16.

    Args:
        query_BWHK: scaled queries.
        key_BHTK: keys of the stored memories, then of the N that come to exist in the block.
        value_BHTK: values.
        position_BHWP: q_t . p_age for the ages P to 1, in this order, or None.
        birth_BT: births relative to the block; far in the past for a memory that has no position.
        expiry_BGT: time at which m_ti reaches 0, in ramp lengths: (e_i + birth_i) / R + 1; has gradients.
        stored_time_BW: infinite for a query that must not see stored memories.
        time_W: t / R.
        blocked_BWN: True where a query must not see one of the N memories of the block.
    """
    begin_BT, end_BGT = visible_steps(expiry_BGT.detach(), stored_time_BW, time_W, blocked_BWN)
    shared = expiry_BGT.shape[1] == 1
    # A tensor: torch cannot compile these functions with captured numbers that vary between models.
    window = torch.full_like(begin_BT[0, 0], 0 if position_BHWP is None else position_BHWP.shape[3])

    # torch traces these functions, so nothing may wrap them, such as type checks of tests.

    @no_type_check
    def seen(batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        end = end_BGT[batch, head * 0 if shared else head, memory]
        return (query >= begin_BT[batch, memory]) & (query < end)

    @no_type_check
    def faded(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        mask = expiry_BGT[batch, head * 0 if shared else head, memory] - time_W[query]
        on_ramp = (mask > 0.0) & (mask < 1.0)
        return score + torch.where(on_ramp, mask, 1.0).log()

    @no_type_check
    def placed(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        age = query - birth_BT[batch, memory]
        near = (age >= 1) & (age <= window)
        # In the backward pass each pair adds to what it looked up, if only 0: spread the addresses.
        index = torch.where(near, window - age, memory % window)
        position = torch.where(near, position_BHWP[batch, head, query, index], 0.0)
        return faded(score, batch, head, query, memory) + position

    attend = _compiled() if query_BWHK.device.type == "cuda" else _attend
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        context_BHWK = attend(
            query_BWHK.transpose(1, 2).contiguous(),
            key_BHTK,
            value_BHTK,
            faded if position_BHWP is None else placed,
            block_mask(begin_BT, end_BGT, len(time_W), seen),
        )
    return context_BHWK.transpose(1, 2)


@no_type_check
def _attend(query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod, tiles: BlockMask) -> Tensor:
    """Call FlexAttention; it runs as plain operations on all pairs unless it is compiled."""
    # Otherwise short blocks go to a kernel for text generation.
    options = {"FORCE_USE_FLEX_ATTENTION": True}
    return flex_attention(
        query, key, value, score_mod=score_mod, block_mask=tiles, scale=1.0, kernel_options=options
    )


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(_attend, fullgraph=True)
    return compiled


def visible_steps(
    expiry_BGT: Float[Tensor, "B G T"],
    stored_time_BW: Float[Tensor, "B W"],
    time_W: Float[Tensor, " W"],
    blocked_BWN: Bool[Tensor, "B W N"],
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B G T"]]:
    """The first query that sees each memory, and the first query after it that does not."""
    num_stored = expiry_BGT.shape[2] - blocked_BWN.shape[2]
    visible_BWN = (~blocked_BWN).to(torch.uint8)
    begin_BN = visible_BWN.argmax(1)
    begin_BT = F.pad(begin_BN, (num_stored, 0))
    end_stored_BT = stored_time_BW.isfinite().sum(1, keepdim=True).expand(-1, num_stored)
    end_BT = torch.cat([end_stored_BT, begin_BN + visible_BWN.sum(1)], 1)
    # Queries with t / R < expiry, without the last one if its mask is only a rounding error.
    lasts_BGT = torch.searchsorted(time_W, expiry_BGT.contiguous())
    last_mask_BGT = expiry_BGT - time_W[(lasts_BGT - 1).clamp_min(0)]
    lasts_BGT -= (last_mask_BGT <= SMALLEST_MASK).long()
    end_BGT = torch.minimum(lasts_BGT.clamp_min(0), end_BT.unsqueeze(1))
    return begin_BT.to(torch.int32), end_BGT.to(torch.int32)


def block_mask(
    begin_BT: Int[Tensor, "B T"],
    end_BGT: Int[Tensor, "B G T"],
    num_steps: int,
    seen: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> BlockMask:
    """Select the tiles to compute: those with a visible pair, and among them those without a hidden pair.

    torch's own `create_block_mask` checks every pair; this checks each memory once per tile of queries.
    """
    num_memories = begin_BT.shape[1]
    first_W1 = torch.arange(0, num_steps, TILE, device=begin_BT.device).unsqueeze(1)
    padding = (0, -num_memories % TILE)
    begin_B11T = F.pad(begin_BT, padding)[:, None, None]
    end_BG1T = F.pad(end_BGT, padding).unsqueeze(2)
    some_BGWT = torch.maximum(begin_B11T, first_W1) < torch.minimum(end_BG1T, first_W1 + TILE)
    all_BGWT = (begin_B11T <= first_W1) & (end_BG1T >= first_W1 + TILE)
    tiles = (*some_BGWT.shape[:3], -1, TILE)
    full_BGWT = all_BGWT.view(tiles).all(4)
    partial_BGWT = some_BGWT.view(tiles).any(4) & ~full_BGWT
    return BlockMask.from_kv_blocks(
        *_listed(partial_BGWT),
        *_listed(full_BGWT),
        BLOCK_SIZE=TILE,
        mask_mod=seen,
        seq_lengths=(num_steps, num_memories),
    )


def _listed(tiles_BGWT: Bool[Tensor, "B G W T"]) -> tuple[Tensor, Tensor]:
    """The number of key tiles of each query tile, and their indices first (W and T count tiles)."""
    order_BGWT = tiles_BGWT.to(torch.uint8).argsort(dim=3, descending=True, stable=True)
    return tiles_BGWT.sum(3, dtype=torch.int32), order_BGWT.to(torch.int32)
