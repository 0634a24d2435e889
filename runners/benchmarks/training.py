"""Training steps per second and peak memory: ours with each memory, and the baselines."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from stable_baselines3.common.logger import Logger

from memory_suite.runners.benchmarks.baselines import NAMES, RECURRENT, make_baseline
from memory_suite.runners.benchmarks.options import MATURE_ROLLOUTS, AgentSpec, BenchmarkCommand
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved
from memory_suite.runners.benchmarks.worker_process import Turn, WorkerProcess, peak_mebibytes

NAME = "training"
SPEED = "steps/s"
MEMORY = "MiB above the imports"


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """One iteration (rollout and update) of each agent, interleaved, each in a process of its own."""
    config = spec.config
    with ExitStack() as stack:
        processes: dict[str, WorkerProcess] = {}
        imports: dict[str, float] = {}
        for name in NAMES:
            process = stack.enter_context(WorkerProcess(_train, spec, name, command.reach))
            imports[name] = process.answer()
            process.turn()  # build it and let its episodes grow old, while all others wait
            processes[name] = process
        results = interleaved({name: process.turn for name, process in processes.items()}, command.rounds)
    speeds = {
        name: Spread(tuple(config.rollout_steps / seconds for seconds, _ in found))
        for name, found in results.items()
    }
    rows: dict[str, dict[str, Spread | str]] = {}
    for name, found in results.items():
        peak = found[-1][1]
        rows[name] = {
            SPEED: speeds[name],
            "against RecurrentPPO": speeds[name].against(speeds[RECURRENT]),
            MEMORY: Spread((peak - imports[name],)),
            "MiB of the process": Spread((peak,)),
        }
    what = (
        f"{config.env}: {config.num_envs} environments, rollouts of {config.ppo.n_steps} steps, "
        f"{config.ppo.n_epochs} epochs of minibatches of {config.minibatch_steps}, width "
        f"{config.policy.width}; other memories of ours reach {command.reach} steps back"
    )
    return [Table(NAME, what, rows)]


def _train(turn: Turn, spec: AgentSpec, name: str, reach: int) -> None:
    """Answers: peak memory before there is an agent; anything; peak memory after each iteration."""
    torch.set_num_threads(spec.config.threads)
    turn(peak_mebibytes())
    agent = make_baseline(spec, name, reach)
    agent.set_logger(Logger(None, []))
    steps = spec.config.rollout_steps
    agent.learn(MATURE_ROLLOUTS * steps)
    while True:
        turn(peak_mebibytes())
        agent.learn(steps, reset_num_timesteps=False)
