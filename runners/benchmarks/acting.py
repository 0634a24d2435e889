"""Cost of an acting step: as one episode grows, and as the maximum span grows."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import COMPACTION_INTERVAL_STEPS
from memory_suite.agents.policy.policy import MemoryPolicy
from memory_suite.configs.agent_schema import TrainConfig, load
from memory_suite.envs.make import make_vec_env
from memory_suite.envs.vec_env import GymnasiumVecEnv
from memory_suite.runners.benchmarks.options import AgentSpec, BenchmarkCommand, shorten_spans
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved
from memory_suite.runners.benchmarks.worker_process import Turn, WorkerProcess, peak_mebibytes
from memory_suite.runners.run.loading import open_checkpoint
from memory_suite.runners.training.build import check_spaces, make_agent, make_training_env, restore_agent

BY_AGE, BY_SPAN = "acting, by age of the episode", "acting, by maximum span"
ENV = "corridor-endless"
STRETCH_STEPS = 100
"""steps of one measurement"""
STRETCHES = 5
"""measurements for each of the command's rounds: short ones, since a machine's load changes by the second"""
SPAN_ENVS = 16
"""environments where maximum spans are compared"""


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """Two tables: by age of the episode, and by maximum span."""
    with WorkerProcess(
        _grow_old, spec, command.episode_steps, STRETCHES * command.rounds, STRETCH_STEPS
    ) as process:
        by_age = process.answer()
    return [_episode_table(by_age), _span_table(spec.config, command)]


def _episode_table(by_age: dict[int, _Age]) -> Table:
    first = next(iter(by_age.values()))
    start = f"against step {next(iter(by_age)):,}"
    rows: dict[str, dict[str, Spread | str]] = {}
    for steps, age in by_age.items():
        rows[f"after {steps:,} steps"] = {
            "us a step": age.microseconds,
            f"time {start}": age.microseconds.against(first.microseconds),
            "KiB held": Spread((age.kibibytes,)),
            f"held {start}": Spread((age.kibibytes / first.kibibytes,)),
            "memories": Spread((age.retained,)),
            "MiB of the process": Spread((age.process_mebibytes,)),
            f"process {start}": Spread((age.process_mebibytes / first.process_mebibytes,)),
        }
    what = "One episode of corridor-endless, one environment; the agent's part of a step"
    return Table(BY_AGE, what, rows)


@dataclass(frozen=True, slots=True)
class _Age:
    """Cost of acting at one age of an episode."""

    microseconds: Spread
    kibibytes: float
    """memory held, mean over a round of compactions"""
    retained: float
    """number of memories, summed over layers"""
    process_mebibytes: float
    """peak memory of the process until this age"""


class _Player:
    """An agent in the middle of its episodes."""

    def __init__(self, policy: MemoryPolicy, env: GymnasiumVecEnv) -> None:
        """Reset the environments and the memory."""
        self.policy, self.env = policy, env
        self.observation = env.reset()
        self.state: MemoryState = policy.initial_state(env.num_envs)
        self._no_reset_B = torch.zeros(env.num_envs, dtype=torch.bool, device=policy.device)

    def microseconds(self, steps: int) -> float:
        """Take steps and return the mean time of the agent's part of one."""
        policy, seconds = self.policy, 0.0
        for _ in range(steps):
            began = time.perf_counter()
            features = policy.encoder.preprocess(policy.obs_to_tensor(self.observation)[0])
            decision = policy.act(features, self.state, self._no_reset_B)
            self.state, actions = decision.state, policy.to_env(decision.actions)
            seconds += time.perf_counter() - began
            self.observation = self.env.step(actions)[0]
        return seconds / steps * 1e6

    def held(self) -> tuple[float, float]:
        """KiB and memories per environment, mean over a round of compactions."""
        kibibytes, retained = [], []
        for _ in range(COMPACTION_INTERVAL_STEPS):
            self.microseconds(1)
            kibibytes.append(self.state.bytes_held / self.env.num_envs / 1024)
            retained.append(self.state.retained_B.double().mean().item())
        return float(np.mean(kibibytes)), float(np.mean(retained))

    def copy(self, env: GymnasiumVecEnv) -> _Player:
        """The same moment in other environments, to continue from there repeatedly."""
        copied = _Player(self.policy, env)
        env.load_state_dict(copy.deepcopy(self.env.state_dict()))
        copied.observation, copied.state = self.observation.copy(), self.state.clone()
        return copied


def _grow_old(turn: Turn, spec: AgentSpec, ages: tuple[int, ...], rounds: int, stretch_steps: int) -> None:
    """Play one episode, keep a copy at each age, and measure the copies interleaved at the end.

    Minutes lie between the first age and the last. Measured as they come, ages would differ by the machine's
    load.
    """
    torch.set_num_threads(spec.config.threads)
    length = ages[-1] + (rounds + 2) * stretch_steps
    envs = [make_vec_env(ENV, 1, spec.config.seed, {"length": length}) for _ in range(len(ages) + 1)]
    player = _Player(_endless_policy(spec, envs[0]), envs[0])
    moments: dict[int, _Player] = {}
    held: dict[int, tuple[float, float, float]] = {}
    taken = 0
    for steps, env in zip(ages, envs[1:], strict=True):
        player.microseconds(steps - taken)
        held[steps] = (*player.held(), peak_mebibytes())
        taken = steps + COMPACTION_INTERVAL_STEPS
        moments[steps] = player.copy(env)
    times = _interleaved_microseconds(moments, rounds, stretch_steps)
    turn({steps: _Age(times[steps], *held[steps]) for steps in ages})


def _interleaved_microseconds(
    players: Mapping[int, _Player], rounds: int, stretch_steps: int
) -> dict[int, Spread]:
    """Microseconds of each player's steps; a first round does not count."""
    measurements = {key: partial(player.microseconds, stretch_steps) for key, player in players.items()}
    found = interleaved(measurements, rounds + 1)
    return {key: Spread(tuple(times[1:])) for key, times in found.items()}


def check(spec: AgentSpec) -> None:
    """Raise ValueError, before any work is done, if the agent cannot act in corridors."""
    if spec.run is not None:
        _endless_policy(spec, make_vec_env(ENV, 1))


def _endless_policy(spec: AgentSpec, env: GymnasiumVecEnv) -> MemoryPolicy:
    """The policy of a trained agent; without one, that of the endless corridor's preset."""
    if spec.run is not None:
        _, checkpoint = open_checkpoint(spec.run, "best", TrainConfig)
        agent = restore_agent(checkpoint, None, spec.config.device)[0]
        check_spaces(env, agent, f"parts: acting plays {ENV}, which", "the agent of --run has")
    else:
        agent = make_agent(_endless(spec.config), env)
        shorten_spans(agent)
    agent.policy.set_training_mode(False)
    return agent.policy


def _endless(config: TrainConfig) -> TrainConfig:
    """The endless corridor's preset, with seed, threads and device of `config`."""
    return replace(load(["--env", ENV]), seed=config.seed, threads=config.threads, device=config.device)


def _span_table(config: TrainConfig, command: BenchmarkCommand) -> Table:
    torch.set_num_threads(config.threads)
    span = min(command.max_spans) // 2
    players = {max_span: _spanning_player(_endless(config), max_span, span) for max_span in command.max_spans}
    for player in players.values():
        player.microseconds(2 * span)  # until as many expire as are written
    microseconds = _interleaved_microseconds(players, STRETCHES * command.rounds, STRETCH_STEPS)
    first = command.max_spans[0]
    rows: dict[str, dict[str, Spread | str]] = {}
    for max_span, player in players.items():
        kibibytes, retained = player.held()
        rows[f"{max_span:,}"] = {
            "us a step": microseconds[max_span],
            f"time against {first:,}": microseconds[max_span].against(microseconds[first]),
            "KiB held": Spread((kibibytes,)),
            "memories": Spread((retained,)),
        }
    what = (
        f"Spans of {span} steps whatever their maximum, {SPAN_ENVS} environments of corridor-endless at a "
        "time; the agent's part of a step of all, held per environment"
    )
    return Table(BY_SPAN, what, rows)


def _spanning_player(config: TrainConfig, max_span: int, span: int) -> _Player:
    """An agent whose memories all have the same span."""
    memory = replace(
        config.memory, max_span=max_span, initial_span_fraction=span / max_span, ramp=min(16, span)
    )
    agent = make_agent(replace(config, memory=memory), make_training_env(config))
    agent.policy.set_training_mode(False)
    return _Player(agent.policy, make_vec_env(ENV, SPAN_ENVS, config.seed, {"length": 1_000_000}))
