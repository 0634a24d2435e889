"""The memory of a transformer, carried from one step to the next.

The state is explicit: its caller owns it, a rollout stores its initial one, a checkpoint contains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memory_suite.agents.model.store.base import Store
from memory_suite.agents.model.store.rows import NEVER, RowStore

_TENSORS = ("hidden_BWD", "birth_BW", "tag_BW", "pooled_BW")
"""Names of a store's tensors in `state_dict`, in the order of `RowStore.tensors`."""


class SpanBounds(NamedTuple):
    """Bounds of learned spans for each row, in steps; None: no bound."""

    limit_B1: Float[Tensor, "B 1"] | None = None
    """upper bound (random span shortening)"""
    floor_B1: Float[Tensor, "B 1"] | None = None
    """lower bound, which wins over the upper one"""

    def apply(self, span_BGT: Float[Tensor, "_ G T"], store: Store) -> Float[Tensor, "_ G T"]:
        """The spans of all slots of a store, within the bounds."""
        if self.limit_B1 is not None:
            span_BGT = torch.minimum(span_BGT, store.expand_to_pages(self.limit_B1).unsqueeze(1))
        if self.floor_B1 is not None:
            span_BGT = torch.maximum(span_BGT, store.expand_to_pages(self.floor_B1).unsqueeze(1))
        return span_BGT


@dataclass(slots=True)
class MemoryState:
    """The memory of a whole transformer."""

    clock_B: Int[Tensor, " B"]
    """number of steps of each row; never reset, so births stay comparable"""
    layers: list[Store]
    steps_since_compaction: int = 0
    span_floor_B: Float[Tensor, " B"] | None = None
    """lower bound of learned spans of each row, in steps; None: none"""

    def bounds(self, span_limit_B1: Float[Tensor, "B 1"] | None) -> SpanBounds:
        """The bounds of spans in a step with this upper bound."""
        return SpanBounds(
            span_limit_B1, None if self.span_floor_B is None else self.span_floor_B.unsqueeze(1)
        )

    @property
    def retained_NB(self) -> Int[Tensor, "N B"]:
        """Number of memories per layer and row."""
        counts = [layer.sum_pages((layer.slots.birth_BT != NEVER).sum(1)) for layer in self.layers]
        return torch.stack(counts) if counts else self.clock_B.new_zeros(0, self.batch_size)

    @property
    def retained_B(self) -> Int[Tensor, " B"]:
        """Number of memories per row, summed over layers."""
        return self.retained_NB.sum(0)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.clock_B.shape[0]

    @property
    def bytes_held(self) -> int:
        """Bytes of all tensors of the state, empty slots included."""
        clock_bytes = self.clock_B.numel() * self.clock_B.element_size()
        return clock_bytes + sum(
            t.numel() * t.element_size() for layer in self.layers for t in layer.tensors()
        )

    def clone(self) -> MemoryState:
        """A copy that shares no storage, to keep a state that `step` updates in place."""
        return replace(self, clock_B=self.clock_B.clone(), layers=[layer.clone() for layer in self.layers])

    def select(self, rows: Tensor) -> MemoryState:
        """The state of some rows only, as a batch of its own (a copy)."""
        floor_B = None if self.span_floor_B is None else self.span_floor_B[rows]
        layers = [layer.select(rows) for layer in self.layers]
        return MemoryState(self.clock_B[rows], layers, span_floor_B=floor_B)

    @staticmethod
    def cat(states: Sequence[MemoryState]) -> MemoryState:
        """Concatenate the rows of several states, in stores as wide as the widest."""
        layers: list[Store] = []
        for parts in zip(*(state.layers for state in states), strict=True):
            stores = [part.to_rows() for part in parts]
            width = max(store.num_slots for store in stores)
            wide = [store.padded(width - store.num_slots).tensors() for store in stores]
            layers.append(RowStore(*(torch.cat(tensors) for tensors in zip(*wide, strict=True))))
        floors = [state.span_floor_B for state in states if state.span_floor_B is not None]
        floor_B = torch.cat(floors) if floors else None  # all states have one, or none has
        return MemoryState(torch.cat([state.clock_B for state in states]), layers, span_floor_B=floor_B)

    def to_rows(self) -> MemoryState:
        """The same state without pages."""
        return replace(self, layers=[layer.to_rows() for layer in self.layers])

    def trimmed(self) -> MemoryState:
        """The same state, without pages and without slots that no row uses."""
        return replace(self, layers=[layer.to_rows().trimmed() for layer in self.layers])

    def to(self, device: torch.device | str) -> MemoryState:
        """The state on another device."""
        layers: list[Store] = [layer.to_rows().map(lambda part: part.to(device)) for layer in self.layers]
        floor_B = None if self.span_floor_B is None else self.span_floor_B.to(device)
        return MemoryState(self.clock_B.to(device), layers, self.steps_since_compaction, floor_B)

    def state_dict(self) -> dict[str, Tensor]:
        """All of the state as a flat dictionary of tensors."""
        flat = {"clock": self.clock_B, "steps_since_compaction": torch.tensor(self.steps_since_compaction)}
        if self.span_floor_B is not None:
            flat["span_floor"] = self.span_floor_B
        for index, layer in enumerate(self.layers):
            for name, tensor in zip(_TENSORS, layer.to_rows().tensors(), strict=True):
                flat[f"{index}.{name}"] = tensor
        return flat

    @classmethod
    def from_state_dict(cls, flat: dict[str, Tensor]) -> MemoryState:
        """The state that `state_dict` wrote.

        Raises:
            KeyError: a part is missing.
        """
        num_layers = len({name.split(".")[0] for name in flat if "." in name})
        layers: list[Store] = [
            RowStore(*(flat[f"{index}.{name}"] for name in _TENSORS)) for index in range(num_layers)
        ]
        return cls(flat["clock"], layers, int(flat["steps_since_compaction"]), flat.get("span_floor"))
