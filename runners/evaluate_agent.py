"""Judge a trained agent on unseen episodes.

python runners/evaluate_agent.py --run runs/NAME --episodes 1000 --seed 12345
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from configs import command_line
from configs.command_line import or_exit
from envs.vec_env import EnvironmentFault, make_vec_env
from runners.agent_factory import check_spaces, for_agents
from runners.episodes import AgentOptions
from runners.evaluation import MAX_ENVS, EvaluationResult, evaluate
from runners.progress import ProgressDisplay
from runners.run_folder import write_json_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateCommand(AgentOptions):
    """Judge a trained agent on unseen episodes."""

    run: Path
    """run folder of the agent"""
    episodes: int = 1000
    """how many episodes"""
    seed: int = 12345
    """seeds the environments and the sampled actions"""
    json: Path | None = None
    """also write the result to this file"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        AgentOptions.__post_init__(self)
        command_line.check_at_least_1(self, "episodes")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)


def main(argv: list[str] | None = None) -> int:
    """Play, print a table, write the JSON."""
    command = command_line.parse(EvaluateCommand, argv)
    display = ProgressDisplay(0)
    try:
        result, env_name = or_exit(lambda: run(command))
    except EnvironmentFault as fault:
        display.note(f"error: the evaluation stopped: {fault}")
        return 1
    display.summary_table(result.rows(env_name))
    if command.json is not None:
        write_json_atomically(command.json, result.to_json())
        display.note(f"written to {command.json}")
    return 0


def run(command: EvaluateCommand) -> tuple[EvaluationResult, str]:
    """Do what the command says; gives the result and the environment's name.

    Raises:
        ValueError: the run, the environment or its arguments are not as they must be.
    """
    trained = command.open(command.run)
    num_envs = min(command.episodes, MAX_ENVS)
    env = for_agents(make_vec_env(trained.env_name, num_envs, command.seed, dict(trained.env_args)))
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


if __name__ == "__main__":
    sys.exit(command_line.run(main))
