"""Train an agent that learns what to remember and what to forget.

    python runners/train_agent.py --env corridor-long
    torchrun --nproc-per-node 2 -- runners/train_agent.py --env corridor-long

Exit codes: 0 done; 2 a mistake in the options; 75 interrupted and saved (continue with --resume);
1 anything else. (`torchrun` itself leaves with 1 whenever a process leaves with another code than 0, and
reports that code.)
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import load
from memory_suite.runners.run.processes import exit_process


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, say where everything is."""
    config = load(argv)
    # Importing torch takes a second: not for --help, nor before a mistake in the options is reported.
    from memory_suite.runners.training.run import train

    return train(config)


if __name__ == "__main__":
    exit_process(command_line.run(main))
