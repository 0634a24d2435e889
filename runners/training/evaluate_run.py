"""Evaluate a checkpoint of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from memory_suite.configs import command_line
from memory_suite.envs.make import make_vec_env
from memory_suite.runners.training.build import check_spaces, wrap_for_sb3
from memory_suite.runners.training.evaluation import MAX_ENVS, EvaluationResult, evaluate
from memory_suite.runners.training.trained_agent import AgentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateCommand(AgentOptions):
    """Evaluate a trained agent on unseen episodes."""

    run: Path
    """run folder of the agent"""
    episodes: int = 1000
    """number of episodes"""
    seed: int = 12345
    """seeds the environments and the sampled actions"""
    json: Path | None = None
    """also write the result to this file"""

    def __post_init__(self) -> None:
        """Validate the options."""
        AgentOptions.__post_init__(self)
        command_line.check_at_least_1(self, "episodes")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)


def run(command: EvaluateCommand) -> tuple[EvaluationResult, str]:
    """Run the evaluation; return its result and the environment's name.

    Raises:
        ValueError: the run, the environment or its arguments are invalid.
    """
    trained = command.open(command.run)
    num_envs = min(command.episodes, MAX_ENVS)
    env = wrap_for_sb3(make_vec_env(trained.env_name, num_envs, command.seed, dict(trained.env_args)))
    check_spaces(env, trained.agent, f"env: {trained.env_name}", "the agent was trained with")
    result = evaluate(
        trained.agent,
        env,
        episodes=command.episodes,
        seed=command.seed,
        deterministic=command.deterministic,
    )
    env.close()
    return result, trained.env_name
