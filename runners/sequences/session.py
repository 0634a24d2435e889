"""A training session of a sequence model: its state, checkpoints and logs."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from memory_suite.agents.algorithms.stopwatch import Stopwatch
from memory_suite.agents.serialization.state_tree import flatten, unflatten
from memory_suite.configs.run_config import checkpoint_options
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import Stream
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.loading import load_checkpoint
from memory_suite.runners.run.metrics_file import STEP_KEY
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.run.tracking import RunLogger, make_logger
from memory_suite.runners.sequences.build import open_stream
from memory_suite.runners.sequences.evaluation import NOTHING_SCORED, SequenceScore, evaluate
from memory_suite.runners.sequences.trainer import SequenceTrainer, TrainingFaultError, UpdateReport


@dataclass(frozen=True, slots=True)
class SequenceSnapshot:
    """Where a run stands after an update."""

    steps: int
    """tokens so far"""
    report: UpdateReport
    is_text: bool
    held_out: SequenceScore | None

    def lines(self) -> list[str]:
        """What there is to show."""
        report = self.report
        found = [_quality(self.is_text, "training", report.loss, report.accuracy)]
        if self.held_out is not None:
            found.append(_quality(self.is_text, "held out", self.held_out.loss, self.held_out.accuracy))
        found.extend(
            f"layer {number}: {counts.mean():,.1f} memories retained, at most {counts.max():,}"
            for number, counts in enumerate(report.retained_LB, start=1)
        )
        return found


class Session:
    """The loop around the trainer: looks at held-out data, logging, checkpoints."""

    def __init__(
        self,
        config: SequenceConfig,
        trainer: SequenceTrainer,
        folder: RunFolder,
        display: ProgressDisplay,
        runner_state: dict[str, Any] | None,
    ) -> None:
        """Begin, or go on with the `runner_state` of a checkpoint."""
        self._config, self._trainer, self._folder, self._display = config, trainer, folder, display
        self._best_loss: float | None = None
        """None: no look has scored anything yet"""
        self._held_out: SequenceScore | None = None
        self._metrics_offset: int | None = None
        self._reached = False
        if runner_state is not None:
            self._best_loss = runner_state["best_loss"]
            self._metrics_offset = int(runner_state["metrics_offset"])
            goal, reached = config.held_out.stop_accuracy, runner_state.get("reached_accuracy")
            self._reached = goal is not None and reached is not None and goal <= reached
        self._logger: RunLogger | None = None
        self._bookkeeping = Stopwatch()

    def train(self, stop: GracefulStop) -> bool:
        """Train to the end; says whether it was interrupted and saved."""
        config, trainer, ranks = self._config, self._trainer, self._trainer.ranks
        if ranks.is_main:
            self._logger = make_logger(
                self._folder, config, resume_offset=self._metrics_offset, notify=self._display.note
            )
        began, first_tokens = time.monotonic(), trainer.tokens
        try:
            with self._display:
                while not trainer.done and not self._reached:
                    report = trainer.update()
                    looked = trainer.updates % config.held_out.every == 0 or trainer.done
                    is_best = self._look() if looked else False
                    seconds = max(time.monotonic() - began, 1e-9)
                    with self._bookkeeping:
                        self._log(report, (trainer.tokens - first_tokens) / seconds, seconds, looked=looked)
                    asked = ranks.all_reduce_sum(
                        torch.tensor([stop.stop_requested, stop.take_save_request()]).long()
                    )
                    interrupted = bool(asked[0])
                    due = trainer.updates % config.checkpoint_every == 0
                    ends = interrupted or trainer.done or self._reached
                    if due or ends or is_best or bool(asked[1]):
                        with self._bookkeeping:
                            self._save(is_best=is_best)
                    if interrupted and not trainer.done:
                        return True
        finally:
            if self._logger is not None:
                self._logger.close()
        return False

    def judge_best(self) -> SequenceScore:
        """The best checkpoint on the valid split."""
        best = load_checkpoint(self._folder, self._config, "best")
        for note in best.notes:
            self._display.note(note)
        model = self._trainer.model
        model.load_state_dict(unflatten(best.tensors, best.data)["trainer"]["model"])
        return evaluate(
            model,
            self._valid_stream(),
            block_size=self._config.block_size,
            max_tokens=self._config.held_out.final_tokens,
        )

    def _valid_stream(self) -> Stream:
        return open_stream(self._config, "valid")

    def _look(self) -> bool:
        """Judge the model on a part of the valid split; says whether it is the best so far."""
        ranks, chosen = self._trainer.ranks, self._config.held_out
        is_best, loss = False, 0.0
        if ranks.is_main:
            score = evaluate(
                self._trainer.model,
                self._valid_stream(),
                block_size=self._config.block_size,
                max_tokens=chosen.tokens,
            )
            loss = score.loss if score.targets else 0.0
            note = score.note("held_out.tokens")
            if note is not None and self._held_out is None:  # later looks read the same tokens
                self._display.note(note)
            self._held_out = score
            # Until something has been scored the latest is the best, and never after that if nothing is.
            is_best = self._best_loss is None or score.loss < self._best_loss
            if is_best and score.targets:
                self._best_loss = score.loss
            self._reached = chosen.stop_accuracy is not None and score.accuracy >= chosen.stop_accuracy
        self._reached, is_best, loss = ranks.broadcast((self._reached, is_best, loss))
        if not math.isfinite(loss):  # said by all ranks, none of which then waits for another
            raise TrainingFaultError(
                f"after update {self._trainer.updates} the held-out loss is {loss:g}; a smaller "
                "optimizer.learning_rate or a longer optimizer.warmup_updates may help"
            )
        return is_best

    def _log(self, report: UpdateReport, speed: float, seconds: float, *, looked: bool) -> None:
        trainer = self._trainer
        is_text = self._config.task == "text"
        self._display.update(SequenceSnapshot(trainer.tokens, report, is_text, self._held_out))
        if self._logger is None:
            return
        row: dict[str, Any] = {
            STEP_KEY: trainer.tokens,
            "time/fps": speed,
            "time/time_elapsed": seconds,
            "time/bookkeeping_share": self._bookkeeping.seconds / seconds,
            "train/scored_targets": report.targets,
            "train/gradient_norm": report.gradient_norm,
            "train/learning_rate": report.learning_rate,
            "train/n_updates": trainer.updates,
            "memory/penalty_weight": report.penalty_weight,
            "memory/bytes_held": report.bytes_held,
        }
        if report.targets:
            row["train/loss"] = report.loss
            row["train/accuracy"] = report.accuracy
        for number, counts in enumerate(report.retained_LB, start=1):
            row[f"memory/layer{number}/retained_mean"] = float(counts.mean())
            row[f"memory/layer{number}/retained_max"] = int(counts.max())
        for number, span in enumerate(report.spans, start=1):
            row[f"memory/layer{number}/span_mean"] = float(span.mean())
            row[f"memory/layer{number}/span_max"] = float(span.max())
            row[f"memory/layer{number}/span_histogram"] = span.flatten()
        if looked and self._held_out is not None and self._held_out.targets:
            row["held_out/loss"] = self._held_out.loss
            row["held_out/accuracy"] = self._held_out.accuracy
            if is_text:
                row["held_out/bits_per_byte"] = self._held_out.bits
        for name, value in row.items():
            self._logger.record(name, value)
        self._logger.dump(trainer.tokens)

    def _save(self, *, is_best: bool) -> None:
        tree = self._trainer.state_tree()
        if tree is None or self._logger is None:
            return
        runner = {
            "best_loss": self._best_loss,
            "metrics_offset": self._logger.metrics.offset,
            "config": checkpoint_options(self._config),
            "threads": self._config.threads,
        }
        if self._reached:
            runner["reached_accuracy"] = self._config.held_out.stop_accuracy
        tensors, data = flatten({"trainer": tree, "runner": runner})
        self._folder.save_checkpoint(self._trainer.tokens, tensors, data, is_best=is_best)


def _quality(is_text: bool, which: str, loss: float, accuracy: float) -> str:
    if math.isnan(loss):
        return f"{which} {NOTHING_SCORED}"
    if is_text:
        return f"{which} {loss / np.log(2):.3f} bits per byte"
    return f"{which} error {1 - accuracy:.1%}, loss {loss:.3f}"
