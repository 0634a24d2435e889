"""What happens between updates: checkpoints, progress, and the decision to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.agents.serialization.state_tree import split
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import LARGEST_SEED
from memory_suite.configs.run_config import decided
from memory_suite.envs.make import make_env
from memory_suite.runners.rendering.render import render
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.progress import ProgressDisplay, ProgressSnapshot
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.run.tracking import RunLogger
from memory_suite.runners.run.wandb_writer import NOT_MEDIA, VideoFile
from memory_suite.runners.training.build import make_training_env
from memory_suite.runners.training.evaluation import EvaluationInterrupted, evaluate_as_configured

FILM_STEPS = 500
"""a video shows no more steps of its episode"""


@dataclass(slots=True)
class Outcome:
    """Why training ended."""

    solved: bool = False
    interrupted: bool = False


class TrainingCallback(BaseCallback):
    """Runs after every update, when the state of the run belongs to whole updates.

    Of several ranks all decide, and decide the same; the first one writes and shows.
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
        """Begin, or go on with the `runner_state` of a checkpoint; only the first rank has a `logger`."""
        super().__init__()
        self.outcome = Outcome()
        self._config = config
        self._folder = folder
        self._run_logger = logger
        self._display = display
        self._stop = stop
        self._films_failed = False
        self._best_score: list[float] = [] if runner_state is None else list(runner_state["best_score"])
        self._saved_step = -1 if runner_state is None else int(runner_state["step"])
        self.was_solved = runner_state is not None and runner_state["solved_by"] == self._goal
        """the checkpoint is of a run that had already reached what it is asked to reach"""
        self.outcome.solved = self.was_solved
        self._judged: float | None = None
        self._was_judging = runner_state is not None and bool(runner_state.get("judging", False))
        self._stage: int | None = None
        if config.curriculum.argument is not None:
            self._stage = config.curriculum.start if runner_state is None else int(runner_state["stage"])

    def _on_rollout_start(self) -> None:
        resumed = self.model.num_timesteps == self._saved_step and not self._was_judging
        if resumed or self.model.rollouts_done == 0:
            self._grow()  # saved when training ended, before there was a next rollout
            return
        self._show()
        self.outcome.solved = self._is_solved()
        ranks = self.model.ranks
        self.outcome.interrupted, save = ranks.any(self._stop.stop_requested, self._stop.take_save_request())
        self._grow()
        self.model.stop_training = self.outcome.solved or self.outcome.interrupted
        due = self.model.rollouts_done % self._config.checkpoint_every == 0
        if save or due or self.model.stop_training or self._judged is not None:
            self.save()
        every = self._config.video_every
        if every and self.model.rollouts_done % every == 0 and not self.model.stop_training:
            if ranks.is_main:
                self._film()
            if ranks.is_distributed:  # the episode was played with the first rank's generators
                device = self.model.device
                set_random_state(ranks.broadcast(random_state(device)), device)

    def _on_training_end(self) -> None:
        if self.model.rollouts_done and self.model.num_timesteps != self._saved_step:
            self._show()
            self.outcome.solved = self._is_solved()
            self.save()

    def _on_step(self) -> bool:
        return True

    @property
    def _goal(self) -> list[float | None]:
        """What counts as solved."""
        stop = self._config.stop
        return [
            stop.success,
            stop.retained,
            *([] if stop.evaluation_success is None else [stop.evaluation_success]),
        ]

    def save(self) -> None:
        """Write a checkpoint of everything, on all ranks."""
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
        tensors, data = split(
            {
                "agent": agent,
                "runner": {
                    "step": step,
                    "best_score": self._best_score,
                    "metrics_offset": self._run_logger.metrics.offset,
                    "threads": self._config.threads,
                    "solved_by": self._goal if self.outcome.solved else None,
                    "stage": self._stage,
                    "judging": self._was_judging,
                    "config": decided(self._config),
                },
            }
        )
        self._folder.save_checkpoint(step, tensors, data, is_best=is_best)

    def _film(self) -> None:
        """Record an episode and show it; a fault here switches the videos off, and training goes on."""
        if self._films_failed:
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
                    max_steps=FILM_STEPS,
                    contents=False,
                    facts={"env_name": self._config.env, "env_args": self._config.evaluation_env_args},
                )
            finally:
                env.close()
            path.parent.mkdir(exist_ok=True)
            render(record, path)
        except Exception as error:
            self._films_failed = True
            path.unlink(missing_ok=True)
            self._display.note(f"videos are switched off ({type(error).__name__}: {error}); training goes on")
            return
        caption = f"{step:,} steps, seed {seed}, return {record.facts['return']:g}"
        self.logger.record("media/episode", VideoFile(path, caption), exclude=NOT_MEDIA)

    def _retained(self) -> list[float]:
        return self.model.diagnostics.memory.retained_means()

    def _forgettable(self) -> list[float]:
        """Memories retained per layer, if training can make them fewer."""
        return self._retained() if self.model.policy.transformer.learns_spans else []

    def _score(self) -> list[float]:
        """The larger the better: success up to what counts as solved, then as few memories as possible."""
        enough = self._config.stop.success or 1.0
        worst = self.model.success_window.worst()
        stage = float(self._stage or 0)  # a harder task before success
        if worst is not None:
            judged = [] if self._config.stop.evaluation_success is None else [self._judged or 0.0]
            return [stage, 1.0, *judged, min(worst, enough), -float(np.sum(self._forgettable()))]
        episodes = list(self.model.ep_info_buffer or [])
        return [stage, 0.0, float(np.mean([episode["r"] for episode in episodes]))] if episodes else [stage]

    @property
    def _last_stage(self) -> int | None:
        """The value at which the curriculum ends; None: there is none."""
        argument = self._config.curriculum.argument
        return None if argument is None else int(self._config.env_args[argument])

    def _grow(self) -> None:
        """The next stage of the curriculum, if this one is solved."""
        curriculum, last = self._config.curriculum, self._last_stage
        worst = self.model.success_window.worst()
        if self._stage is None or last is None or self._stage == last:
            return
        if worst is None or worst < curriculum.success or not self._forgets(curriculum.retained):
            return
        self._stage = curriculum.after(self._stage, last)
        self._best_score = []  # of an easier task
        before = self.model.env
        seed = (self._config.seed + self.model.num_timesteps) % LARGEST_SEED  # not the episodes once played
        self.model.change_env(make_training_env(self._config, self._stage, seed, self.model.ranks))
        if before is not None:
            before.close()
        self._display.note(
            f"{self.model.num_timesteps:,} steps: solved; {curriculum.argument} is {self._stage} now"
        )

    def _is_solved(self) -> bool:
        stop = self._config.stop
        worst = self.model.success_window.worst()
        if stop.success is None or worst is None or worst < stop.success or self._stage != self._last_stage:
            return False
        return self._forgets(stop.retained) and self._passes_evaluation()

    def _passes_evaluation(self) -> bool:
        """Whether the episodes of the evaluation are solved too, if that is asked for and it is time to look.

        An interruption ends the look, and the resumed run begins with it: it goes on as if never interrupted.
        """
        wanted, model = self._config.stop.evaluation_success, self.model
        self._judged, self._was_judging = None, False
        if wanted is None:
            return True
        if model.rollouts_done % self._config.stop.evaluation_every:
            return False
        if model.ranks.is_main:
            try:
                self._judged = self._evaluated()
            except EvaluationInterrupted:
                self._was_judging = True
        self._judged, self._was_judging = model.ranks.broadcast((self._judged, self._was_judging))
        if self._judged is None:
            return False
        self._display.note(f"{model.num_timesteps:,} steps: success {self._judged:.1%} in evaluation")
        return self._judged >= wanted

    def _evaluated(self) -> float:
        """Success in as many episodes as after training; those are others."""
        seed = (self._config.evaluation.seed + 1) % LARGEST_SEED
        result = evaluate_as_configured(self.model, self._config, seed, self._stop)
        return result.success_rate or 0.0

    def _forgets(self, most: float | None) -> bool:
        """Whether no layer retains more memories than that on average."""
        return most is None or max(self._forgettable(), default=0.0) <= most

    def _show(self) -> None:
        successes = list(self.model.ep_success_buffer or [])
        ended = [(episode["r"], episode["l"]) for episode in self.model.ep_info_buffer or []]
        self._display.update(
            ProgressSnapshot(
                steps=self.model.num_timesteps,
                episodes=tuple(np.mean(ended, 0).tolist()) if ended else None,
                success=float(np.mean(successes)) if successes else None,
                worst_success=self.model.success_window.worst(),
                retained=tuple(self._retained()),
                possible=self.model.diagnostics.memory.possible_mean(),
                penalty_weight=self.model.span_penalty.weight,
            )
        )
