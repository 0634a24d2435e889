"""Draw an episode and the agent's memory: a video, a GIF, or the whole episode on one sheet.

python runners/render_episode.py --run runs/NAME --out episode.mp4 --seed 7
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from dataclasses import dataclass

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.rendering.render import render
from memory_suite.runners.training.trained_agent import EpisodeOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderCommand(EpisodeOptions):
    """Draw an episode and the agent's memory."""

    out: Path = Path("episode.mp4")
    """file to write: .mp4, .gif, or .png (the whole episode on one sheet)"""
    layer: int | None = None
    """number of the layer to show, from 1; none: all"""
    fps: float = 10.0
    """pictures per second"""

    def __post_init__(self) -> None:
        """Validate."""
        EpisodeOptions.__post_init__(self)
        command_line.check_output(self.out, "out")
        if self.out.suffix not in (".mp4", ".gif", ".png"):
            raise ValueError(f"out must end in .mp4, .gif or .png, got {self.out}")
        if self.fps <= 0:
            raise ValueError(f"fps must be greater than 0, got {self.fps}")


def main(argv: list[str] | None = None) -> int:
    """Play or read an episode, draw it."""
    command = command_line.parse(RenderCommand, argv)
    record = exit_on_error(command.episode)
    exit_on_error(lambda: render(record, command.out, layer=command.layer, fps=command.fps))
    facts = record.facts
    print(f"{record.num_steps:,} steps, return {facts['return']:g}: {command.out}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main))
