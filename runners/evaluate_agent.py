"""Judge a trained agent on unseen episodes.

python runners/evaluate_agent.py --run runs/NAME --episodes 1000 --seed 12345
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import tyro

from configs import command_line
from configs.command_line import Scalar, or_exit
from configs.schema import TrainConfig, from_yaml
from envs.vec_env import EnvironmentFault, make_vec_env
from runners.agent_factory import check_spaces, for_agents, restore_agent
from runners.evaluation import MAX_ENVS, EvaluationResult, evaluate
from runners.progress import ProgressDisplay
from runners.run_folder import RunFolder, write_json_atomically


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateCommand:
    """Judge a trained agent on unseen episodes."""

    run: Path
    """run folder of the agent"""
    checkpoint: Literal["best", "latest"] = "best"
    """which of its checkpoints"""
    episodes: int = 1000
    """how many episodes"""
    seed: int = 12345
    """seeds the environments and the sampled actions"""
    deterministic: bool = False
    """take the most likely action instead of sampling"""
    env: str | None = None
    """another environment than the one trained on; none: the same"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, such as length=10000; repeatable"""
    json: Path | None = None
    """also write the result to this file"""
    threads: int = 1
    """torch's threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the policy computes"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        command_line.check_at_least_1(self, "episodes", "threads")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)


def main(argv: list[str] | None = None) -> int:
    """Play, print a table, write the JSON."""
    command = command_line.parse(EvaluateCommand, argv)
    torch.set_num_threads(command.threads)
    display = ProgressDisplay(0)
    try:
        result, config = or_exit(lambda: run(command))
    except EnvironmentFault as fault:
        display.note(f"error: the evaluation stopped: {fault}")
        return 1
    display.summary_table(result.rows(command.env or config.env))
    if command.json is not None:
        write_json_atomically(command.json, result.to_json())
        display.note(f"written to {command.json}")
    return 0


def run(command: EvaluateCommand) -> tuple[EvaluationResult, TrainConfig]:
    """Do what the command says.

    Raises:
        ValueError: the run, the environment or its arguments are not as they must be.
    """
    folder = RunFolder.open(command.run)
    config = from_yaml(folder.config_file)
    same = command.env is None or command.env == config.env
    arguments = {**(config.evaluation_env_args if same else {}), **command.env_args}
    name = command.env or config.env
    env = for_agents(make_vec_env(name, min(command.episodes, MAX_ENVS), command.seed, arguments))
    chosen = folder.best_checkpoint() if command.checkpoint == "best" else folder.latest_checkpoint()
    agent, _ = restore_agent(chosen, None, command.device)
    check_spaces(env, agent, f"env: {name}", "the agent was trained with")
    result = evaluate(
        agent, env, episodes=command.episodes, seed=command.seed, deterministic=command.deterministic
    )
    env.close()
    return result, config


if __name__ == "__main__":
    sys.exit(command_line.run(main))
