"""Play one episode and record the agent's memory at every step.

python runners/record_episode.py --run runs/NAME --seed 7 --out episode.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from dataclasses import dataclass

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.training.trained_agent import AgentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordCommand(AgentOptions):
    """Play one episode and record the agent's memory at every step."""

    run: Path
    """run folder of the agent"""
    out: Path = Path("episode.npz")
    """file to write; docs/recording.md describes it"""
    seed: int = 0
    """seed of the environment and of the sampled actions"""
    max_steps: int | None = None
    """maximum number of steps; none: play to the end of the episode"""
    pictures: bool = True
    """record the environment's pictures"""

    def __post_init__(self) -> None:
        """Validate."""
        AgentOptions.__post_init__(self)
        command_line.check_seed(self.seed)
        command_line.check_output(self.out, "out")


def main(argv: list[str] | None = None) -> int:
    """Play the episode, write the file."""
    command = command_line.parse(RecordCommand, argv)
    trained = exit_on_error(lambda: command.open(command.run))
    record = exit_on_error(
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
