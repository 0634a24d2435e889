"""Block-wise training on a stream: memory is carried from block to block, gradients are truncated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.settings import PenaltySpec
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import IGNORE, Stream
from memory_suite.runners.sequences.evaluation import span_limit, to_device

BETA1 = 0.9
"""decay of Adam's first moment"""
DECAYED_DIMENSIONS = 2
"""least number of dimensions of parameters with weight decay, which is for matrices"""


Spans = np.ndarray[Any, np.dtype[np.float32]]
"""spans e_i of one layer, in steps"""


class TrainingFailedError(RuntimeError):
    """Training cannot continue; the message names the update and the options to change."""


class UpdateReport(NamedTuple):
    """Results of an update."""

    loss: float
    """nats per scored target, all ranks; nan, as accuracy, if nothing was scored"""
    accuracy: float
    targets: int
    """scored targets, all ranks"""
    gradient_norm: float
    """before clipping"""
    learning_rate: float
    penalty_weight: float
    """alpha"""
    retained_NB: np.ndarray[Any, np.dtype[np.int64]]
    """memories of each layer and row after the update, rows of all ranks"""
    spans: list[Spans]
    """spans e_i (steps) of the memories written in the last block, per layer, rows of all ranks"""
    bytes_held: int
    """bytes of the memory of all ranks"""


class SequenceTrainer:
    """A model, its optimizer, its position in the stream and its memory."""

    def __init__(
        self, config: SequenceConfig, model: SequenceModel, stream: Stream, ranks: DistributedContext
    ) -> None:
        """Create the optimizer and an empty memory; weights must be equal on all ranks."""
        self.config, self.model, self.stream, self.ranks = config, model, stream, ranks
        self.device = model.head.weight.device
        self.updates = 0
        """updates made"""
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
        """Tokens read, all ranks together."""
        return self.updates * self.config.tokens_per_update

    @property
    def done(self) -> bool:
        """Whether all updates have been made."""
        return self.updates >= self.config.total_updates

    def learning_rate(self) -> float:
        """Learning rate of the next update: linear warm-up, then the schedule."""
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
            TrainingFailedError: the loss or the gradient is not finite, or memory has run out. The weights
                are unchanged.
        """
        try:
            return self._update()
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrainingFailedError(self._out_of_memory(error)) from None
        except RuntimeError as error:
            if "not enough memory" not in str(error):
                raise
            raise TrainingFailedError(self._out_of_memory(error)) from None

    def _update(self) -> UpdateReport:
        config, model = self.config, self.model
        blocks = [
            to_device(self.stream.read(config.block_size), self.device) for _ in range(config.accumulation)
        ]
        scored_here = torch.stack([(targets != IGNORE).sum() for _, targets, _ in blocks]).sum()
        num_targets = int(self.ranks.all_reduce_sum(scored_here))
        # Losses divided by this and summed over blocks and ranks are the mean over all scored targets.
        divisor = max(1, num_targets)
        weight = config.penalty.weight if self.updates >= config.penalty.begin_updates else 0.0
        model.train()
        self.optimizer.zero_grad(set_to_none=True)
        state, totals, spans = self._backward(blocks, divisor, weight)
        self.ranks.all_reduce_sum(totals)
        self.ranks.all_reduce_gradients(model.parameters())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.max_grad_norm))
        loss, accuracy = (totals / divisor).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingFailedError(
                f"update {self.updates + 1}: the loss is {loss:g} and the gradient's norm {norm:g}; "
                "a smaller optimizer.learning_rate or a longer optimizer.warmup_updates may help"
            )
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.state = state
        self.updates += 1
        return self._report(
            spans,
            loss=loss if num_targets else math.nan,
            accuracy=accuracy if num_targets else math.nan,
            targets=num_targets,
            gradient_norm=norm,
            learning_rate=rate,
            penalty_weight=weight,
        )

    def _backward(
        self, blocks: list[tuple[Tensor, Tensor, Tensor]], divisor: int, weight: float
    ) -> tuple[MemoryState, Tensor, list[Spans]]:
        """Accumulate the gradients of all blocks.

        Args:
            blocks: tokens, targets and flags of first tokens.
            divisor: number of targets that losses are divided by.
            weight: weight of the span penalty.

        Returns:
            The memory after the blocks, the sums of loss and correct answers, and the last block's spans.
        """
        config, model, state = self.config, self.model, self.state
        penalty = self._penalty_spec(weight)
        # Share of this rank's block in all rows and blocks of the update.
        share = len(self.stream.rows) / (config.num_rows * config.accumulation)
        totals = torch.zeros(2, dtype=torch.float64)
        spans: list[Spans] = []
        for tokens, targets, is_first in blocks:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                scored = targets != IGNORE
                limit = self._span_limit(tokens)
                output = model.block(tokens, state, is_first, limit, penalty=penalty, ablation_mask_BW=scored)
                logits = model.predict(output.y_BWD[scored]).float()
            loss_sum = F.cross_entropy(logits, targets[scored], reduction="sum")
            objective = loss_sum / divisor
            if penalty is not None:
                objective = objective + weight * share * model.penalty(output, penalty, scored)
            objective.backward()  # type: ignore[no-untyped-call]
            assert output.state is not None
            state = output.state
            spans = [report.span_BGW.detach().float().cpu().numpy() for report in output.reports]
            correct = (logits.detach().argmax(-1) == targets[scored]).sum()
            totals += torch.stack([loss_sum.detach().double().cpu(), correct.double().cpu()])
        return state, totals, spans

    def _report(self, spans: list[Spans], **numbers: Any) -> UpdateReport:
        """The report of an update: its numbers, and the memories of all ranks."""
        held = (self.state.retained_NB.cpu().numpy(), spans, self.state.bytes_held)
        retained_of_ranks, spans_of_ranks, bytes_of_ranks = zip(
            *self.ranks.all_gather_object(held), strict=True
        )
        return UpdateReport(
            **numbers,
            retained_NB=np.concatenate(retained_of_ranks, 1),
            spans=[np.concatenate(parts) for parts in zip(*spans_of_ranks, strict=True)],
            bytes_held=sum(bytes_of_ranks),
        )

    def _penalty_spec(self, weight: float) -> PenaltySpec | None:
        """The penalty to compute, if any."""
        penalty = self.config.penalty
        if not self.model.transformer.learns_spans or not penalty.weight:
            return None
        return penalty.spec(weight)

    def _span_limit(self, tokens: Tensor) -> Tensor | None:
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

    # -- checkpoints -------------------------------------------------------------------------------

    def state_tree(self) -> dict[str, Any] | None:
        """The state of all ranks, for `load_state_tree`; None on ranks other than 0."""
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
        """Continue from a `state_tree`, also with another number of ranks, which share the same rows.

        Raises:
            ValueError: the state belongs to another task, task argument, batch or file.
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
        # All ranks draw the same random numbers: span limit and dropped layers must be equal on all of them.
        set_random_state(shards[0]["random"], self.device)


def _stream_share(states: list[dict[str, Any]], stream: Stream) -> dict[str, Any]:
    """The part of a stream's state, gathered from all ranks, for the rows of this rank."""
    whole = states[0]
    if not whole["inner"]:
        return _with_rows(whole, stream)
    rows = [row for state in states for row in state["inner"]["rows"]]
    chosen = {"rows": rows[stream.rows.start : stream.rows.stop]}
    return {**_with_rows(whole, stream), "inner": chosen}


def _with_rows(state: dict[str, Any], stream: Stream) -> dict[str, Any]:
    """The state with the row numbers of `stream`."""
    identity = {**state["stream"], "first_row": stream.rows.start, "end_row": stream.rows.stop}
    return {**state, "stream": identity}
