"""What a training run announces before it begins."""

from __future__ import annotations

from memory_suite.agents.algorithms.forgetting import FULL_MEMORY_INTERVAL
from memory_suite.agents.algorithms.on_policy import STATISTICS_ROLLOUTS, MemoryOnPolicyAlgorithm
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.runners.run.progress import counted


def task_facts(config: TrainConfig) -> dict[str, object]:
    """Environment and algorithm."""
    return {
        "environment": f"{config.env} x {config.num_envs}",
        "algorithm": f"{config.algo.upper()}, up to {config.total_steps:,} steps",
    }


def agent_facts(config: TrainConfig, agent: MemoryOnPolicyAlgorithm) -> dict[str, object]:
    """The policy, its memory, how it learns to forget, and what is normalized."""
    parameters = sum(parameter.numel() for parameter in agent.policy.parameters())
    policy = config.policy
    return {
        "policy": f"{counted(policy.num_layers, 'layer')} of width {policy.width}, {parameters:,} parameters",
        "memory": config.memory.summary,
        "forgetting": forgetting(config, int(agent.forgetting.full_memory_N.sum())),
        "normalized": normalization(config),
    }


def forgetting(config: TrainConfig, num_full_memory: int) -> str:
    """How spans learn, or why they cannot.

    Args:
        config: the configuration.
        num_full_memory: number of environments that keep all memories.
    """
    method, memory = config.method, config.memory
    if not memory.learns_spans:
        return f"{method}: nothing to learn, since memory {memory.kind} does not learn spans"
    match method:
        case "counterfactual":
            rule = f"{method}: memories whose absence changes no action"
            if num_full_memory:
                return f"{rule}; {num_full_memory} of {config.num_envs} environments keep all memories"
            return (
                f"{rule}; with fewer than {FULL_MEMORY_INTERVAL} environments none keeps all memories, so a "
                "use of an expired memory cannot be found"
            )
        case "paper":
            return (
                f"{method}: spans learn from the task loss on a ramp of {counted(memory.ramp, 'step')}, "
                f"against a penalty of weight {config.penalty.weight:g} (form {config.penalty.form})"
            )
        case "none":
            span = memory.initial_span_fraction * memory.max_span
            return f"{method}: every memory is kept for the initial span of {span:,.0f} steps"


def normalization(config: TrainConfig) -> str:
    """What is normalized, and how."""
    observations = "not normalized"
    if config.policy.normalize_observations:
        observations = f"running standard deviation, fixed after {STATISTICS_ROLLOUTS} rollouts"
    return f"observations: {observations}; returns: critic in units of the size of returns"
