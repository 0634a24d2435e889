"""Open an episode in the browser: move through time, inspect memories, play.

python runners/view_episode.py --run runs/NAME --seed 7
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import webbrowser
from dataclasses import dataclass

from memory_suite.agents.serialization.archive import write_file_atomically
from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.rendering.viewer import viewer_html
from memory_suite.runners.training.trained_agent import EpisodeOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewCommand(EpisodeOptions):
    """Open an episode in the browser."""

    out: Path = Path("episode.html")
    """file to write; it works without network and server"""
    no_open: bool = False
    """only write the file"""

    def __post_init__(self) -> None:
        """Validate."""
        EpisodeOptions.__post_init__(self)
        command_line.check_output(self.out, "out")


def main(argv: list[str] | None = None) -> int:
    """Play or read an episode, write the page, open it."""
    command = command_line.parse(ViewCommand, argv)
    record = exit_on_error(command.episode)
    write_file_atomically(command.out, viewer_html(record).encode())
    print(f"{record.num_steps:,} steps: {command.out} ({command.out.stat().st_size / 2**20:.2f} MiB)")
    if not command.no_open:
        webbrowser.open(command.out.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main))
