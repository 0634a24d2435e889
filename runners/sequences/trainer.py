"""Block-wise training on a stream: memory is carried from block to block, gradients are cut there."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.retention.penalty import PenaltySpec
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import IGNORE, Stream
from memory_suite.runners.sequences.evaluation import span_limit, to_device

BETA1 = 0.9
"""decay of Adam's first moment"""
DECAYED_DIMENSIONS = 2
"""weight decay is for matrices: parameters of at least so many dimensions"""


class TrainingFaultError(RuntimeError):
    """Training cannot go on; the message says where it stood and what to change."""


class UpdateReport(NamedTuple):
    """What an update did."""

    loss: float
    """nats per scored target, all ranks; not a number, as accuracy, if nothing was scored"""
    accuracy: float
    targets: int
    """scored, all ranks"""
    gradient_norm: float
    """before it was cut"""
    learning_rate: float
    penalty_weight: float
    """alpha"""
    retained_LB: np.ndarray[Any, np.dtype[np.int64]]
    """memories after the update, of the rows of all ranks"""
    spans: list[np.ndarray[Any, np.dtype[np.float32]]]
    """e_i of the memories written in the last block, per layer, in steps; of the rows of all ranks"""
    bytes_held: int
    """by the memory of all ranks"""


class SequenceTrainer:
    """A model, its optimizer, its place in the stream and its memories."""

    def __init__(
        self, config: SequenceConfig, model: SequenceModel, stream: Stream, ranks: DistributedContext
    ) -> None:
        """Begin; every rank must have been given a model with the same weights."""
        self.config, self.model, self.stream, self.ranks = config, model, stream, ranks
        self.device = model.head.weight.device
        self.updates = 0
        """done so far"""
        self.state = model.initial_state(len(stream.rows))
        matrices = [p for p in model.parameters() if p.dim() >= DECAYED_DIMENSIONS]
        others = [p for p in model.parameters() if p.dim() < DECAYED_DIMENSIONS]
        chosen = config.optimizer
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": chosen.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=chosen.learning_rate,
            betas=(BETA1, chosen.beta2),
            fused=True,
        )

    @property
    def tokens(self) -> int:
        """Read so far, all ranks together."""
        return self.updates * self.config.tokens_per_update

    @property
    def done(self) -> bool:
        """Whether all updates have been made."""
        return self.updates >= self.config.total_updates

    def learning_rate(self) -> float:
        """Of the next update: linear warm-up, then the schedule."""
        chosen, total = self.config.optimizer, self.config.total_updates
        if self.updates < chosen.warmup_updates:
            return chosen.learning_rate * (self.updates + 1) / chosen.warmup_updates
        progress = (self.updates - chosen.warmup_updates) / max(1, total - chosen.warmup_updates)
        match chosen.schedule:
            case "cosine":
                return chosen.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
            case "linear":
                return chosen.learning_rate * (1.0 - progress)
            case "constant":
                return chosen.learning_rate

    def update(self) -> UpdateReport:
        """Read `accumulation` blocks and take one step.

        Raises:
            TrainingFaultError: the loss or the gradient is not finite, or memory has run out. The weights
                are those of before.
        """
        try:
            return self._update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingFaultError(self._out_of_memory(error)) from None
        except RuntimeError as error:
            if "not enough memory" not in str(error):
                raise
            raise TrainingFaultError(self._out_of_memory(error)) from None

    def _update(self) -> UpdateReport:
        config, model = self.config, self.model
        blocks = [
            to_device(self.stream.read(config.block_size), self.device) for _ in range(config.accumulation)
        ]
        scored_here = torch.stack([(targets != IGNORE).sum() for _, targets, _ in blocks]).sum()
        num_targets = int(self.ranks.all_reduce_sum(scored_here))
        # Summed over blocks and ranks, the losses divided by this are the mean over all scored targets.
        divisor = max(1, num_targets)
        weight = config.penalty.weight if self.updates >= config.penalty.begin_updates else 0.0
        kind = self._penalty_kind(weight)
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        state = self.state
        totals = torch.zeros(2, dtype=torch.float64)
        spans: list[np.ndarray[Any, np.dtype[np.float32]]] = []
        for tokens, targets, first in blocks:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                scored = targets != IGNORE
                output = model.block(
                    tokens, state, first, self._limit(tokens), penalty=kind, ablation_mask_BW=scored
                )
                logits = model.predict(output.y_BWD[scored]).float()
            loss_sum = F.cross_entropy(logits, targets[scored], reduction="sum")
            objective = loss_sum / divisor
            if kind is not None:
                share = len(tokens) / (config.num_rows * config.accumulation)  # of rows, and of blocks
                objective = objective + weight * share * model.penalty(output, kind, scored)
            objective.backward()  # type: ignore[no-untyped-call]
            assert output.state is not None
            state = output.state
            spans = [report.span_BGW.detach().float().cpu().numpy() for report in output.reports]
            correct = (logits.detach().argmax(-1) == targets[scored]).sum()
            totals += torch.stack([loss_sum.detach().double().cpu(), correct.double().cpu()])
        self.ranks.all_reduce_sum(totals)
        self.ranks.all_reduce_gradients(model.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm))
        loss, accuracy = (totals / divisor).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingFaultError(
                f"update {self.updates + 1}: the loss is {loss:g} and the gradient's norm {norm:g}; "
                "a smaller optimizer.learning_rate or a longer optimizer.warmup_updates may help"
            )
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state = state
        self.updates += 1
        held = self.ranks.all_gather_object((state.retained_NB.cpu().numpy(), spans, state.bytes_held))
        retained_of_ranks, spans_of_ranks, bytes_of_ranks = zip(*held, strict=True)
        return UpdateReport(
            loss if num_targets else math.nan,
            accuracy if num_targets else math.nan,
            num_targets,
            norm,
            rate,
            weight,
            np.concatenate(retained_of_ranks, 1),
            [np.concatenate(parts) for parts in zip(*spans_of_ranks, strict=True)],
            sum(bytes_of_ranks),
        )

    def _penalty_kind(self, weight: float) -> PenaltySpec | None:
        """Which penalty to compute, if any."""
        chosen = self.config.penalty
        if not self.model.transformer.learns_spans or not chosen.weight:
            return None
        if chosen.use_weight:
            use_weight = chosen.use_weight if weight else 0.0
            return PenaltySpec(chosen.form, chosen.cap_steps, use_weight, chosen.use_margin)
        return PenaltySpec(chosen.form, chosen.cap_steps) if weight else None

    def _limit(self, tokens: Tensor) -> Tensor | None:
        """Random span shortening (released code): one draw for all rows of a block, and for all ranks."""
        if not self.config.memory.random_shortening or not self.model.transformer.learns_spans:
            return None
        return span_limit(self.config.memory.max_span * torch.rand(()).item(), tokens)

    def _out_of_memory(self, error: BaseException) -> str:
        held = self.state.bytes_held / 2**20
        return (
            f"update {self.updates + 1}: out of memory ({' '.join(str(error).split())[:200]}); the memories "
            f"held {held:,.0f} MiB, {int(self.state.retained_B.max())} a row. Lower num_rows or block_size, "
            "raise penalty.weight, or lower memory.initial_span_fraction"
        )

    # -- exact continuation ------------------------------------------------------------------------

    def state_tree(self) -> dict[str, Any] | None:
        """Everything that a later `load_state_tree` needs, from all ranks; None on ranks but the first."""
        shards = self.ranks.gather_object(
            {
                "stream": self.stream.state_dict(),
                "memory": self.state.to("cpu").state_dict(),
                "random": random_state(self.device),
            }
        )
        if not shards:
            return None
        return {
            "model": self.model.state_dict(),
            "optimizer": {
                "state": {str(key): value for key, value in self.optimizer.state_dict()["state"].items()}
            },
            "updates": self.updates,
            "shards": shards,
        }

    def load_state_tree(self, tree: dict[str, Any]) -> None:
        """Go on where `state_tree` was called; another number of ranks takes over the rows as they were.

        Raises:
            ValueError: it is of another task, argument, batch or file.
        """
        self.model.load_state_dict(tree["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {int(key): value for key, value in tree["optimizer"]["state"].items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.updates = int(tree["updates"])
        shards = tree["shards"]
        self.stream.load_state_dict(_stream_share([shard["stream"] for shard in shards], self.stream))
        memories = [MemoryState.from_state_dict(shard["memory"]) for shard in shards]
        rows = torch.tensor(list(self.stream.rows))
        self.state = MemoryState.cat(memories).select(rows).trimmed().to(self.device)
        # All ranks draw the same: the limit and the layers dropped must not differ between them.
        set_random_state(shards[0]["random"], self.device)


def _stream_share(states: list[dict[str, Any]], stream: Stream) -> dict[str, Any]:
    """The part of a stream's state, gathered from ranks, that belongs to the rows read here."""
    whole = states[0]
    if not whole["inner"]:
        return _with_rows(whole, stream)
    rows = [row for state in states for row in state["inner"]["rows"]]
    chosen = {"rows": rows[stream.rows.start : stream.rows.stop]}
    return {**_with_rows(whole, stream), "inner": chosen}


def _with_rows(state: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """The state as if it had been taken from a reader of the same rows as `stream`."""
    identity = {**state["stream"], "first_row": stream.rows.start, "end_row": stream.rows.stop}
    return {**state, "stream": identity}
