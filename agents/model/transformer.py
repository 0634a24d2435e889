"""A causal transformer whose layers remember earlier steps and forget them again.

Pre-norm layers. Each layer attends over its own earlier inputs h_i, never over the step itself. A memory is
deleted when its span ends; the layer's `Retention` decides the span. `step` takes one step (acting), `block`
takes many at once (learning, language modelling); they compute the same numbers. There is no reinforcement
learning here, and no buffer has the size of an episode or of the maximum span.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memory_suite.agents.model.attention.leave_one_out import Ablation
from memory_suite.agents.model.layer import BlockReport, MemoryDetail, MemoryLayer, StepReport
from memory_suite.agents.model.settings import PenaltySpec, TransformerSettings
from memory_suite.agents.model.store.base import Store
from memory_suite.agents.model.store.block_view import BlockView
from memory_suite.agents.model.store.state import MemoryState

COMPACTION_INTERVAL_STEPS = 64
"""Number of steps after which `step` compacts the stores."""


class StepOutput(NamedTuple):
    """Output of `MemoryTransformer.step`."""

    y_BD: Float[Tensor, "B D"]
    state: MemoryState
    reports: list[StepReport]


class BlockOutput(NamedTuple):
    """Output of `MemoryTransformer.block`."""

    y_BWD: Float[Tensor, "B W D"]
    state: MemoryState | None
    """None if `need_state` is False"""
    reports: list[BlockReport]
    ablation: Ablation | None = None
    """outputs without single memories, if the penalty needs them"""

    def span_penalty(self) -> Float[Tensor, ""]:
        """The span penalty of all layers, averaged over rows, without its usefulness term."""
        costs = [report.penalty_B.mean() for report in self.reports if report.penalty_B is not None]
        return torch.stack(costs).sum() if costs else self.y_BWD.new_zeros(())

    def penalty(
        self, spec: PenaltySpec, divergence: Callable[[Tensor], Tensor], *, num_heads: int
    ) -> Float[Tensor, ""]:
        """Compute the span penalty of all layers, averaged over rows, with its usefulness term.

        Args:
            spec: the `penalty` that `block` was given.
            divergence: see `Ablation.cost`.
            num_heads: number of heads of each layer.
        """
        total = self.span_penalty()
        if self.ablation is None:
            return total
        assert spec.use_weight is not None
        num_steps = self.y_BWD.shape[0] * self.y_BWD.shape[1]
        usefulness = self.ablation.cost(divergence, num_heads=num_heads, num_steps=num_steps)
        return total + spec.use_weight * usefulness


class MemoryTransformer(nn.Module):
    """A stack of `MemoryLayer`, with its memory as explicit state."""

    def __init__(self, settings: TransformerSettings) -> None:
        """Build the stack; raises ValueError for an invalid setting."""
        super().__init__()
        if not 0.0 <= settings.layer_drop < 1.0:
            raise ValueError(f"layer_drop must lie in [0, 1), got {settings.layer_drop}")
        self.settings = settings
        self.layers: Sequence[MemoryLayer] = nn.ModuleList(  # type: ignore[assignment]
            MemoryLayer(settings) for _ in range(settings.num_layers)
        )
        self.final_norm = nn.LayerNorm(settings.width)

    @property
    def learns_spans(self) -> bool:
        """Whether spans are learned, so that they can have a penalty and be shortened."""
        return any(layer.retention.learns for layer in self._remembering())

    @property
    def short_term_window(self) -> int:
        """Number of steps that every memory lasts."""
        return max((layer.retention.short_term_window for layer in self._remembering()), default=0)

    def initial_state(self, batch: int) -> MemoryState:
        """Empty memories for `batch` rows."""
        device = self.final_norm.weight.device
        layers: list[Store] = [layer.initial_memory(batch) for layer in self._remembering()]
        return MemoryState(torch.zeros(batch, dtype=torch.long, device=device), layers)

    @torch.no_grad()
    def step(
        self,
        x_BD: Float[Tensor, "B D"],
        state: MemoryState,
        episode_start_B: Bool[Tensor, " B"],
        span_limit_B1: Float[Tensor, "B 1"] | None = None,
        *,
        cue_B: Int[Tensor, " B"] | None = None,
        write: bool = True,
        details: list[MemoryDetail] | None = None,
    ) -> StepOutput:
        """Take one step, without gradients.

        Args:
            x_BD: embedded inputs.
            state: memories so far; updated in place (`clone()` it to keep it). `compact` it before the
                weights change, or expired memories may become visible again and be overwritten.
            episode_start_B: True where an episode begins with this step; the row deletes all its memories.
            span_limit_B1: upper bound of learned spans in this step, in steps.
            cue_B: a number to store with each new memory; the model never reads it.
            write: False leaves the state as it is.
            details: a list to which the details of each layer are appended.
        """
        assert span_limit_B1 is None or self.learns_spans
        if write and state.steps_since_compaction >= COMPACTION_INTERVAL_STEPS:
            state = self._paged(self.compact(state, span_limit_B1))
        bounds = state.bounds(span_limit_B1)
        reports = []
        for index, layer in enumerate(self.layers):
            if not self.settings.remembers:
                x_BD = layer.feedforward(x_BD)
                continue
            memory = state.layers[index].reset_rows(episode_start_B)
            if details is not None:
                memory = memory.to_rows()
            x_BD, memory, report = layer.step(
                x_BD, memory, state.clock_B, bounds, cue_B, write=write, details=details
            )
            if write:
                state.layers[index] = memory
            reports.append(report)
        if write:
            state.clock_B += 1
            state.steps_since_compaction += 1
        return StepOutput(self.final_norm(x_BD), state, reports)

    def block(
        self,
        x_BWD: Float[Tensor, "B W D"],
        state: MemoryState,
        episode_start_BW: Bool[Tensor, "B W"],
        span_limit_BW: Float[Tensor, "B W"] | None = None,
        *,
        cue_BW: Int[Tensor, "B W"] | None = None,
        penalty: PenaltySpec | None = None,
        ablation_mask_BW: Bool[Tensor, "B W"] | None = None,
        detach_spans: bool = False,
        need_state: bool = True,
        limit_forgets: bool = True,
    ) -> BlockOutput:
        """Take W steps at once, with gradients (cut at the block's beginning).

        Args:
            x_BWD: embedded inputs.
            state: memories before the block; left as it is.
            episode_start_BW: True where an episode begins.
            span_limit_BW: upper bound of learned spans, in steps; constant in an episode.
            cue_BW: a number to store with each new memory.
            penalty: span penalty to compute; None: none.
            ablation_mask_BW: steps at which memories are ablated, if the penalty needs it; None: all.
            detach_spans: pass no gradient from the output to spans; a penalty with a usefulness term never
                does.
            need_state: False skips the deletion and storage of memories.
            limit_forgets: False keeps memories that only the limit hides; the next block has its own limit.
        """
        assert span_limit_BW is None or self.learns_spans
        if penalty is not None and penalty.use_weight is not None:
            detach_spans = True  # spans learn from the ablation of memories
        view = BlockView.of(
            state,
            episode_start_BW,
            span_limit_BW,
            cue_BW,
            ablation_mask_BW,
            detach_spans=detach_spans,
            dtype=x_BWD.dtype,
        )
        view_without_limit = view if limit_forgets else replace(view, span_limit_BW=None)
        layers: list[Store] = []
        reports = []
        ablation: Ablation | None = None
        for index, layer in enumerate(self.layers):
            skipped = self.training and bool(torch.rand(()) < self.settings.layer_drop)
            if not self.settings.remembers:
                x_BWD = x_BWD if skipped else layer.feedforward(x_BWD)
                continue
            memory = state.layers[index].to_rows()
            y_BWD, h_BWD, report, layer_ablation = layer.block(x_BWD, memory, view, penalty, ablation)
            if not skipped:
                x_BWD, ablation = y_BWD, layer_ablation
            elif penalty is not None and penalty.needs_ablation:
                report = report._replace(penalty_B=None)  # its memories are not ablated
            reports.append(report)
            if need_state:
                # Exactly the memories that the next block does not see must be deleted.
                with torch.no_grad(), torch.autocast(x_BWD.device.type, enabled=False):
                    layers.append(layer.after_block(memory, h_BWD, view_without_limit))
        new_state = None
        if need_state:
            clock_B = state.clock_B + x_BWD.shape[1]
            new_state = replace(state, clock_B=clock_B, layers=layers, steps_since_compaction=0)
        if ablation is not None:
            with torch.no_grad():
                ablation = ablation._replace(y_NTD=self.final_norm(ablation.y_NTD))
        return BlockOutput(self.final_norm(x_BWD), new_state, reports, ablation)

    @torch.no_grad()
    def compact(self, state: MemoryState, span_limit_B1: Float[Tensor, "B 1"] | None = None) -> MemoryState:
        """Delete the memories that have expired under the present weights, and narrow the stores."""
        layers: list[Store] = [
            layer.compacted(memory, state.clock_B, state.bounds(span_limit_B1))
            for layer, memory in zip(self._remembering(), state.layers, strict=True)
        ]
        return replace(state, layers=layers, steps_since_compaction=0)

    def for_acting(self, state: MemoryState) -> MemoryState:
        """A copy of a compacted state for `step` to update, in the layout in which steps are fastest."""
        state = state.to_rows()
        pairs = zip(self._paged(state).layers, state.layers, strict=True)
        layers = [store.clone() if store is memory else store for store, memory in pairs]
        return replace(state, clock_B=state.clock_B.clone(), layers=layers)

    def _paged(self, state: MemoryState) -> MemoryState:
        layers = [
            layer.paged(memory.to_rows())
            for layer, memory in zip(self._remembering(), state.layers, strict=True)
        ]
        return replace(state, layers=layers)

    def _remembering(self) -> list[MemoryLayer]:
        """The layers that have a memory: all, or none in the memory-free baseline."""
        return [layer for layer in self.layers if layer.remembers]
