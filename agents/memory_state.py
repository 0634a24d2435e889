"""What a memory transformer carries from one step to the next.

The state is explicit: the runner owns it, a rollout stores the one it began with, a checkpoint
writes it. A layer's memories lie in *slots*; a slot whose memory has expired is written over by
the next one, so every row of a batch deletes what it may delete, without moving the others. The
store is as wide as its fullest row (and a little headroom), whatever the maximum span.

Shape letters (logical dimensions, always in this order):
    B  rows of the batch (environments, text streams)
    W  slots of a layer's store
    D  model width
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEVER = -(2**40)
"""Birth of an empty slot: so long ago that every span has passed. Ages stay exact in int64."""

_TENSORS = ("hidden_BWD", "birth_BW", "tag_BW", "pooled_BW")
"""names of a layer's tensors, in their order"""


@dataclass(slots=True)
class LayerMemory:
    """The memories of one layer: its earlier hidden states, each with its time of birth."""

    hidden_BWD: Float[Tensor, "B W D"]
    """h_i: the normalized input of the layer, detached"""
    birth_BW: Int[Tensor, "B W"]
    """clock reading at which the memory was written; `NEVER` marks an empty slot"""
    tag_BW: Int[Tensor, "B W"]
    """what the caller said about the step (0: nothing); never read by the model"""
    pooled_BW: Bool[Tensor, "B W"]
    """whether it has taken the place of several others; then its birth is that of the youngest, at most"""
    free_slots: int = field(default=0, kw_only=True)
    """at least so many slots of every row are free, as far as is known without a look: a look at a GPU is a
    wait for it. A store made from others knows nothing (0)"""

    @property
    def num_slots(self) -> int:
        """W, the width of the store."""
        return self.birth_BW.shape[1]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Every tensor that takes memory."""
        return self.hidden_BWD, self.birth_BW, self.tag_BW, self.pooled_BW

    def each(self, change: Callable[[Tensor], Tensor]) -> LayerMemory:
        """The same change made to every tensor."""
        return LayerMemory(*map(change, self.tensors()))

    @staticmethod
    def joined(memories: Sequence[LayerMemory]) -> LayerMemory:
        """The slots of several stores side by side (a copy)."""
        parts = zip(*(memory.tensors() for memory in memories), strict=True)
        return LayerMemory(*(torch.cat(part, 1) for part in parts))

    def select(self, rows: Tensor) -> LayerMemory:
        """The same memories for some rows only (a copy)."""
        return self.each(lambda part: part.index_select(0, rows))

    def split(self, size: int) -> list[LayerMemory]:
        """So many rows each, every part as narrow as its fullest row allows (views)."""
        rows = zip(*(torch.split(part, size) for part in self.tensors()), strict=True)
        return [LayerMemory(*part).trimmed() for part in rows]

    def trimmed(self) -> LayerMemory:
        """Without the last slots that no row uses (views)."""
        used = (self.birth_BW != NEVER).any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        return self.each(lambda part: part[:, :end])

    def clone(self) -> LayerMemory:
        """A copy that shares no storage."""
        return self.each(Tensor.clone)

    def without_rows(self, rows_B: Bool[Tensor, " B"]) -> LayerMemory:
        """With every slot of the rows marked True empty (an episode begins there); the rest is shared."""
        return replace(self, birth_BW=self.birth_BW.masked_fill(rows_B.unsqueeze(1), NEVER))

    def gather(self, slots_BV: Int[Tensor, "B V"], birth_BV: Int[Tensor, "B V"]) -> LayerMemory:
        """Keep only the given slots of each row, in that order, with these times of birth."""
        batch, num_slots, width = self.hidden_BWD.shape
        first_B1 = num_slots * torch.arange(batch, device=slots_BV.device).unsqueeze(1)
        place_N = (first_B1 + slots_BV).flatten()  # whole rows are copied faster than numbers are gathered
        return LayerMemory(
            self.hidden_BWD.flatten(0, 1).index_select(0, place_N).view(batch, slots_BV.shape[1], width),
            birth_BV,
            self.tag_BW.gather(1, slots_BV),
            self.pooled_BW.gather(1, slots_BV),
        )

    def grown(self, extra: int) -> LayerMemory:
        """The same memories with `extra` empty slots behind them."""
        return LayerMemory(
            F.pad(self.hidden_BWD, (0, 0, 0, extra)),
            F.pad(self.birth_BW, (0, extra), value=NEVER),
            F.pad(self.tag_BW, (0, extra)),
            F.pad(self.pooled_BW, (0, extra)),
            free_slots=self.free_slots + extra,
        )


@dataclass(slots=True)
class MemoryState:
    """The memory of a whole transformer."""

    clock_B: Int[Tensor, " B"]
    """steps seen by each row so far; never reset, so births stay comparable"""
    layers: list[LayerMemory]
    steps_since_compaction: int = 0

    @property
    def retained_B(self) -> Int[Tensor, " B"]:
        """Memories of each row, summed over layers."""
        return sum(
            ((layer.birth_BW != NEVER).sum(1) for layer in self.layers), torch.zeros_like(self.clock_B)
        )

    @property
    def batch_size(self) -> int:
        """B."""
        return self.clock_B.shape[0]

    @property
    def bytes_held(self) -> int:
        """Bytes of every tensor in the state, empty slots included."""
        own = self.clock_B.numel() * self.clock_B.element_size()
        return own + sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors())

    def clone(self) -> MemoryState:
        """A copy that shares no storage: `step` works in place, so keep one of these to go back."""
        return replace(self, clock_B=self.clock_B.clone(), layers=[layer.clone() for layer in self.layers])

    def select(self, rows: Tensor) -> MemoryState:
        """The state of some rows only, as a batch of its own (a copy)."""
        return MemoryState(self.clock_B[rows], [layer.select(rows) for layer in self.layers])

    @staticmethod
    def joined(states: Sequence[MemoryState]) -> MemoryState:
        """The rows of several states, one after another, in stores as wide as the widest."""
        layers = []
        for parts in zip(*(state.layers for state in states), strict=True):
            width = max(part.num_slots for part in parts)
            wide = [part.grown(width - part.num_slots).tensors() for part in parts]
            layers.append(LayerMemory(*(torch.cat(tensors) for tensors in zip(*wide, strict=True))))
        return MemoryState(torch.cat([state.clock_B for state in states]), layers)

    def trimmed(self) -> MemoryState:
        """The same state in stores no wider than their last used slot."""
        return replace(self, layers=[layer.trimmed() for layer in self.layers])

    def to(self, device: torch.device | str) -> MemoryState:
        """The state on another device."""
        layers = [layer.each(lambda part: part.to(device)) for layer in self.layers]
        return MemoryState(self.clock_B.to(device), layers, self.steps_since_compaction)

    def state_dict(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, all that a checkpoint needs."""
        flat = {"clock": self.clock_B, "steps_since_compaction": torch.tensor(self.steps_since_compaction)}
        for index, layer in enumerate(self.layers):
            for name, tensor in zip(_TENSORS, layer.tensors(), strict=True):
                flat[f"{index}.{name}"] = tensor
        return flat

    @classmethod
    def from_state_dict(cls, flat: dict[str, Tensor]) -> MemoryState:
        """The state that `state_dict` wrote.

        Raises:
            KeyError: a part is missing.
        """
        num_layers = len({name.split(".")[0] for name in flat if "." in name})
        layers = []
        for index in range(num_layers):
            layers.append(LayerMemory(*(flat[f"{index}.{name}"] for name in _TENSORS)))
        return cls(flat["clock"], layers, int(flat["steps_since_compaction"]))
