"""Train the memory transformer on a stream of tokens.

    python runners/train_sequence.py --task collision
    python runners/train_sequence.py --task text --data FILE --memory transformer-xl --memory.size 512
    torchrun --nproc-per-node 2 -- runners/train_sequence.py --task copy

Exit codes: 0 done; 2 a mistake in the options; 75 interrupted and saved (continue with --resume);
1 anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from memory_suite.configs import command_line
from memory_suite.configs.sequence_schema import load
from memory_suite.runners.run.processes import exit_process


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate and print where everything is."""
    config = load(argv)
    # Importing torch takes a second: not for --help, nor before a mistake in the options is reported.
    from memory_suite.runners.sequences.session import train

    return train(config)


if __name__ == "__main__":
    exit_process(command_line.run(main))
