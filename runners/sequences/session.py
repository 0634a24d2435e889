"""A training run of a sequence model from a configuration to its evaluation."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import set_random_seed

from memory_suite.agents.algorithms.stopwatch import Stopwatch
from memory_suite.agents.distributed import DistributedContext, RankLostError
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.serialization.state_tree import flatten, unflatten
from memory_suite.configs.command_line import display_path, exit_on_error
from memory_suite.configs.run_config import checkpoint_options
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import Stream
from memory_suite.runners.run.folder import RunFolder, RunFolderError
from memory_suite.runners.run.loading import load_checkpoint, open_run_folder
from memory_suite.runners.run.messages import how_to_continue, result_paths, run_facts, thread_notes
from memory_suite.runners.run.metrics_file import STEP_KEY
from memory_suite.runners.run.progress import ProgressDisplay, counted
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.run.tracking import RunLogger, make_logger
from memory_suite.runners.sequences.build import load_weights, make_model, open_stream
from memory_suite.runners.sequences.evaluation import NOTHING_SCORED, SequenceScore, evaluate
from memory_suite.runners.sequences.trainer import SequenceTrainer, TrainingFailedError, UpdateReport
from memory_suite.runners.training.build import choose_device


def train(config: SequenceConfig) -> int:
    """Train a sequence model, evaluate it and print where its files are.

    Args:
        config: the run's configuration. Options that cannot work end the program with exit code 2.

    Returns:
        The exit code: 0 done, 75 interrupted and saved, 1 anything else.
    """
    torch.set_num_threads(config.threads)
    ranks = DistributedContext.from_env()
    device = exit_on_error(lambda: ranks.device(choose_device(config.device)))
    stream = exit_on_error(lambda: open_stream(config, "train", ranks=ranks))
    exit_on_error(lambda: open_stream(config, "valid"))  # refuse unusable evaluation data before training
    model = exit_on_error(lambda: _initial_model(config, stream, device))
    try:
        ranks.init_process_group(device)
        return _run(config, SequenceTrainer(config, model, stream, ranks), ranks)
    except RankLostError as lost:
        sys.stderr.write(f"rank {ranks.rank}: error: {lost}\n")
        return 1


def _run(config: SequenceConfig, trainer: SequenceTrainer, ranks: DistributedContext) -> int:
    folder = exit_on_error(lambda: ranks.run_on_main(lambda: open_run_folder(config)))
    runner_state, notes = exit_on_error(lambda: _restore(config, trainer, folder, ranks))
    total = config.total_updates * config.tokens_per_update
    display = ProgressDisplay(total, unit="tokens", rank=ranks.rank)
    display.start_at(trainer.tokens)
    facts = _model_facts(config, trainer)
    display.announce({**facts, **run_facts(config, trainer.device, ranks, folder)})
    for note in notes:
        display.note(note)
    session = Session(config, trainer, folder, display, runner_state)
    to_continue = partial(how_to_continue, "train_sequence.py", folder, ranks)
    with GracefulStop(ranks) as stop:
        try:
            interrupted = session.train(stop)
        except TrainingFailedError as fault:  # a resumed run would fail in the same way
            display.fault(f"error: training stopped: {fault}\n{_how_to_start_anew(folder)}")
            return 1
        except (RankLostError, ValueError, OSError) as fault:
            display.fault(f"error: training stopped: {fault}\n{to_continue()}")
            return 1
        if interrupted:
            display.note(f"Interrupted at {trainer.tokens:,} tokens, and saved. {to_continue()}")
            stop.leave_together()
            return EXIT_SAVED
    if not ranks.is_main:
        return 0
    try:
        score = session.evaluate_best()
    except (RunFolderError, OSError) as fault:
        display.note(f"error: the evaluation stopped: {fault}\n{to_continue()}")
        return 1
    folder.write_evaluation(score.to_json())
    if (unscored := score.note("held_out.final_tokens")) is not None:
        display.note(unscored)
    display.summary_table(
        {
            "training": f"{trainer.updates:,} updates, {trainer.tokens:,} tokens",
            **score.rows(),
            **result_paths(folder),
        }
    )
    return 0


def _restore(
    config: SequenceConfig, trainer: SequenceTrainer, folder: RunFolder, ranks: DistributedContext
) -> tuple[dict[str, Any] | None, list[str]]:
    """Restore the trainer from the latest checkpoint; returns the session's saved state, and notes."""
    if config.resume is None:
        return None, []
    checkpoint = ranks.run_on_main(lambda: load_checkpoint(folder, config, "latest"))
    tree = unflatten(checkpoint.tensors, checkpoint.data)
    trainer.load_state_tree(tree["trainer"])
    notes = [*checkpoint.notes, f"resuming from {display_path(checkpoint.path)}"]
    notes += thread_notes(tree["runner"]["threads"], config)
    return tree["runner"], notes


def _initial_model(config: SequenceConfig, stream: Stream, device: torch.device) -> SequenceModel:
    set_random_seed(config.seed)
    model = make_model(config, stream, device)
    if config.init is not None and config.resume is None:
        load_weights(model, RunFolder.open(config.init).latest_checkpoint())
    return model


def _model_facts(config: SequenceConfig, trainer: SequenceTrainer) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    model = config.model
    arguments = "".join(f", {key} {value}" for key, value in config.task_args.items())
    return {
        "task": f"{config.task}{arguments}; {config.num_rows} rows in blocks of {config.block_size}",
        "training": f"up to {config.total_updates:,} updates of {config.tokens_per_update:,} tokens",
        "model": f"{counted(model.num_layers, 'layer')} of width {model.width}, {parameters:,} parameters",
        "memory": config.memory.summary,
    }


def _how_to_start_anew(folder: RunFolder) -> str:
    if not folder.has_checkpoint:
        return "There is no checkpoint yet to begin from."
    return (
        "With other options a new run can begin from these weights: "
        f"python runners/train_sequence.py --init {display_path(folder.path)} OPTIONS"
    )


@dataclass(frozen=True, slots=True)
class SequenceSnapshot:
    """Progress of a run after an update."""

    steps: int
    """tokens read"""
    report: UpdateReport
    is_text: bool
    held_out: SequenceScore | None

    def lines(self) -> list[str]:
        """Lines of the progress display."""
        report = self.report
        found = [_quality(self.is_text, "training", report.loss, report.accuracy)]
        if self.held_out is not None:
            found.append(_quality(self.is_text, "held out", self.held_out.loss, self.held_out.accuracy))
        found.extend(
            f"layer {number}: {counts.mean():,.1f} memories retained, at most {counts.max():,}"
            for number, counts in enumerate(report.retained_NB, start=1)
        )
        return found


class Session:
    """The loop around the trainer: held-out evaluations, logging, checkpoints."""

    def __init__(
        self,
        config: SequenceConfig,
        trainer: SequenceTrainer,
        folder: RunFolder,
        display: ProgressDisplay,
        runner_state: dict[str, Any] | None,
    ) -> None:
        """Start from scratch, or from the `runner_state` of a checkpoint."""
        self._config, self._trainer, self._folder, self._display = config, trainer, folder, display
        self._best_loss: float | None = None
        """None: no evaluation has scored anything yet"""
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
        """Train to the end; returns whether it was interrupted and saved."""
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
                    evaluated = trainer.updates % config.held_out.every == 0 or trainer.done
                    is_best = self._evaluate_held_out() if evaluated else False
                    seconds = max(time.monotonic() - began, 1e-9)
                    with self._bookkeeping:
                        self._log(
                            report, (trainer.tokens - first_tokens) / seconds, seconds, evaluated=evaluated
                        )
                    requested = ranks.all_reduce_sum(
                        torch.tensor([stop.stop_requested, stop.take_save_request()]).long()
                    )
                    interrupted, save_requested = bool(requested[0]), bool(requested[1])
                    due = trainer.updates % config.checkpoint_every == 0
                    ends = interrupted or trainer.done or self._reached
                    if due or ends or is_best or save_requested:
                        with self._bookkeeping:
                            self._save(is_best=is_best)
                    if interrupted and not trainer.done:
                        return True
        finally:
            if self._logger is not None:
                self._logger.close()
        return False

    def evaluate_best(self) -> SequenceScore:
        """Evaluate the best checkpoint on the valid split."""
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

    def _evaluate_held_out(self) -> bool:
        """Evaluate the model on a part of the valid split; returns whether it is the best so far."""
        ranks, settings = self._trainer.ranks, self._config.held_out
        is_best, loss = False, 0.0
        if ranks.is_main:
            score = evaluate(
                self._trainer.model,
                self._valid_stream(),
                block_size=self._config.block_size,
                max_tokens=settings.tokens,
            )
            loss = score.loss if score.targets else 0.0
            note = score.note("held_out.tokens")
            if note is not None and self._held_out is None:  # later evaluations read the same tokens
                self._display.note(note)
            self._held_out = score
            # An evaluation without a scored target is the best only as long as none has scored any.
            is_best = self._best_loss is None or score.loss < self._best_loss
            if is_best and score.targets:
                self._best_loss = score.loss
            self._reached = settings.stop_accuracy is not None and score.accuracy >= settings.stop_accuracy
        self._reached, is_best, loss = ranks.broadcast((self._reached, is_best, loss))
        if not math.isfinite(loss):  # raised on all ranks, so that none waits for another
            raise TrainingFailedError(
                f"after update {self._trainer.updates} the held-out loss is {loss:g}; a smaller "
                "optimizer.learning_rate or a longer optimizer.warmup_updates may help"
            )
        return is_best

    def _log(self, report: UpdateReport, speed: float, seconds: float, *, evaluated: bool) -> None:
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
        for number, counts in enumerate(report.retained_NB, start=1):
            row[f"memory/layer{number}/retained_mean"] = float(counts.mean())
            row[f"memory/layer{number}/retained_max"] = int(counts.max())
        for number, span in enumerate(report.spans, start=1):
            row[f"memory/layer{number}/span_mean"] = float(span.mean())
            row[f"memory/layer{number}/span_max"] = float(span.max())
            row[f"memory/layer{number}/span_histogram"] = span.flatten()
        if evaluated and self._held_out is not None and self._held_out.targets:
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
