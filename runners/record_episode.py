"""Play one episode and write down what the agent's memory held at every step.

python runners/record_episode.py --run runs/NAME --seed 7 --out episode.npz
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
from runners.episodes import TrainedAgent


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordCommand:
    """Play one episode and write down what the agent's memory held at every step."""

    run: Path
    """run folder of the agent"""
    out: Path = Path("episode.npz")
    """file to write; docs/recording.md describes it"""
    checkpoint: Literal["best", "latest"] = "best"
    """which of its checkpoints"""
    seed: int = 0
    """seeds the environment and the sampled actions"""
    deterministic: bool = False
    """take the most likely action instead of sampling"""
    max_steps: int | None = None
    """stop after so many steps; none: at the end of the episode"""
    pictures: bool = True
    """keep the environment's pictures"""
    env: str | None = None
    """another environment than the one trained on; none: the same"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, such as length=100; repeatable"""


def main(argv: list[str] | None = None) -> int:
    """Play, write the file."""
    command = command_line.parse(RecordCommand, argv)
    torch.set_num_threads(1)
    trained = or_exit(
        lambda: TrainedAgent.open(command.run, command.checkpoint, env=command.env, env_args=command.env_args)
    )
    record = or_exit(
        lambda: trained.record(
            seed=command.seed,
            deterministic=command.deterministic,
            max_steps=command.max_steps,
            pictures=command.pictures,
        )
    )
    record.save(command.out)
    size = command.out.stat().st_size / 2**20
    print(f"{record.num_steps:,} steps, return {record.facts['return']:g}: {command.out} ({size:.2f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main))
