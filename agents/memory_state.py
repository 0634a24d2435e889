"""What a memory transformer carries from one step to the next.

The state is explicit: the runner owns it, a rollout stores the one it began with, a checkpoint
writes it. A layer's memories lie in *slots*; a slot whose memory has expired is written over by
the next one, so every row of a batch deletes what it may delete, without moving the others. The
store is as wide as its fullest row (and a little headroom), whatever the maximum span.

Shape letters (logical dimensions, always in this order):
    B  rows of the batch (environments, text streams)
    W  slots of a layer's store
    D  model width
    H  attention heads
    K  size of one head
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NEVER = -(2**40)
"""Birth of an empty slot: so long ago that every span has passed. Ages stay exact in int64."""


@dataclass(slots=True)
class KeyValueCache:
    """What attention derives from the hidden states, valid for one version of the weights."""

    key_BHWK: Float[Tensor, "B H W K"]
    value_BHWK: Float[Tensor, "B H W K"]
    span_BW: Float[Tensor, "B W"]
    """e_i, in steps"""
    weights_version: tuple[int, ...]
    """in-place update counters of the weights the entries were computed with"""


@dataclass(slots=True)
class LayerMemory:
    """The memories of one layer: its earlier hidden states, each with its time of birth."""

    hidden_BWD: Float[Tensor, "B W D"]
    """h_i: the normalized input of the layer, detached"""
    birth_BW: Int[Tensor, "B W"]
    """clock reading at which the memory was written; `NEVER` marks an empty slot"""
    tag_BW: Int[Tensor, "B W"]
    """what the caller said about the step (0: nothing); never read by the model"""
    cache: KeyValueCache | None = None
    """keys, values and spans while acting; rebuilt whenever the weights have changed"""

    @property
    def num_slots(self) -> int:
        """W, the width of the store."""
        return self.birth_BW.shape[1]

    def select(self, rows: Tensor) -> LayerMemory:
        """The same memories for some rows only (a copy, without the cache)."""
        return LayerMemory(self.hidden_BWD[rows], self.birth_BW[rows], self.tag_BW[rows])

    def trimmed(self) -> LayerMemory:
        """Without the last slots that no row uses (views; the cache is left out)."""
        used = (self.birth_BW != NEVER).any(0).nonzero()
        end = int(used[-1]) + 1 if len(used) else 0
        return LayerMemory(self.hidden_BWD[:, :end], self.birth_BW[:, :end], self.tag_BW[:, :end])

    def clone(self) -> LayerMemory:
        """A copy that shares no storage."""
        cache = self.cache
        if cache is not None:
            cache = KeyValueCache(
                cache.key_BHWK.clone(), cache.value_BHWK.clone(), cache.span_BW.clone(), cache.weights_version
            )
        return LayerMemory(self.hidden_BWD.clone(), self.birth_BW.clone(), self.tag_BW.clone(), cache)

    def forget_rows(self, rows_B: Bool[Tensor, " B"]) -> None:
        """Empty every slot of the rows marked True (an episode begins there)."""
        self.birth_BW.masked_fill_(rows_B.unsqueeze(1), NEVER)

    def gather(self, slots_BV: Int[Tensor, "B V"]) -> LayerMemory:
        """Keep only the given slots of each row, in that order."""
        wide = slots_BV.unsqueeze(-1).expand(-1, -1, self.hidden_BWD.shape[-1])
        cache = self.cache
        if cache is not None:
            _, heads, _, size = cache.key_BHWK.shape
            per_head = slots_BV[:, None, :, None].expand(-1, heads, -1, size)
            cache = KeyValueCache(
                cache.key_BHWK.gather(2, per_head),
                cache.value_BHWK.gather(2, per_head),
                cache.span_BW.gather(1, slots_BV),
                cache.weights_version,
            )
        return LayerMemory(
            self.hidden_BWD.gather(1, wide),
            self.birth_BW.gather(1, slots_BV),
            self.tag_BW.gather(1, slots_BV),
            cache,
        )

    def grown(self, extra: int) -> LayerMemory:
        """The same memories with `extra` empty slots behind them."""

        def pad(tensor: Tensor, dim: int, value: int = 0) -> Tensor:
            shape = list(tensor.shape)
            shape[dim] = extra
            return torch.cat([tensor, tensor.new_full(shape, value)], dim)

        cache = self.cache
        if cache is not None:
            cache = KeyValueCache(
                pad(cache.key_BHWK, 2), pad(cache.value_BHWK, 2), pad(cache.span_BW, 1), cache.weights_version
            )
        return LayerMemory(pad(self.hidden_BWD, 1), pad(self.birth_BW, 1, NEVER), pad(self.tag_BW, 1), cache)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that takes memory, the cache included."""
        yield from (self.hidden_BWD, self.birth_BW, self.tag_BW)
        if self.cache is not None:
            yield from (self.cache.key_BHWK, self.cache.value_BHWK, self.cache.span_BW)


@dataclass(slots=True)
class MemoryState:
    """The memory of a whole transformer."""

    clock_B: Int[Tensor, " B"]
    """steps seen by each row so far; never reset, so births stay comparable"""
    layers: list[LayerMemory]
    steps_since_compaction: int = 0

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

    def without_caches(self) -> MemoryState:
        """The same memories; keys, values and spans will be derived anew."""
        return replace(self, layers=[replace(layer, cache=None) for layer in self.layers])

    def trimmed(self) -> MemoryState:
        """The same state in stores no wider than their last used slot."""
        return replace(self, layers=[layer.trimmed() for layer in self.layers])

    def to(self, device: torch.device | str) -> MemoryState:
        """The state on another device; the cache is rebuilt there."""
        layers = [
            LayerMemory(layer.hidden_BWD.to(device), layer.birth_BW.to(device), layer.tag_BW.to(device))
            for layer in self.layers
        ]
        return MemoryState(self.clock_B.to(device), layers, self.steps_since_compaction)

    def state_dict(self) -> dict[str, Tensor]:
        """A flat dictionary of tensors, all that a checkpoint needs."""
        flat = {"clock": self.clock_B, "steps_since_compaction": torch.tensor(self.steps_since_compaction)}
        for index, layer in enumerate(self.layers):
            for part in fields(LayerMemory):
                if part.name != "cache":
                    flat[f"{index}.{part.name}"] = getattr(layer, part.name)
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
            parts: dict[str, Any] = {
                part.name: flat[f"{index}.{part.name}"]
                for part in fields(LayerMemory)
                if part.name != "cache"
            }
            layers.append(LayerMemory(**parts))
        return cls(flat["clock"], layers, int(flat["steps_since_compaction"]))
