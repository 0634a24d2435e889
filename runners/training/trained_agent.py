"""Trained agents and episodes: options and loading shared by the commands that show or probe episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import gymnasium as gym
import torch
import tyro

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import Scalar
from memory_suite.envs.make import make_env
from memory_suite.runners.run.loading import Which, open_checkpoint
from memory_suite.runners.training.build import restore_agent


@dataclass(frozen=True, slots=True)
class TrainedAgent:
    """An agent from a run folder, with the environment to play."""

    agent: MemoryOnPolicyAlgorithm
    config: TrainConfig
    env_name: str
    env_args: dict[str, Scalar]
    checkpoint: str
    """name of the checkpoint's file"""

    @classmethod
    def open(
        cls,
        run: Path,
        checkpoint: Which = "best",
        *,
        env: str | None = None,
        env_args: Mapping[str, Scalar] | None = None,
        device: str = "cpu",
    ) -> TrainedAgent:
        """Load an agent from a checkpoint.

        Args:
            run: run folder.
            checkpoint: which checkpoint to load.
            env: another environment than the one trained on.
            env_args: its arguments; without `env` they replace some of those of the evaluation.
            device: where the policy computes.

        Raises:
            ValueError: the run has no checkpoint that can be loaded.
        """
        config, chosen = open_checkpoint(run, checkpoint, TrainConfig)
        agent, _ = restore_agent(chosen, None, device)
        same = env is None or env == config.env
        arguments = {**(config.evaluation_env_args if same else {}), **(env_args or {})}
        return cls(agent, config, env or config.env, arguments, chosen.path.name)

    def make_env(self, *, pictures: bool = True) -> gym.Env[Any, Any]:
        """One environment; ValueError names what is wrong with its name or arguments."""
        return make_env(self.env_name, self.env_args, pictures=pictures)

    def record(
        self, *, seed: int, deterministic: bool = False, max_steps: int | None = None, pictures: bool = True
    ) -> EpisodeRecord:
        """Play and record the episode of a seed."""
        env = self.make_env(pictures=pictures)
        facts = {"env_name": self.env_name, "env_args": dict(self.env_args), "checkpoint": self.checkpoint}
        try:
            return record_episode(
                self.agent,
                env,
                seed=seed,
                deterministic=deterministic,
                max_steps=max_steps,
                frames=pictures,
                facts=facts,
            )
        finally:
            env.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentOptions:
    """Options for the agent and its environment, shared by the commands that play episodes."""

    checkpoint: Which = "best"
    """checkpoint of the run to load"""
    deterministic: bool = False
    """take the most likely action instead of sampling"""
    env: str | None = None
    """environment to play; none: the one trained on"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, such as length=100; repeatable"""
    threads: int = 1
    """number of torch threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the policy computes"""

    def __post_init__(self) -> None:
        """Validate the options."""
        command_line.check_at_least_1(self, "threads")

    def open(self, run: Path) -> TrainedAgent:
        """The agent; ValueError says what is wrong with the run."""
        torch.set_num_threads(self.threads)
        return TrainedAgent.open(
            run, self.checkpoint, env=self.env, env_args=self.env_args, device=self.device
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EpisodeOptions(AgentOptions):
    """Options for the episode to show: a recorded one, or one that a trained agent plays now."""

    run: Path | None = None
    """run folder of the agent"""
    record: Path | None = None
    """show a recorded episode instead of playing one (record_episode.py)"""
    seed: int = 0
    """seeds the environment and the sampled actions"""
    max_steps: int | None = None
    """maximum number of steps; none: play to the end of the episode"""

    def __post_init__(self) -> None:
        """Validate the options."""
        AgentOptions.__post_init__(self)  # super() fails in a dataclass with slots
        command_line.check_seed(self.seed)
        if (self.run is None) == (self.record is None):
            raise ValueError("give either run (plays an episode) or record (shows a recorded one)")

    def episode(self) -> EpisodeRecord:
        """Read or play it; ValueError says what is wrong with it."""
        if self.record is not None:
            return EpisodeRecord.load(self.record)
        assert self.run is not None
        return self.open(self.run).record(
            seed=self.seed, deterministic=self.deterministic, max_steps=self.max_steps
        )
