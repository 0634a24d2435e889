"""Evaluate a trained sequence model on a split, carrying memory from block to block.

python runners/evaluate_sequence.py --run runs/NAME --split test
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from dataclasses import dataclass, replace
from typing import Literal

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.sequences.error_by_distance import ErrorByDistance
from memory_suite.runners.sequences.evaluation import SequenceScore, evaluate
from memory_suite.runners.sequences.loading import TrainedOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSequenceCommand(TrainedOptions):
    """Evaluate a trained sequence model on a split, carrying memory from block to block."""

    split: Literal["train", "valid", "test"] = "test"
    """split to read"""
    tokens: int | None = None
    """number of tokens to read, all rows together, rounded up to whole blocks; none: the whole split (of
    train, 2^22 tokens)"""
    num_rows: int | None = None
    """number of rows that the split is cut into, each with a memory of its own; none: as in training"""
    block_size: int | None = None
    """tokens of a row read at a time, which changes results only by rounding; none: as in training"""
    max_span: int | None = None
    """limit on spans in steps; none: as learned"""
    json: Path | None = None
    """also write the result to this file"""

    def __post_init__(self) -> None:
        """Validate."""
        TrainedOptions.__post_init__(self)
        for name in ("tokens", "num_rows", "block_size", "max_span"):
            if getattr(self, name) is not None:
                command_line.check_at_least_1(self, name)
        command_line.check_output(self.json)


WHOLE_TRAIN_TOKENS = 1 << 22
"""tokens read of the train split, which never ends"""


def main(argv: list[str] | None = None) -> int:
    """Read, print a table, write the JSON."""
    command = command_line.parse(EvaluateSequenceCommand, argv)
    display = ProgressDisplay(0)
    score = exit_on_error(lambda: run(command))
    display.summary_table(score.rows())
    if (note := score.note("tokens")) is not None:
        display.note(note)
    if command.json is not None:
        write_json_atomically(command.json, score.to_json())
        display.note(f"written to {command.json}")
    return 0


def run(command: EvaluateSequenceCommand) -> SequenceScore:
    """Evaluate the run that the options name.

    Raises:
        ValueError: the run, the data or an option does not work.
    """
    trained = command.open()
    tokens = command.tokens
    if tokens is None and command.split == "train":
        tokens = WHOLE_TRAIN_TOKENS
    stream = trained.stream(command.split, num_rows=command.num_rows)
    by_distance = ErrorByDistance(stream.chance_accuracy)
    score = evaluate(
        trained.model,
        stream,
        block_size=command.block_size or trained.config.block_size,
        max_tokens=tokens,
        max_span=command.max_span,
        on_block=by_distance.add,
    )
    return replace(score, extra=by_distance.results())


if __name__ == "__main__":
    sys.exit(command_line.run(main))
