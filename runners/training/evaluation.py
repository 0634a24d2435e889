"""Evaluation on unseen episodes: success, return, and what the memory held.

How many episodes each environment of the batch plays is settled beforehand, and its memory is left out of
the averages once it has played them: otherwise short episodes, which end first, would count too often.

Shape letters:
    B  environments
    L  layers with a memory
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.diagnostics.cue_retention import CueRetention, to_host
from memory_suite.agents.diagnostics.cue_tracker import CueTracker
from memory_suite.agents.diagnostics.success_window import EPISODE_BASICS
from memory_suite.agents.policy.policy import MemoryPolicy, PolicyStep
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.training.build import make_evaluation_env

MAX_ENVS = 100
"""episodes played side by side"""
FIRST_INTERVAL_STEPS = 1_000
"""length of the first entry of `by_step`; each of the next ones is twice as long"""


class EvaluationInterrupted(Exception):
    """Interrupted by a signal during evaluation."""


@dataclass(slots=True)
class Interval:
    """Cost per step in a range of steps of the evaluation."""

    first_step: int
    last_step: int
    retained_mean: list[float]
    """memories held per layer"""
    bytes_held_mean: float
    """bytes of one environment's memory, empty slots included"""
    microseconds_per_step: float
    """wall-clock of the agent's side, for one step of one environment"""


@dataclass(slots=True)
class EvaluationResult:
    """What an evaluation found; `asdict` gives the JSON of `evaluate_agent.py`."""

    episodes: int
    seed: int
    deterministic: bool
    success_rate: float | None
    """None if the environment does not say which episodes succeed"""
    success_ci95: tuple[float, float] | None
    """Wilson's interval"""
    success_by_class: dict[str, float]
    return_mean: float
    return_std: float
    length_mean: float
    length_max: int
    retained_mean: list[float]
    """memories held per layer, over all steps"""
    retained_max: list[int]
    possible_mean: float
    """memories that would be held if nothing were forgotten"""
    bytes_held_mean: float
    """bytes of one environment's memory, empty slots included"""
    cue_precision: float | None
    """share of the held memories that were cues"""
    cue_recall: float | None
    """share of the steps that needed a cue at which some layer still held it (`cue_retention`)"""
    metrics: dict[str, float]
    """means over episodes of what else the environment measures"""
    correlation_horizon: tuple[int, int] | None
    """fewest and most steps between a cue and its use, as the environment declares them"""
    short_term_window: int
    """steps for which any memory lasts: the ramp (spans can be 0), or the size of a memory of fixed size"""
    premature_rate: float | None
    """share of the cues that were gone at their last use"""
    slack_mean: float | None
    """steps for which a cue would be kept beyond its last use"""
    steps_per_second: float
    """throughput of all environments, including the agent"""
    by_step: list[Interval] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The result in JSON's types."""
        return asdict(self)

    def rows(self, env: str) -> dict[str, object]:
        """The result as rows of a table."""
        policy = "most likely" if self.deterministic else "sampled"
        rows: dict[str, object] = {
            "evaluation": f"{self.episodes} unseen episodes of {env}, {policy} actions"
        }
        if self.success_rate is not None and self.success_ci95 is not None:
            low, high = self.success_ci95
            rows["success"] = f"{self.success_rate:.1%} (95% interval {low:.1%} to {high:.1%})"
            for name, rate in self.success_by_class.items():
                rows[f"  {name}"] = f"{rate:.1%}"
        for name, mean in self.metrics.items():
            rows[name.replace("_", " ")] = f"{mean:.3f}"
        rows["return"] = f"{self.return_mean:.3f} +- {self.return_std:.3f}"
        rows["episode length"] = f"{self.length_mean:.1f} steps, at most {self.length_max}"
        for layer, (mean, most) in enumerate(
            zip(self.retained_mean, self.retained_max, strict=True), start=1
        ):
            rows[f"memories, layer {layer}"] = (
                f"{mean:.1f} of {self.possible_mean:.1f} possible, at most {most}"
            )
        if self.cue_recall is not None and self.cue_precision is not None:
            rows["cues"] = f"recall {self.cue_recall:.1%}, precision {self.cue_precision:.1%}"
        if self.correlation_horizon is not None:
            shortest, longest = self.correlation_horizon
            window = self.short_term_window
            covered = "all" if longest <= window else "none" if shortest > window else "some"
            rows["cue to use"] = (
                f"{shortest:,} to {longest:,} steps; the short-term window of {window} covers {covered}"
            )
        if self.premature_rate is not None:
            kept = "" if self.slack_mean is None else f", kept {self.slack_mean:,.0f} steps too long"
            rows["cues, last use"] = f"lost too early {self.premature_rate:.1%}{kept}"
        rows["memory held"] = f"{self.bytes_held_mean / 1024:.1f} KiB per environment"
        rows["speed"] = f"{self.steps_per_second:,.0f} steps/s"
        return rows


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95% confidence interval of a rate (Wilson 1927); it stays inside [0, 1] and is never empty."""
    z = 1.959964
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def evaluate_as_configured(
    agent: MemoryOnPolicyAlgorithm, config: TrainConfig, seed: int, stop: GracefulStop
) -> EvaluationResult:
    """Evaluate with the options in a run's `evaluation` group.

    Raises:
        EvaluationInterrupted: a signal requested exit.
    """

    def on_step(steps: int, episodes: int) -> None:
        if stop.stop_requested:
            raise EvaluationInterrupted

    chosen = config.evaluation
    env = make_evaluation_env(config, min(chosen.episodes, MAX_ENVS), seed)
    try:
        return evaluate(
            agent,
            env,
            episodes=chosen.episodes,
            seed=seed,
            deterministic=chosen.deterministic,
            on_step=on_step,
        )
    finally:
        env.close()


def evaluate(
    agent: MemoryOnPolicyAlgorithm,
    env: VecEnv,
    *,
    episodes: int,
    seed: int,
    deterministic: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Play `episodes` episodes.

    Args:
        agent: its policy acts; its memory and all random generators keep their state.
        env: a fresh environment; of several, the first play one more if they do not divide `episodes`.
        episodes: number of episodes.
        seed: seed of the environments and of the sampled actions.
        deterministic: take the most likely action.
        on_step: called with the numbers of steps taken and episodes finished.
    """
    device = agent.device
    before = random_state(device)
    torch.manual_seed(seed)
    try:
        with agent.policy.watching():
            played = _run_episodes(agent.policy, env, episodes, seed, deterministic, on_step)
            return _summarize(played, agent.policy, env, seed, deterministic)
    finally:
        set_random_state(before, device)


@dataclass(slots=True)
class _Episodes:
    """Finished episodes and what was measured while playing them."""

    finished: list[dict[str, Any]]
    """info of the last step of each episode"""
    costs: _Accumulator
    cues: CueRetention
    steps: int
    """steps of each environment"""
    seconds: float


def _run_episodes(
    policy: MemoryPolicy,
    env: VecEnv,
    episodes: int,
    seed: int,
    deterministic: bool,
    on_step: Callable[[int, int], None] | None,
) -> _Episodes:
    num_envs = env.num_envs
    env.seed(seed)
    observation: Any = env.reset()
    memory = policy.initial_state(num_envs)
    costs = _Accumulator(len(memory.layers), num_envs)
    cues = CueTracker(CueRetention(num_envs))
    cues.observe(getattr(env, "reset_infos", [{}] * num_envs))
    starts = np.ones(num_envs, dtype=bool)
    age_B = np.zeros(num_envs, dtype=np.int64)
    left_B = episodes // num_envs + (np.arange(num_envs) < episodes % num_envs)
    finished: list[dict[str, Any]] = []
    step = 0
    began = time.perf_counter()
    while left_B.any():
        playing_B = left_B > 0
        age_B[starts] = 0
        cues.before_step(policy.transformer, memory, starts)
        acting = time.perf_counter()
        policy_step = policy.act(
            policy.encoder.preprocess(policy.obs_to_tensor(observation)[0]),
            memory,
            torch.as_tensor(starts, device=policy.device),
            cue_B=torch.as_tensor(cues.cue_B, device=policy.device),
            deterministic=deterministic,
        )
        memory = policy_step.state
        actions = policy.to_env(policy_step.actions)
        costs.add(policy_step, age_B, playing_B, time.perf_counter() - acting)
        age_B += 1
        observation, _, dones, infos = env.step(actions)
        pending = cues.after_step(
            policy.transformer, memory, policy_step.reports, dones, infos, playing_B=playing_B
        )
        cues.score.add(*to_host([pending]))
        step += 1
        for row in np.flatnonzero(dones & playing_B):
            finished.append(infos[row])
            left_B[row] -= 1
        starts = dones
        if on_step is not None:
            on_step(step * num_envs, len(finished))
    costs.finish()
    return _Episodes(finished, costs, cues.score, step, time.perf_counter() - began)


def _summarize(
    played: _Episodes, policy: MemoryPolicy, env: VecEnv, seed: int, deterministic: bool
) -> EvaluationResult:
    finished, totals = played.finished, played.costs.totals
    outcomes = [bool(info["is_success"]) for info in finished if "is_success" in info]
    returns = np.array([info["episode"]["r"] for info in finished], dtype=np.float64)
    lengths = np.array([info["episode"]["l"] for info in finished])
    horizons = env.get_attr("correlation_horizon") if env.has_attr("correlation_horizon") else [None]
    return EvaluationResult(
        episodes=len(finished),
        seed=seed,
        deterministic=deterministic,
        success_rate=float(np.mean(outcomes)) if outcomes else None,
        success_ci95=wilson_interval(sum(outcomes), len(outcomes)) if outcomes else None,
        success_by_class=_success_by_class(finished),
        return_mean=float(returns.mean()),
        return_std=float(returns.std()),
        length_mean=float(lengths.mean()),
        length_max=int(lengths.max()),
        retained_mean=totals.retained_mean(),
        retained_max=totals.retained_max_L.tolist(),
        possible_mean=totals.possible / totals.rows,
        bytes_held_mean=totals.bytes / totals.steps,
        cue_precision=totals.tagged / totals.retained_L.sum() if totals.retained_L.sum() else None,
        metrics=_metric_means(finished),
        correlation_horizon=horizons[0],
        short_term_window=policy.transformer.short_term_window,
        cue_recall=played.cues.recall(),
        premature_rate=played.cues.premature_rate(),
        slack_mean=played.cues.slack_mean(),
        steps_per_second=played.steps * env.num_envs / played.seconds,
        by_step=played.costs.intervals,
    )


def _success_by_class(finished: list[dict[str, Any]]) -> dict[str, float]:
    """Success rate of each class of episodes that the environment names."""
    outcomes: dict[str, list[bool]] = {}
    for info in finished:
        if "is_success" in info and "episode_class" in info:
            outcomes.setdefault(str(info["episode_class"]), []).append(bool(info["is_success"]))
    return {name: float(np.mean(group)) for name, group in sorted(outcomes.items())}


def _metric_means(finished: list[dict[str, Any]]) -> dict[str, float]:
    """Means over episodes of what is measured besides return, length and time."""
    values: dict[str, list[float]] = {}
    for info in finished:
        for name in info["episode"].keys() - EPISODE_BASICS:
            values.setdefault(name, []).append(float(info["episode"][name]))
    return {name: float(np.mean(group)) for name, group in sorted(values.items())}


class _Accumulator:
    """Memories held and time per step, over all steps and over intervals of them."""

    def __init__(self, num_layers: int, num_envs: int) -> None:
        self.totals = _Totals(num_layers)
        self.intervals: list[Interval] = []
        self._num_layers, self._num_envs = num_layers, num_envs
        self._interval = _Totals(num_layers)
        self._first_step, self._end_step = 0, FIRST_INTERVAL_STEPS

    def add(self, policy_step: PolicyStep, age_B: np.ndarray, playing_B: np.ndarray, seconds: float) -> None:
        """Add a step that took the agent so many seconds."""
        shape = (-1, self._num_envs)
        retained_LB = np.array([report.retained_B.cpu().numpy() for report in policy_step.reports])
        cues_LB = np.array([report.cues_B.cpu().numpy() for report in policy_step.reports])
        bytes_held = policy_step.state.bytes_held / self._num_envs
        for part in (self.totals, self._interval):
            part.add(
                retained_LB.reshape(shape), cues_LB.reshape(shape), age_B, playing_B, bytes_held, seconds
            )
        if self.totals.steps == self._end_step:
            self._close_interval()

    def finish(self) -> None:
        """Close the last interval, which the episodes cut short."""
        if self.totals.steps > self._first_step:
            self._close_interval()

    def _close_interval(self) -> None:
        part, last_step = self._interval, self.totals.steps
        microseconds = 1e6 * part.seconds / (part.steps * self._num_envs)
        self.intervals.append(
            Interval(self._first_step, last_step, part.retained_mean(), part.bytes / part.steps, microseconds)
        )
        self._interval = _Totals(self._num_layers)
        self._first_step, self._end_step = last_step, 2 * self._end_step


class _Totals:
    """Sums over steps and over the environments still playing."""

    def __init__(self, num_layers: int) -> None:
        self.retained_L = np.zeros(num_layers)
        self.retained_max_L = np.zeros(num_layers, dtype=np.int64)
        self.possible = self.bytes = self.seconds = 0.0
        self.tagged = self.rows = self.steps = 0

    def add(
        self,
        retained_LB: np.ndarray,
        cues_LB: np.ndarray,
        age_B: np.ndarray,
        playing_B: np.ndarray,
        bytes_held: float,
        seconds: float,
    ) -> None:
        retained_LB = retained_LB[:, playing_B]
        self.retained_L += retained_LB.sum(1)
        self.retained_max_L = np.maximum(self.retained_max_L, retained_LB.max(1, initial=0))
        self.possible += float(age_B[playing_B].sum())
        self.tagged += int(cues_LB[:, playing_B].sum())
        self.rows += int(playing_B.sum())
        self.bytes += bytes_held
        self.seconds += seconds
        self.steps += 1

    def retained_mean(self) -> list[float]:
        return (self.retained_L / self.rows).tolist()
