"""Evaluate a trained agent on unseen episodes.

python runners/evaluate_agent.py --run runs/NAME --episodes 1000 --seed 12345
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")


from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.envs.errors import EnvFailedError
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.training.evaluate_run import EvaluateCommand, run


def main(argv: list[str] | None = None) -> int:
    """Evaluate, print a table, write the JSON file."""
    command = command_line.parse(EvaluateCommand, argv)
    display = ProgressDisplay(0)
    try:
        result, env_name = exit_on_error(lambda: run(command))
    except EnvFailedError as fault:
        display.note(f"error: the evaluation stopped: {fault}")
        return 1
    display.summary_table(result.rows(env_name))
    if command.json is not None:
        write_json_atomically(command.json, result.to_json())
        display.note(f"written to {command.json}")
    return 0


if __name__ == "__main__":
    sys.exit(command_line.run(main))
