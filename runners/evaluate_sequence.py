"""Judge a trained sequence model: stream a whole split once, memory carried through.

python runners/evaluate_sequence.py --run runs/NAME --split test
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.envs.streams.oracle import WINDOWS, errors_by_window
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, Block
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.sequences.evaluation import SequenceScore, evaluate
from memory_suite.runners.sequences.loading import TrainedOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSequenceCommand(TrainedOptions):
    """Judge a trained sequence model: stream a whole split once, memory carried through."""

    split: Literal["train", "valid", "test"] = "test"
    """which data"""
    tokens: int | None = None
    """read so many, all rows together, rounded up to whole blocks of all rows; none: the whole split (of
    train, 2^22)"""
    num_rows: int | None = None
    """rows that the split is cut into, each with a memory of its own; none: as in training"""
    block_size: int | None = None
    """tokens of a row read at a time, which changes no result but rounding; none: as in training"""
    max_span: int | None = None
    """cut spans to so many steps; none: as learned"""
    json: Path | None = None
    """also write the result to this file"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        TrainedOptions.__post_init__(self)
        for name in ("tokens", "num_rows", "block_size", "max_span"):
            if getattr(self, name) is not None:
                command_line.check_at_least_1(self, name)
        command_line.check_output(self.json)


WHOLE_TRAIN_TOKENS = 1 << 22
"""of the train split, which never ends"""


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
    """Do what the command says.

    Raises:
        ValueError: the run, the data or an option is not as it must be.
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
    return replace(score, extra=by_distance.shares())


class ErrorByDistance:
    """Losses by how far back the needed token lies, in powers of 4, and what a window could do at best."""

    def __init__(self, chance_accuracy: float | None) -> None:
        """Nothing yet; a task that knows how good guessing is has an oracle (`envs.streams.oracle`)."""
        self._chance_accuracy = chance_accuracy
        self._sums: NDArray[np.float64] = np.zeros((2, 32))
        self._distances: list[NDArray[np.int32]] = []

    def add(self, block: Block, losses: torch.Tensor) -> None:
        """Take in a block and the losses of its scored targets."""
        distance = block.distance[block.targets != IGNORE]
        known = distance != UNKNOWN
        power = np.ceil(np.log(np.maximum(distance[known], 1)) / np.log(4)).astype(np.int64)
        np.add.at(self._sums[0], power, losses.cpu().numpy()[known])
        np.add.at(self._sums[1], power, 1.0)
        self._distances.append(distance[known])

    def shares(self) -> dict[str, str]:
        """Mean loss and number of targets for each class of distances that occurs; errors of oracles."""
        losses = {
            f"loss_up_to_{4**power:,}_tokens_back": f"{total / count:.4f} nats ({int(count):,} targets)"
            for power, (total, count) in enumerate(self._sums.T)
            if count
        }
        if self._chance_accuracy is None or not losses:
            return losses
        errors = errors_by_window(np.concatenate(self._distances), WINDOWS, 1.0 - self._chance_accuracy)
        oracles = {
            f"error_of_an_oracle_that_sees_{window:,}_tokens": f"{error:.2%}"
            for window, error in errors.items()
            if error
        }
        return losses | oracles


if __name__ == "__main__":
    sys.exit(command_line.run(main))
