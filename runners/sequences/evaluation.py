"""How well a model predicts a stream, and what it holds in memory meanwhile."""

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
from memory_suite.envs.streams.stream import IGNORE, Block, Stream
from memory_suite.runners.training.evaluation import wilson_interval

NOTHING_SCORED = "nothing scored"
"""what is shown where there is no loss"""


@dataclass(frozen=True, slots=True)
class SequenceScore:
    """What was found; losses in nats per scored target, not a number (as accuracy) if nothing was scored."""

    task: str
    split: str
    tokens: int
    """read, all rows together"""
    targets: int
    """of them scored"""
    loss: float
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """`accuracy_interval` of the rows"""
    retained_mean: list[float]
    """memories of a row at the ends of blocks, for each layer"""
    retained_max: list[int]
    bytes_held_mean: float
    """by the memory of all rows, empty slots included"""
    possible_mean: float
    """memories of a row and layer if nothing were forgotten"""
    tokens_per_second: float
    chance_accuracy: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """what only some tasks have"""

    @property
    def bits(self) -> float:
        """Bits per scored target: of a text, bits per byte."""
        return self.loss / math.log(2)

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain types."""
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
        """The same for people."""
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
        for layer, (mean, most) in enumerate(
            zip(self.retained_mean, self.retained_max, strict=True), start=1
        ):
            result[f"memories, layer {layer}"] = (
                f"{mean:,.1f} of {self.possible_mean:,.1f} possible, at most {most:,}"
            )
        result["memory held"] = f"{self.bytes_held_mean / 1024:,.1f} KiB"
        result["speed"] = f"{self.tokens_per_second:,.0f} tokens/s"
        return result

    def note(self, option: str) -> str | None:
        """What to tell the user if this judges nothing; `option` says how many tokens were to be read."""
        if self.targets:
            return None
        return (
            f"{option}: nothing is scored in the first {self.tokens:,} tokens of the {self.split} split; "
            "ask for more"
        )

    def _if_scored(self, value: float) -> float | None:
        """As JSON has it."""
        return value if self.targets else None


def to_device(block: Block, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, targets and beginnings as tensors."""
    tokens, targets, first = (
        torch.from_numpy(part).to(device, non_blocking=True)
        for part in (block.tokens, block.targets, block.is_first)
    )
    return tokens, targets, first


def span_limit(steps: float, tokens: torch.Tensor) -> torch.Tensor:
    """All spans of a block cut to so many steps."""
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
    """Stream a split once, memory carried through.

    Args:
        model: left in the mode (training or not) it was found in.
        stream: read to its end, or to `max_tokens`.
        block_size: tokens of a row read at a time; no result depends on it.
        max_tokens: of all rows together; None: to the end.
        max_span: cut learned spans to so many steps; None: leave them.
        on_block: told every block and the losses of its scored targets, in order.
        on_reports: told every block and what each layer did with its memories in it, in order.
        on_progress: told how many tokens have been read.

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
    rows = len(stream.rows)
    state = model.initial_state(rows)
    loss = 0.0
    tokens_seen = blocks = 0
    correct_B, targets_B = np.zeros(rows, dtype=np.int64), np.zeros(rows, dtype=np.int64)
    layers = len(state.layers)
    retained, most, held, possible = np.zeros(layers), np.zeros(layers, dtype=np.int64), 0.0, 0.0
    age_B = np.zeros(rows)
    began = time.perf_counter()
    while not stream.exhausted and (max_tokens is None or tokens_seen < max_tokens):
        block = _read(stream, block_size)
        tokens, targets, first = to_device(block, device)
        limit_BT = None if max_span is None else span_limit(max_span, tokens)
        output = model.block(tokens, state, first, limit_BT, limit_forgets=True)
        assert output.state is not None
        state = output.state
        scored = targets != IGNORE
        logits = model.predict(output.y_BWD[scored])
        losses = F.cross_entropy(logits, targets[scored], reduction="none")
        loss += float(losses.double().sum())
        right = scored.clone()
        right[scored] = logits.argmax(-1) == targets[scored]
        correct_B += right.sum(1).cpu().numpy()
        targets_B += scored.sum(1).cpu().numpy()
        tokens_seen += block.tokens.size
        counts = state.retained_NB.cpu().numpy()
        retained += counts.mean(1)
        most = np.maximum(most, counts.max(1, initial=0))
        held += state.bytes_held
        age_B = _ages(age_B, block)
        possible += age_B.mean()
        blocks += 1
        if on_block is not None:
            on_block(block, losses)
        if on_reports is not None:
            on_reports(block, output.reports)
        if on_progress is not None:
            on_progress(tokens_seen)
    seconds = time.perf_counter() - began
    model.train(was_training)
    targets_seen = int(targets_B.sum())
    return SequenceScore(
        task=stream.name,
        split=stream.split,
        tokens=tokens_seen,
        targets=targets_seen,
        loss=loss / targets_seen if targets_seen else math.nan,
        accuracy=float(correct_B.sum()) / targets_seen if targets_seen else math.nan,
        accuracy_ci95=accuracy_interval(correct_B, targets_B),
        retained_mean=(retained / max(1, blocks)).tolist(),
        retained_max=most.tolist(),
        bytes_held_mean=held / max(1, blocks),
        possible_mean=possible / max(1, blocks),
        tokens_per_second=tokens_seen / seconds,
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
    """The next block; the last one ends with the stream, or what fills it up would be held as memories."""
    if stream.tokens_per_row is None:
        return stream.read(block_size)
    return stream.read(min(block_size, stream.tokens_per_row - stream.position))


def _ages(age_B: NDArray[np.float64], block: Block) -> NDArray[np.float64]:
    """Tokens since each row began, at the block's end."""
    steps = block.is_first.shape[1]
    last = steps - np.argmax(block.is_first[:, ::-1], axis=1) - 1
    return np.where(block.is_first.any(1), steps - last, age_B + steps).astype(np.float64)
