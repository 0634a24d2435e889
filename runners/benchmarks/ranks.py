"""Samples per second of two processes on two cores against one process on one core."""

from __future__ import annotations

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import replace

import torch
from stable_baselines3.common.logger import Logger

from memory_suite.agents.distributed import DistributedContext
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.benchmarks.options import MATURE_ROLLOUTS, AgentSpec, BenchmarkCommand
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved
from memory_suite.runners.benchmarks.worker_process import Turn, WorkerProcess, stay_on
from memory_suite.runners.run.processes import usable_cores
from memory_suite.runners.training.build import choose_device, make_agent, make_training_env

NAME = "ranks"
SPEED = "samples/s"
COUNT = 2
ONE_RANK = "1 rank on 1 core"
BATCHES = (1, COUNT)
"""batch of several ranks as a multiple of the batch of one: ranks share the batch, or each has as much"""


def check(spec: AgentSpec) -> None:
    """Raise ValueError, before any work is done, if there are too few cores or environments."""
    if len(usable_cores()) < COUNT:
        raise ValueError(f"parts: ranks needs {COUNT} cores, this process may use {len(usable_cores())}")
    if spec.config.device == "cuda" and torch.cuda.device_count() < COUNT:
        raise ValueError(
            f"parts: ranks on GPUs needs {COUNT} of them, torch finds {torch.cuda.device_count()}"
        )
    make_training_env(spec.config, ranks=DistributedContext(0, COUNT)).close()


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """One iteration of each group of ranks, interleaved."""
    config = spec.config
    with ExitStack() as stack:
        running = {ONE_RANK: _Group(stack, config, 1)}
        for times in BATCHES:
            what = "the same batch" if times == 1 else f"{times}x the batch"
            name = f"{COUNT} ranks on {COUNT} cores, {what}"
            running[name] = _Group(stack, _larger(config, times), COUNT)
        for group in running.values():
            group.wait()
        speeds = {
            name: Spread(tuple(found))
            for name, found in interleaved(
                {name: group.samples_per_second for name, group in running.items()}, command.rounds
            ).items()
        }
    rows: dict[str, dict[str, Spread | str]] = {
        name: {SPEED: speed, "against 1 rank": speed.against(speeds[ONE_RANK])}
        for name, speed in speeds.items()
    }
    what = f"{config.env}, training of a fresh agent, {config.num_envs} environments in the batch of one rank"
    return [Table(NAME, what, rows)]


def _larger(config: TrainConfig, times: int) -> TrainConfig:
    """The same training with `times` as many environments and as large a minibatch."""
    return replace(
        config,
        num_envs=times * config.num_envs,
        ppo=replace(config.ppo, batch_size=times * config.minibatch_steps),
        total_steps=max(config.total_steps, times * config.rollout_steps),
    )


class _Group:
    """The ranks of one training, each kept on a core of its own."""

    def __init__(self, stack: ExitStack, config: TrainConfig, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._steps = config.rollout_steps
        self._processes = [
            stack.enter_context(WorkerProcess(_train, config, index, count, port)) for index in range(count)
        ]

    def wait(self) -> None:
        """Wait until all ranks have answered."""
        for process in self._processes:
            process.answer()

    def samples_per_second(self) -> float:
        """Speed of one iteration; the slowest rank counts."""
        began = time.perf_counter()
        for process in self._processes:
            process.begin()
        self.wait()
        return self._steps / (time.perf_counter() - began)


def _train(turn: Turn, config: TrainConfig, index: int, count: int, port: int) -> None:
    stay_on(usable_cores()[index])
    torch.set_num_threads(config.threads)
    os.environ |= {
        "RANK": str(index),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(index),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    ranks = DistributedContext.from_env()
    ranks.init_process_group(ranks.device(choose_device(config.device)))
    agent = make_agent(config, make_training_env(config, ranks=ranks), ranks)
    agent.set_logger(Logger(None, []))
    agent.learn(MATURE_ROLLOUTS * config.rollout_steps)
    while True:
        turn(None)
        agent.learn(config.rollout_steps, reset_num_timesteps=False)
