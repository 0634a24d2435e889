"""Share of the machine's rate of matrix multiplication that an update reaches."""

from __future__ import annotations

import time

import torch
from stable_baselines3.common.logger import Logger

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.model.layer import FEEDFORWARD_MULTIPLIER
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.benchmarks.options import MATURE_ROLLOUTS, AgentSpec, BenchmarkCommand
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved
from memory_suite.runners.training.build import make_agent, make_training_env

NAME = "update"
MATRIX_SIZE = 1_024
"""side of the square matrices whose product measures the machine"""
PRODUCTS = 5
MACHINE = "matrix multiplication"


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """Updates and plain matrix products, interleaved, counting the model's operations."""
    config = spec.config
    torch.set_num_threads(config.threads)
    agents = {
        "nothing forgotten yet": make_agent(config, make_training_env(config)),
        "forgetting": spec.build(),
    }
    operations = {MACHINE: PRODUCTS * 2.0 * MATRIX_SIZE**3}
    for name, agent in agents.items():
        agent.set_logger(Logger(None, []))
        agent.learn(MATURE_ROLLOUTS * config.rollout_steps)
        operations[name] = _update_operations(config, agent)
    left, right = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=agents["forgetting"].device)

    def multiply() -> float:
        began = time.perf_counter()
        for _ in range(PRODUCTS):
            product = torch.mm(left, right)
        product[0, 0].item()  # waits for a GPU
        return time.perf_counter() - began

    def update(agent: MemoryOnPolicyAlgorithm) -> float:
        began = time.perf_counter()
        agent.train()
        return time.perf_counter() - began

    multiply()
    updates = {name: lambda agent=agent: update(agent) for name, agent in agents.items()}
    seconds = interleaved({MACHINE: multiply, **updates}, command.rounds)
    rates = {
        name: Spread(tuple(operations[name] / one / 1e9 for one in found)) for name, found in seconds.items()
    }
    rows: dict[str, dict[str, Spread | str]] = {
        name: {"Gflop/s": rate, "share of the machine's": rate.against(rates[MACHINE])}
        for name, rate in rates.items()
    }
    return [Table(NAME, f"{config.env}: the model's own matrix products in an update", rows)]


def _update_operations(config: TrainConfig, agent: MemoryOnPolicyAlgorithm) -> float:
    """Floating point operations of the model's matrix products in one update, forward and backward.

    Of the model as the paper writes it, however it is computed here: every memory, also a stored one, has
    its key and value projected once for each minibatch it is in, and heads are `width / num_heads` wide. Only
    pairs of a step and a memory that it may see count, not what is computed and masked.
    """
    policy, ppo = config.policy, config.ppo
    state = agent.rollout_buffer.state
    assert state is not None
    tokens = config.num_envs * ppo.n_steps
    width = policy.width
    total = 0.0
    features = len(agent.policy.encoder.mean_F)
    for stored in state.retained_NB.sum(1).tolist():
        pairs = stored * ppo.n_steps + tokens * (ppo.n_steps - 1) / 2
        projections = tokens * (4 * width**2 + 2 * FEEDFORWARD_MULTIPLIER * width**2)
        projections += stored * 2 * width**2
        total += 2 * (projections + pairs * 2 * width)
    total += 2 * tokens * features * width
    # Backward takes twice as many as forward.
    return 3 * total * ppo.n_epochs
