"""Callback of a training run: checkpoints, progress, curriculum, videos, and the decision to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.agents.serialization.state_tree import flatten
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import LARGEST_SEED
from memory_suite.configs.run_config import checkpoint_options
from memory_suite.envs.make import make_env
from memory_suite.runners.rendering.render import render
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.progress import ProgressDisplay, ProgressSnapshot
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.run.tracking import RunLogger
from memory_suite.runners.run.wandb_writer import NOT_MEDIA, VideoFile
from memory_suite.runners.training.build import make_training_env
from memory_suite.runners.training.evaluation import EvaluationInterrupted, evaluate_as_configured

VIDEO_STEPS = 500
"""longest part of an episode that a video shows"""


@dataclass(slots=True)
class Outcome:
    """Why training ended."""

    solved: bool = False
    interrupted: bool = False


class TrainingCallback(BaseCallback):
    """Runs between updates, where a checkpoint resumes exactly.

    All ranks reach the same decisions; rank 0 writes files and updates the display.
    """

    model: MemoryOnPolicyAlgorithm

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        logger: RunLogger | None,
        display: ProgressDisplay,
        stop: GracefulStop,
        runner_state: dict[str, Any] | None = None,
    ) -> None:
        """Start fresh, or continue from the `runner_state` of a checkpoint; only rank 0 has a `logger`."""
        super().__init__()
        self.outcome = Outcome()
        self._config = config
        self._folder = folder
        self._run_logger = logger
        self._display = display
        self._stop = stop
        self._videos_failed = False
        self._best_score: list[float] = [] if runner_state is None else list(runner_state["best_score"])
        self._saved_step = -1 if runner_state is None else int(runner_state["step"])
        self.was_solved = runner_state is not None and runner_state["solved_by"] == self._goal
        """whether the run had already reached its goal when the checkpoint was written"""
        self.outcome.solved = self.was_solved
        self._success: float | None = None
        self._evaluated_at: int | None = None if runner_state is None else runner_state["evaluated_at"]
        """number of rollouts after which unseen episodes were last played"""
        self._was_evaluating = runner_state is not None and bool(runner_state.get("evaluating", False))
        self._stage: int | None = None
        if config.curriculum.argument is not None:
            self._stage = config.curriculum.start if runner_state is None else int(runner_state["stage"])

    def _on_rollout_start(self) -> None:
        resumed = self.model.num_timesteps == self._saved_step and not self._was_evaluating
        if resumed or self.model.rollouts_done == 0:
            self._advance_curriculum()  # saved when training ended, before there was a next rollout
            return
        self._update_display()
        self.outcome.solved = self._is_solved()
        ranks = self.model.ranks
        self.outcome.interrupted, save = ranks.any(self._stop.stop_requested, self._stop.take_save_request())
        self._advance_curriculum()
        self.model.stop_training = self.outcome.solved or self.outcome.interrupted
        due = self.model.rollouts_done % self._config.checkpoint_every == 0
        if save or due or self.model.stop_training or self._success is not None:
            self.save()
        every = self._config.video_every
        if every and self.model.rollouts_done % every == 0 and not self.model.stop_training:
            if ranks.is_main:
                self._record_video()
            if ranks.is_distributed:  # the episode used the generators of rank 0
                device = self.model.device
                set_random_state(ranks.broadcast(random_state(device)), device)

    def _on_training_end(self) -> None:
        if self.model.rollouts_done and self.model.num_timesteps != self._saved_step:
            self._update_display()
            self.outcome.solved = self._is_solved()
            self.save()

    def _on_step(self) -> bool:
        return True

    @property
    def _goal(self) -> list[float | None]:
        """Thresholds that define a solved task."""
        stop = self._config.stop
        return [
            stop.success,
            stop.retained,
            stop.required_evaluation_success,
        ]

    def save(self) -> None:
        """Write a checkpoint; call it on all ranks."""
        with self.model.bookkeeping:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        score = self._score()
        is_best = score > self._best_score or not self._best_score
        if is_best:
            self._best_score = score
        step = self.model.num_timesteps
        self._saved_step = step
        agent = self.model.state_tree(with_training_state=True)
        if self._run_logger is None:
            return
        tensors, data = flatten(
            {
                "agent": agent,
                "runner": {
                    "step": step,
                    "best_score": self._best_score,
                    "metrics_offset": self._run_logger.metrics.offset,
                    "threads": self._config.threads,
                    "solved_by": self._goal if self.outcome.solved else None,
                    "stage": self._stage,
                    "evaluating": self._was_evaluating,
                    "evaluated_at": self._evaluated_at,
                    "config": checkpoint_options(self._config),
                },
            }
        )
        self._folder.save_checkpoint(step, tensors, data, is_best=is_best)

    def _record_video(self) -> None:
        """Record a video of an episode; an error switches videos off, and training continues."""
        if self._videos_failed:
            return
        step, seed = self.model.num_timesteps, self._config.evaluation.seed
        path = self._folder.videos / f"step_{step:09d}.mp4"
        try:
            env = make_env(self._config.env, self._config.evaluation_env_args)
            try:
                record = record_episode(
                    self.model,
                    env,
                    seed=seed,
                    max_steps=VIDEO_STEPS,
                    contents=False,
                    facts={"env_name": self._config.env, "env_args": self._config.evaluation_env_args},
                )
            finally:
                env.close()
            path.parent.mkdir(exist_ok=True)
            render(record, path)
        except Exception as error:
            self._videos_failed = True
            path.unlink(missing_ok=True)
            self._display.note(f"videos are switched off ({type(error).__name__}: {error}); training goes on")
            return
        caption = f"{step:,} steps, seed {seed}, return {record.facts['return']:g}"
        self.logger.record("media/episode", VideoFile(path, caption), exclude=NOT_MEDIA)

    def _retained(self) -> list[float]:
        return self.model.diagnostics.memory.retained_means()

    def _learned_retained(self) -> list[float]:
        """Mean number of retained memories per layer; empty if spans are not learned."""
        return self._retained() if self.model.policy.transformer.learns_spans else []

    def _score(self) -> list[float]:
        """Checkpoint ranking (higher is better): success in unseen episodes and in training, few memories."""
        enough = self._config.stop.success or 1.0
        worst = self.model.success_window.worst()
        stage = float(self._stage or 0)  # a harder task before success
        if worst is not None:
            return [
                stage,
                1.0,
                self._success or 0.0,
                min(worst, enough),
                -float(np.sum(self._learned_retained())),
            ]
        episodes = list(self.model.ep_info_buffer or [])
        return [stage, 0.0, float(np.mean([episode["r"] for episode in episodes]))] if episodes else [stage]

    @property
    def _last_stage(self) -> int | None:
        """Last value of the curriculum's argument; None: no curriculum."""
        argument = self._config.curriculum.argument
        return None if argument is None else int(self._config.env_args[argument])

    def _advance_curriculum(self) -> None:
        """Move to the next stage of the curriculum if this one is solved."""
        curriculum, last = self._config.curriculum, self._last_stage
        worst = self.model.success_window.worst()
        if self._stage is None or last is None or self._stage == last:
            return
        if worst is None or worst < curriculum.success:
            return
        self._stage = curriculum.after(self._stage, last)
        self._best_score = []  # those of an easier task do not compare
        before = self.model.env
        seed = (self._config.seed + self.model.num_timesteps) % LARGEST_SEED  # new episodes
        self.model.change_env(make_training_env(self._config, self._stage, seed, self.model.ranks))
        if before is not None:
            before.close()
        self._display.note(
            f"{self.model.num_timesteps:,} steps: solved; {curriculum.argument} is {self._stage} now"
        )

    def _is_solved(self) -> bool:
        stop = self._config.stop
        worst = self.model.success_window.worst()
        self._success = None
        if stop.success is None or worst is None or worst < stop.success or self._stage != self._last_stage:
            return False
        return self._forgets(stop.retained) and self._passes_evaluation()

    def _passes_evaluation(self) -> bool:
        """Whether unseen episodes confirm that the task is solved.

        If a signal interrupts the evaluation, the resumed run repeats it.
        """
        stop, model = self._config.stop, self.model
        wanted = stop.required_evaluation_success
        self._was_evaluating = False
        if not wanted:
            return True
        if (
            self._evaluated_at is not None
            and model.rollouts_done - self._evaluated_at < stop.evaluation_every
        ):
            return False
        if model.ranks.is_main:
            try:
                self._success = self._evaluation_success()
            except EvaluationInterrupted:
                self._was_evaluating = True
        self._success, self._was_evaluating = model.ranks.broadcast((self._success, self._was_evaluating))
        if self._success is None:
            return False
        self._evaluated_at = model.rollouts_done
        self._display.note(f"{model.num_timesteps:,} steps: success {self._success:.1%} in evaluation")
        return self._success >= wanted

    def _evaluation_success(self) -> float:
        """Success rate in evaluation episodes; their seed differs from the final evaluation's."""
        seed = (self._config.evaluation.seed + 1) % LARGEST_SEED
        result = evaluate_as_configured(self.model, self._config, seed, self._stop)
        return result.success_rate or 0.0

    def _forgets(self, max_retained: float | None) -> bool:
        """Whether every layer retains at most this many memories on average; None: no limit."""
        return max_retained is None or max(self._learned_retained(), default=0.0) <= max_retained

    def _update_display(self) -> None:
        successes = list(self.model.ep_success_buffer or [])
        ended = [(episode["r"], episode["l"]) for episode in self.model.ep_info_buffer or []]
        counterfactual = self.model.forgetting.method == "counterfactual"
        self._display.update(
            ProgressSnapshot(
                steps=self.model.num_timesteps,
                episodes=tuple(np.mean(ended, 0).tolist()) if ended else None,
                success=float(np.mean(successes)) if successes else None,
                worst_success=self.model.success_window.worst(),
                retained=tuple(self._retained()),
                possible=self.model.diagnostics.memory.possible_mean(),
                reliance=self.model.forgetting.reliance.value if counterfactual else None,
                return_size=self.model.return_scale.size,
            )
        )
