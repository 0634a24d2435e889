"""Attention over memories that expire, in one kernel: nothing of the size (query, memory) is ever stored.

PyTorch's FlexAttention (https://pytorch.org/blog/flexattention/) is given the mask of equation 3 and the
relative positions as functions of a pair's indices. It computes scores tile by tile, backward again, and
skips the tiles in which no query sees a memory, expired ones above all.

A memory is seen by one run of queries: from the first after it was written, to the last of its episode or
of its span. So two whole numbers for each memory say who sees it, exactly, whatever the clock reads. The
same 6 x 6 matrix as in `store.block_view`, with those numbers (1: seen as long as its span lasts):

                   s0 s1  0  1  2  3
      begin         0  0  1  0  3  0
      end           2  2  2  0  4  0      0 to 0: nobody sees it
      t=0           1  1  .  .  .  .
      t=1           1  1  1  .  .  .
      t=2           .  .  .  .  .  .      an episode begins
      t=3           .  .  .  .  1  .

Shape letters:
    B  rows of the batch     T  queries          H  heads         K  size of one head
    W  stored memories       N  memories that come up in the block, those written in it last
    M  all memories, W + N   P  recent steps that have a relative position
    G  spans of a memory: 1 if the heads share it, else H
    I  tiles of queries      J  tiles of memories
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
"""queries, and memories, of a tile that is computed or skipped as a whole"""
SMALLEST_HEAD = 16
"""FlexAttention's kernels know no smaller rows"""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""of queries, keys and values on a GPU"""
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
TRAINS_ON = ("cuda",)
"""device types on which FlexAttention has a backward pass"""


def obstacle(device: str, dtype: torch.dtype, size: int) -> str | None:
    """Why heads of this size cannot read by the fused path on such a device; None: they can."""
    if torch.is_grad_enabled() and device not in TRAINS_ON:
        return f"FlexAttention trains on {' and '.join(TRAINS_ON)} only, not on {device}"
    if device == "cuda" and size < SMALLEST_HEAD:
        return f"heads must be at least {SMALLEST_HEAD} wide, and are {size}"
    if device == "cuda" and dtype not in DTYPES:
        return f"the model's numbers are {dtype}"
    return None


def fused_attention(
    query_BTHK: Float[Tensor, "B T H K"],
    key_BHMK: Float[Tensor, "B H M K"],
    value_BHMK: Float[Tensor, "B H M K"],
    position_BHTP: Float[Tensor, "B H T P"] | None,
    birth_BM: Int[Tensor, "B M"],
    expiry_BGM: Float[Tensor, "B G M"],
    stored_time_BT: Float[Tensor, "B T"],
    time_T: Float[Tensor, " T"],
    blocked_BTN: Bool[Tensor, "B T N"],
) -> Float[Tensor, "B T H K"]:
    """What `ExpiringAttention` reads, from projected keys and values, which may be bfloat16.

    Args:
        query_BTHK: queries, already scaled.
        key_BHMK: keys of the stored memories, then of those that come up in the block.
        value_BHMK: what is read from them.
        position_BHTP: q_t . p_age for the ages P to 1, in this order, or None.
        birth_BM: births on the block's clock; so long ago that it has no position, for a pooled memory.
        expiry_BGM: when m_ti reaches 0, in ramp lengths: (e_i + birth_i) / R + 1. Gradient flows into it.
        stored_time_BT: infinite for a query that may see none of the stored memories.
        time_T: t / R.
        blocked_BTN: True where a query may not look at one of those that come up in the block.
    """
    begin_BM, end_BGM = seen_by(expiry_BGM.detach(), stored_time_BT, time_T, blocked_BTN)
    shared = expiry_BGM.shape[1] == 1
    # A tensor: numbers from outside that vary, between models, are what torch cannot compile these with.
    window = torch.full_like(begin_BM[0, 0], 0 if position_BHTP is None else position_BHTP.shape[3])

    # Nothing may come between these and torch, which traces them: no checks of types in tests either.

    @no_type_check
    def seen(batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        end = end_BGM[batch, head * 0 if shared else head, memory]
        return (query >= begin_BM[batch, memory]) & (query < end)

    @no_type_check
    def faded(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        mask = expiry_BGM[batch, head * 0 if shared else head, memory] - time_T[query]
        on_ramp = (mask > 0.0) & (mask < 1.0)
        return score + torch.where(on_ramp, mask, 1.0).log()

    @no_type_check
    def placed(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, memory: Tensor) -> Tensor:
        age = query - birth_BM[batch, memory]
        near = (age >= 1) & (age <= window)
        # Backward, each pair adds to what it has looked up, if only zero: not all at the same address.
        index = torch.where(near, window - age, memory % window)
        position = torch.where(near, position_BHTP[batch, head, query, index], 0.0)
        return faded(score, batch, head, query, memory) + position

    attend = _compiled() if query_BTHK.device.type == "cuda" else _attend
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
        read_BHTK = attend(
            query_BTHK.transpose(1, 2).contiguous(),
            key_BHMK,
            value_BHMK,
            faded if position_BHTP is None else placed,
            block_mask(begin_BM, end_BGM, len(time_T), seen),
        )
    return read_BHTK.transpose(1, 2)


@no_type_check
def _attend(query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod, tiles: BlockMask) -> Tensor:
    """FlexAttention, which is plain operations on all pairs until it is compiled."""
    # Short blocks would be given to a kernel made for generating text.
    options = {"FORCE_USE_FLEX_ATTENTION": True}
    return flex_attention(
        query, key, value, score_mod=score_mod, block_mask=tiles, scale=1.0, kernel_options=options
    )


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(_attend, fullgraph=True)
    return compiled


def seen_by(
    expiry_BGM: Float[Tensor, "B G M"],
    stored_time_BT: Float[Tensor, "B T"],
    time_T: Float[Tensor, " T"],
    blocked_BTN: Bool[Tensor, "B T N"],
) -> tuple[Int[Tensor, "B M"], Int[Tensor, "B G M"]]:
    """The first query that sees each memory, and the first one after it that does not see it any more."""
    num_stored = expiry_BGM.shape[2] - blocked_BTN.shape[2]
    visible_BTN = (~blocked_BTN).to(torch.uint8)
    begin_BN = visible_BTN.argmax(1)
    begin_BM = F.pad(begin_BN, (num_stored, 0))
    end_stored_BW = stored_time_BT.isfinite().sum(1, keepdim=True).expand(-1, num_stored)
    end_BM = torch.cat([end_stored_BW, begin_BN + visible_BTN.sum(1)], 1)
    # Queries with t / R < expiry, without the last of them if its mask is no more than a rounding error.
    lasts_BGM = torch.searchsorted(time_T, expiry_BGM.contiguous())
    last_mask_BGM = expiry_BGM - time_T[(lasts_BGM - 1).clamp_min(0)]
    lasts_BGM -= (last_mask_BGM <= SMALLEST_MASK).long()
    end_BGM = torch.minimum(lasts_BGM.clamp_min(0), end_BM.unsqueeze(1))
    return begin_BM.to(torch.int32), end_BGM.to(torch.int32)


def block_mask(
    begin_BM: Int[Tensor, "B M"],
    end_BGM: Int[Tensor, "B G M"],
    num_steps: int,
    seen: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
) -> BlockMask:
    """The tiles to compute: those in which something is seen, and of them those in which everything is.

    torch's own `create_block_mask` looks at every pair; this looks at each memory once per tile of queries.
    """
    num_memories = begin_BM.shape[1]
    first_I1 = torch.arange(0, num_steps, TILE, device=begin_BM.device).unsqueeze(1)
    padding = (0, -num_memories % TILE)
    begin_B11M = F.pad(begin_BM, padding)[:, None, None]
    end_BG1M = F.pad(end_BGM, padding).unsqueeze(2)
    some_BGIM = torch.maximum(begin_B11M, first_I1) < torch.minimum(end_BG1M, first_I1 + TILE)
    all_BGIM = (begin_B11M <= first_I1) & (end_BG1M >= first_I1 + TILE)
    tiles = (*some_BGIM.shape[:3], -1, TILE)
    full_BGIJ = all_BGIM.view(tiles).all(4)
    partial_BGIJ = some_BGIM.view(tiles).any(4) & ~full_BGIJ
    return BlockMask.from_kv_blocks(
        *_listed(partial_BGIJ),
        *_listed(full_BGIJ),
        BLOCK_SIZE=TILE,
        mask_mod=seen,
        seq_lengths=(num_steps, num_memories),
    )


def _listed(tiles_BGIJ: Bool[Tensor, "B G I J"]) -> tuple[Tensor, Tensor]:
    """How many tiles of memories each tile of queries has, and which: those come first."""
    order_BGIJ = tiles_BGIJ.to(torch.uint8).argsort(dim=3, descending=True, stable=True)
    return tiles_BGIJ.sum(3, dtype=torch.int32), order_BGIJ.to(torch.int32)
