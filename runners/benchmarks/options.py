"""Options of the benchmark, and the agent that they specify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.ranges import check
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig, load
from memory_suite.runners.run.loading import open_checkpoint
from memory_suite.runners.training.build import (
    choose_device,
    make_agent,
    make_training_env,
    restore_agent,
)

Part = Literal["envs", "training", "update", "acting", "ranks", "solving"]
PARTS: tuple[Part, ...] = ("envs", "training", "update", "acting", "ranks", "solving")
MATURE_ROLLOUTS = 4
"""training rollouts before the first measurement; by then random walking has ended the first episodes"""
LEAST_EPISODE_STEPS = 100
"""smallest distance between two ages of an episode, since each is measured over some steps"""
SHORT_SPANS_BIAS = -12.0
"""a span is its maximum times the sigmoid of this: below one step, for maximum spans up to 131,072"""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCommand:
    """Measure speed and memory, always as a ratio against something else in the same run.

    Every other option is one of train_agent.py's, for the agents that are measured.
    """

    parts: tuple[Part, ...] = PARTS
    """what to measure"""
    env: str = "corridor-long"
    """environments that are measured, and the preset of the agents; the part acting always plays
    corridor-endless"""
    run: Path | None = None
    """run folder whose trained agent is measured, with its configuration; none: a fresh agent with short
    spans, as training gives them to irrelevant memories"""
    rounds: int = 10
    """number of interleaved measurements of each agent or environment"""
    reach: int = 256
    """reach of the other memories in the part training, in steps"""
    episode_steps: tuple[int, ...] = (1_000, 10_000, 100_000)
    """ages of one episode at which acting is measured (1_000_000: about a quarter of an hour more)"""
    max_spans: tuple[int, ...] = (256, 1_024, 4_096, 16_384, 65_536, 131_072)
    """maximum spans whose acting is compared, at equal numbers of memories retained"""
    solving_success: float = 0.95
    """success rate that counts as solved in the part solving"""
    solving_seconds: float = 180.0
    """time limit of each agent in the part solving"""
    solving_seeds: int = 1
    """number of seeds in the part solving"""
    seed: int = 0
    """seed of agents, environments and random actions"""
    threads: int = 1
    """number of torch threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """device of the policies"""
    json: Path | None = None
    """also write the numbers to this file"""
    picture: Path | None = None
    """also draw the numbers, to this PNG file"""

    def __post_init__(self) -> None:
        """Validate."""
        command_line.check_at_least_1(self, "rounds", "threads", "reach", "solving_seeds")
        check("solving_success", self.solving_success, "(0, 1]")
        check("solving_seconds", self.solving_seconds, "(0, inf)")
        for name in ("parts", "episode_steps", "max_spans"):
            if not getattr(self, name):
                raise ValueError(f"{name} must name at least one")
        gaps = [later - sooner for sooner, later in pairwise((0, *self.episode_steps))]
        if min(gaps) < LEAST_EPISODE_STEPS:
            raise ValueError(
                f"episode_steps must grow by at least {LEAST_EPISODE_STEPS} each time, "
                f"got {self.episode_steps}"
            )
        if min(self.max_spans) < 32:
            raise ValueError(f"max_spans must be at least 32, got {min(self.max_spans)}")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)
        command_line.check_output(self.picture, "picture")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """Specification of the measured agent; worker processes receive it and build the agent themselves."""

    config: TrainConfig
    run: Path | None

    @classmethod
    def from_command(cls, command: BenchmarkCommand, training_argv: Sequence[str]) -> AgentSpec:
        """Read the configuration that the command names.

        Args:
            command: options of the benchmark.
            training_argv: remaining options, which are those of train_agent.py.

        Raises:
            ValueError: an option does not work; the message names it.
        """
        choose_device(command.device)
        if command.run is None:
            config = load(["--env", command.env, "--track", "disabled", *training_argv])
        elif training_argv:
            raise ValueError(f"{training_argv[0]}: the agent of --run has a configuration already")
        else:
            config, _ = open_checkpoint(command.run, "best", TrainConfig)
        config = replace(config, seed=command.seed, threads=command.threads, device=command.device)
        make_training_env(config).close()
        return cls(config, command.run)

    def build(self) -> MemoryOnPolicyAlgorithm:
        """An agent with spans of a trained one, on environments of its own."""
        env = make_training_env(self.config)
        if self.run is not None:
            _, checkpoint = open_checkpoint(self.run, "best", TrainConfig)
            return restore_agent(checkpoint, env, self.config.device)[0]
        agent = make_agent(self.config, env)
        shorten_spans(agent)
        return agent


def shorten_spans(agent: MemoryOnPolicyAlgorithm) -> None:
    """Give every memory the span that training gives to irrelevant ones: less than the ramp."""
    with torch.no_grad():
        for name, parameter in agent.policy.named_parameters():
            if name.endswith("retention.predictor.bias"):
                parameter.fill_(SHORT_SPANS_BIAS)
