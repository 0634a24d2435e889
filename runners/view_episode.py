"""Look into an episode in the browser: scrub through time, point at memories, play.

python runners/view_episode.py --run runs/NAME --seed 7
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import tyro

from agents.archive import write_file_atomically
from configs import command_line
from configs.command_line import Scalar, or_exit
from runners.episodes import episode_of
from runners.viewer import viewer_html


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewCommand:
    """Look into an episode in the browser."""

    run: Path | None = None
    """run folder of the agent"""
    record: Path | None = None
    """show a recorded episode instead of playing one (record_episode.py)"""
    out: Path = Path("episode.html")
    """file to write; it needs neither network nor server"""
    no_open: bool = False
    """only write the file"""
    checkpoint: Literal["best", "latest"] = "best"
    """which of the run's checkpoints"""
    seed: int = 0
    """seeds the environment and the sampled actions"""
    deterministic: bool = False
    """take the most likely action instead of sampling"""
    max_steps: int | None = None
    """stop after so many steps; none: at the end of the episode"""
    env: str | None = None
    """another environment than the one trained on; none: the same"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, such as length=100; repeatable"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if (self.run is None) == (self.record is None):
            raise ValueError("give either run (plays an episode) or record (shows a recorded one)")


def main(argv: list[str] | None = None) -> int:
    """Play or read an episode, write the page, open it."""
    command = command_line.parse(ViewCommand, argv)
    torch.set_num_threads(1)
    record = or_exit(lambda: episode_of(command))
    write_file_atomically(command.out, viewer_html(record).encode())
    print(f"{record.num_steps:,} steps: {command.out} ({command.out.stat().st_size / 2**20:.2f} MiB)")
    if not command.no_open:
        webbrowser.open(command.out.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main))
