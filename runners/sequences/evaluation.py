"""Evaluation of a sequence model on a stream: its predictions, and the memory it holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from memory_suite.agents.model.layer import BlockReport
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.envs.streams.stream import IGNORE, Block, Stream
from memory_suite.runners.training.evaluation import wilson_interval

NOTHING_SCORED = "nothing scored"
"""shown where there is no loss"""


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """Result of an evaluation; loss (nats per scored target) and accuracy are nan if nothing was scored."""

    task: str
    split: str
    tokens: int
    """tokens read, all rows together"""
    targets: int
    """scored tokens among them"""
    loss: float
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """`accuracy_interval` of the rows"""
    retained_mean: list[float]
    """memories of a row at the ends of blocks, per layer"""
    retained_max: list[int]
    bytes_held_mean: float
    """bytes of the memory of all rows, empty slots included"""
    possible_mean: float
    """memories per row and layer if nothing were forgotten"""
    tokens_per_second: float
    chance_accuracy: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """results that only some tasks have"""

    @property
    def bits(self) -> float:
        """Bits per scored target; for text, bits per byte."""
        return self.loss / math.log(2)

    def to_json(self) -> dict[str, Any]:
        """The result in plain types."""
        return {
            "task": self.task,
            "split": self.split,
            "tokens": self.tokens,
            "targets": self.targets,
            "loss": self._if_scored(self.loss),
            "bits_per_target": self._if_scored(self.bits),
            "accuracy": self._if_scored(self.accuracy),
            "accuracy_ci95": list(self.accuracy_ci95),
            "error": self._if_scored(1.0 - self.accuracy),
            "chance_accuracy": self.chance_accuracy,
            "retained_mean": self.retained_mean,
            "retained_max": self.retained_max,
            "possible_mean": self.possible_mean,
            "bytes_held_mean": self.bytes_held_mean,
            "tokens_per_second": self.tokens_per_second,
            **self.extra,
        }

    def rows(self) -> dict[str, object]:
        """The result as rows of a table."""
        low, high = self.accuracy_ci95
        chance = "" if self.chance_accuracy is None else f"; chance {1 - self.chance_accuracy:.2%}"
        result: dict[str, object] = {
            "read": f"{self.tokens:,} tokens of the {self.split} split, {self.targets:,} scored",
        }
        is_text = self.task == "text"
        quality = {"bits per byte": f"{self.bits:.4f}"} if is_text else {"loss": f"{self.loss:.4f} nats"}
        quality["error"] = f"{1 - self.accuracy:.2%} (95% interval {1 - high:.2%} to {1 - low:.2%}{chance})"
        result |= quality if self.targets else dict.fromkeys(quality, NOTHING_SCORED)
        for name, value in self.extra.items():
            result[name.replace("_", " ")] = value
        for layer, (mean, maximum) in enumerate(
            zip(self.retained_mean, self.retained_max, strict=True), start=1
        ):
            result[f"memories, layer {layer}"] = (
                f"{mean:,.1f} of {self.possible_mean:,.1f} possible, at most {maximum:,}"
            )
        result["memory held"] = f"{self.bytes_held_mean / 1024:,.1f} KiB"
        result["speed"] = f"{self.tokens_per_second:,.0f} tokens/s"
        return result

    def note(self, option: str) -> str | None:
        """A warning if nothing was scored; `option` sets the number of tokens to read."""
        if self.targets:
            return None
        return (
            f"{option}: nothing is scored in the first {self.tokens:,} tokens of the {self.split} split; "
            "ask for more"
        )

    def _if_scored(self, value: float) -> float | None:
        """The value, or None for JSON if nothing was scored."""
        return value if self.targets else None


def to_device(block: Block, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, targets and flags of first tokens as tensors."""
    tokens, targets, first = (
        torch.from_numpy(part).to(device, non_blocking=True)
        for part in (block.tokens, block.targets, block.is_first)
    )
    return tokens, targets, first


def span_limit(steps: float, tokens: torch.Tensor) -> torch.Tensor:
    """Limit of `steps` on all spans of a block."""
    return torch.full(tokens.shape, float(steps), device=tokens.device)


@torch.no_grad()
def evaluate(
    model: SequenceModel,
    stream: Stream,
    *,
    block_size: int,
    max_tokens: int | None = None,
    max_span: int | None = None,
    on_block: Callable[[Block, torch.Tensor], None] | None = None,
    on_reports: Callable[[Block, list[BlockReport]], None] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SequenceScore:
    """Read a stream block by block, carrying memory over, and score the predictions.

    Args:
        model: its training mode is restored afterwards.
        stream: read to its end, or to `max_tokens`.
        block_size: tokens of a row read at a time; results do not depend on it.
        max_tokens: tokens of all rows together; None: to the end.
        max_span: limit on learned spans in steps; None: no limit.
        on_block: called with every block and the losses of its scored targets, in order.
        on_reports: called with every block and the report of each layer, in order.
        on_progress: called with the number of tokens read.

    Raises:
        ValueError: the stream's vocabulary is not the model's, or its memory has no spans to cut.
    """
    if max_span is not None and not model.transformer.learns_spans:
        raise ValueError("max_span cuts learned spans, and this run's memory has none")
    if (stream.vocabulary_size, stream.num_targets) != (model.vocabulary_size, model.num_targets):
        raise ValueError(
            f"task: the stream has {stream.vocabulary_size} tokens and {stream.num_targets} targets, but the "
            f"model was trained on {model.vocabulary_size} and {model.num_targets}"
        )
    was_training = model.training
    model.eval()
    device = model.head.weight.device
    num_rows = len(stream.rows)
    state = model.initial_state(num_rows)
    totals = _Totals(num_rows, len(state.layers))
    began = time.perf_counter()
    while not stream.exhausted and (max_tokens is None or totals.tokens < max_tokens):
        block = _read(stream, block_size)
        tokens, targets, is_first = to_device(block, device)
        limit_BW = None if max_span is None else span_limit(max_span, tokens)
        output = model.block(tokens, state, is_first, limit_BW, limit_forgets=True)
        assert output.state is not None
        state = output.state
        scored_BW = targets != IGNORE
        logits = model.predict(output.y_BWD[scored_BW])
        losses = F.cross_entropy(logits, targets[scored_BW], reduction="none")
        correct_BW = scored_BW.clone()
        correct_BW[scored_BW] = logits.argmax(-1) == targets[scored_BW]
        totals.add_predictions(losses, correct_BW, scored_BW)
        totals.add_memory(block, state)
        if on_block is not None:
            on_block(block, losses)
        if on_reports is not None:
            on_reports(block, output.reports)
        if on_progress is not None:
            on_progress(totals.tokens)
    seconds = time.perf_counter() - began
    model.train(was_training)
    return totals.score(stream, seconds)


class _Totals:
    """Sums over the blocks of an evaluation."""

    def __init__(self, num_rows: int, num_layers: int) -> None:
        self.tokens = 0
        self._blocks = 0
        self._loss = 0.0
        self._correct_B = np.zeros(num_rows, dtype=np.int64)
        self._targets_B = np.zeros(num_rows, dtype=np.int64)
        self._retained = np.zeros(num_layers)
        self._retained_max = np.zeros(num_layers, dtype=np.int64)
        self._bytes_held = 0.0
        self._age_B = np.zeros(num_rows)
        self._possible = 0.0

    def add_predictions(
        self, losses: torch.Tensor, correct_BW: torch.Tensor, scored_BW: torch.Tensor
    ) -> None:
        """Add a block's losses, and its correct and scored targets."""
        self._loss += float(losses.double().sum())
        self._correct_B += correct_BW.sum(1).cpu().numpy()
        self._targets_B += scored_BW.sum(1).cpu().numpy()

    def add_memory(self, block: Block, state: MemoryState) -> None:
        """Add the memories held at the end of a block."""
        self.tokens += block.tokens.size
        self._blocks += 1
        retained_NB = state.retained_NB.cpu().numpy()
        self._retained += retained_NB.mean(1)
        self._retained_max = np.maximum(self._retained_max, retained_NB.max(1, initial=0))
        self._bytes_held += state.bytes_held
        self._age_B = _ages(self._age_B, block)
        self._possible += self._age_B.mean()

    def score(self, stream: Stream, seconds: float) -> SequenceScore:
        """Means over targets and blocks."""
        targets, blocks = int(self._targets_B.sum()), max(1, self._blocks)
        return SequenceScore(
            task=stream.name,
            split=stream.split,
            tokens=self.tokens,
            targets=targets,
            loss=self._loss / targets if targets else math.nan,
            accuracy=float(self._correct_B.sum()) / targets if targets else math.nan,
            accuracy_ci95=accuracy_interval(self._correct_B, self._targets_B),
            retained_mean=(self._retained / blocks).tolist(),
            retained_max=self._retained_max.tolist(),
            bytes_held_mean=self._bytes_held / blocks,
            possible_mean=self._possible / blocks,
            tokens_per_second=self.tokens / seconds,
            chance_accuracy=stream.chance_accuracy,
        )


def accuracy_interval(correct_B: NDArray[np.int64], targets_B: NDArray[np.int64]) -> tuple[float, float]:
    """95% confidence interval of the accuracy over all targets, from its spread between rows.

    Targets of a row depend on each other: one collision is asked about in hundreds of frames. Rows do not. So
    this is Student's interval of a ratio of sums over rows (Cochran 1977, Sampling Techniques, ch. 6), but
    never narrower than if all targets were independent, as they have to be taken where there is one row.
    """
    total, counted_B = int(targets_B.sum()), targets_B > 0
    if not total:
        return 0.0, 1.0
    low, high = wilson_interval(int(correct_B.sum()), total)
    rows = int(counted_B.sum())
    if rows < 2:
        return low, high
    accuracy = correct_B.sum() / total
    residual_B = (correct_B - accuracy * targets_B)[counted_B]
    deviation = np.sqrt(rows / (rows - 1) * np.square(residual_B).sum()) / total
    half = float(scipy.stats.t.ppf(0.975, rows - 1) * deviation)
    return max(0.0, min(low, accuracy - half)), min(1.0, max(high, accuracy + half))


def _read(stream: Stream, block_size: int) -> Block:
    """The next block. The last one ends with the stream, so that padding is not stored as memories."""
    if stream.tokens_per_row is None:
        return stream.read(block_size)
    return stream.read(min(block_size, stream.tokens_per_row - stream.position))


def _ages(age_B: NDArray[np.float64], block: Block) -> NDArray[np.float64]:
    """Tokens since each row began, at the block's end."""
    steps = block.is_first.shape[1]
    last = steps - np.argmax(block.is_first[:, ::-1], axis=1) - 1
    return np.where(block.is_first.any(1), steps - last, age_B + steps).astype(np.float64)
