"""Wall-clock time until a task is solved: ours against RecurrentPPO."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from memory_suite.runners.benchmarks import baselines
from memory_suite.runners.benchmarks.baselines import RECURRENT, UNTRAINED, make_baseline
from memory_suite.runners.benchmarks.options import AgentSpec, BenchmarkCommand
from memory_suite.runners.benchmarks.tables import Spread, Table
from memory_suite.runners.benchmarks.worker_process import Turn, WorkerProcess

NAME = "solving"
SECONDS = "seconds"
SOLVED = "solved"
OURS = "ours, expire-span"
WINDOW_EPISODES = 1_000
"""recent episodes over which the success rate is taken; there is none before as many have ended"""


def check(spec: AgentSpec) -> None:
    """Raise ValueError, before any work is done, if the task has a curriculum, which the baselines lack."""
    baselines.check(spec)
    argument = spec.config.curriculum.argument
    if argument is not None:
        raise ValueError(
            "parts: solving needs a task without a curriculum, which others do not have; that of "
            f"{spec.config.env} grows {argument} (--curriculum.argument none takes it away)"
        )


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """Train both, iterations interleaved, until each has solved the task or reached its time limit."""
    found: dict[str, list[_Attempt]] = {OURS: [], RECURRENT: []}
    for seed in range(command.seed, command.seed + command.solving_seeds):
        seeded = AgentSpec(replace(spec.config, seed=seed), None)
        for name, attempt in _race(seeded, command).items():
            found[name].append(attempt)
    seconds = {name: Spread(tuple(one.seconds for one in attempts)) for name, attempts in found.items()}
    rates = {
        name: Spread(tuple(one.steps / one.seconds for one in attempts)) for name, attempts in found.items()
    }
    rows: dict[str, dict[str, Spread | str]] = {
        name: {
            SOLVED: f"{sum(one.solved for one in attempts)} of {len(attempts)} seeds",
            SECONDS: seconds[name],
            "seconds against ours": seconds[name].against(seconds[OURS]),
            "steps": Spread(tuple(one.steps for one in attempts)),
            "steps/s": rates[name],
            "steps/s against RecurrentPPO": rates[name].against(rates[RECURRENT]),
            "success then": Spread(tuple(one.success for one in attempts)),
        }
        for name, attempts in found.items()
    }
    what = (
        f"{spec.config.env} until {100.0 * command.solving_success:g}% of the last {WINDOW_EPISODES:,} "
        f"training episodes succeed, or {command.solving_seconds:g} s have passed (which then count)"
    )
    return [Table(NAME, what, rows)]


class _Standing(NamedTuple):
    """Progress of a training."""

    steps: int
    success: float | None
    """None: too few episodes have ended"""


@dataclass(slots=True)
class _Attempt:
    """One training."""

    seconds: float = 0.0
    steps: int = 0
    success: float = 0.0
    solved: bool = False


def _race(spec: AgentSpec, command: BenchmarkCommand) -> dict[str, _Attempt]:
    attempts = {OURS: _Attempt(), RECURRENT: _Attempt()}
    with ExitStack() as stack:
        running: dict[str, WorkerProcess] = {}
        for name, agent in ((OURS, UNTRAINED), (RECURRENT, RECURRENT)):
            running[name] = stack.enter_context(WorkerProcess(_train, spec, agent, command.reach))
            running[name].answer()
        while running:
            for name, process in list(running.items()):
                attempt = attempts[name]
                seconds, standing = process.turn()
                attempt.seconds += seconds
                attempt.steps = standing.steps
                attempt.success = standing.success or 0.0
                attempt.solved = standing.success is not None and standing.success >= command.solving_success
                if attempt.solved or attempt.seconds >= command.solving_seconds:
                    del running[name]
    return attempts


def _train(turn: Turn, spec: AgentSpec, name: str, reach: int) -> None:
    """Answers before each rollout with its `_Standing`."""
    config = spec.config
    torch.set_num_threads(config.threads)
    agent = make_baseline(spec, name, reach)
    agent.set_logger(Logger(None, []))
    # The learning rate may fall to 0 at `total_steps`, as in a training; the main process stops it.
    agent.learn(config.total_steps, callback=_SuccessRate(turn))
    raise RuntimeError(f"{name} used up total_steps ({config.total_steps:,}); give it more, or less time")


class _SuccessRate(BaseCallback):
    """Success rate of recent episodes; sends it before each rollout, and waits to be resumed."""

    def __init__(self, turn: Turn) -> None:
        super().__init__()
        self._turn = turn
        self._outcomes: deque[bool] = deque(maxlen=WINDOW_EPISODES)

    def _on_rollout_start(self) -> None:
        full = len(self._outcomes) == WINDOW_EPISODES
        success = sum(self._outcomes) / WINDOW_EPISODES if full else None
        self._turn(_Standing(self.num_timesteps, success))

    def _on_step(self) -> bool:
        for done, info in zip(self.locals["dones"], self.locals["infos"], strict=True):
            if done:
                self._outcomes.append(bool(info["is_success"]))
        return True
