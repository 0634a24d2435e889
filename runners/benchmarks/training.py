"""Training steps per second and peak memory: ours with each memory, and what others offer."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from stable_baselines3.common.logger import Logger

from memory_suite.runners.benchmarks.baselines import NAMES, RECURRENT, make_rival
from memory_suite.runners.benchmarks.options import MATURE_ROLLOUTS, BenchmarkCommand, Subject
from memory_suite.runners.benchmarks.tables import Spread, Table, in_turns
from memory_suite.runners.benchmarks.worker_process import OwnProcess, Turn, peak_mebibytes

NAME = "training"
SPEED = "steps/s"
MEMORY = "MiB above the imports"


def measure(subject: Subject, command: BenchmarkCommand) -> list[Table]:
    """One iteration (rollout and update) of each rival in turns, each in a process of its own."""
    config = subject.config
    with ExitStack() as stack:
        processes: dict[str, OwnProcess] = {}
        imports: dict[str, float] = {}
        for name in NAMES:
            process = stack.enter_context(OwnProcess(_train, subject, name, command.reach))
            imports[name] = process.answer()
            process.turn()  # build it and let its episodes grow old, while nobody else works
            processes[name] = process
        turns = in_turns({name: process.turn for name, process in processes.items()}, command.rounds)
    speeds = {
        name: Spread(tuple(config.rollout_steps / seconds for seconds, _ in found))
        for name, found in turns.items()
    }
    rows: dict[str, dict[str, Spread | str]] = {}
    for name, found in turns.items():
        peak = found[-1][1]
        rows[name] = {
            SPEED: speeds[name],
            "against RecurrentPPO": speeds[name].against(speeds[RECURRENT]),
            MEMORY: Spread((peak - imports[name],)),
            "MiB of the process": Spread((peak,)),
        }
    what = (
        f"{config.env}: {config.num_envs} environments, rollouts of {config.ppo.n_steps} steps, "
        f"{config.ppo.n_epochs} epochs of minibatches of {config.ppo.batch_size}, width "
        f"{config.policy.width}; other memories of ours reach {command.reach} steps back"
    )
    return [Table(NAME, what, rows)]


def _train(turn: Turn, subject: Subject, name: str, reach: int) -> None:
    """Answers: peak memory before there is an agent; anything; peak memory after each iteration."""
    torch.set_num_threads(subject.config.threads)
    turn(peak_mebibytes())
    rival = make_rival(subject, name, reach)
    rival.set_logger(Logger(None, []))
    steps = subject.config.rollout_steps
    rival.learn(MATURE_ROLLOUTS * steps)
    while True:
        turn(peak_mebibytes())
        rival.learn(steps, reset_num_timesteps=False)
