"""Trained models from run folders, and the options of commands that load one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.configs import command_line
from memory_suite.configs.command_line import Scalar
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import Stream
from memory_suite.runners.run.loading import Which, open_checkpoint
from memory_suite.runners.sequences.build import load_weights, make_model, open_stream
from memory_suite.runners.training.build import choose_device


@dataclass(frozen=True, slots=True)
class TrainedSequence:
    """A trained model with its task."""

    model: SequenceModel
    config: SequenceConfig
    checkpoint: str
    """file name of the checkpoint"""

    def stream(self, split: str, *, num_rows: int | None = None) -> Stream:
        """A split from its beginning."""
        return open_stream(self.config, split, num_rows=num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedOptions:
    """Options that choose the model, its data and the device."""

    run: Path
    """run folder of `train_sequence.py`"""
    checkpoint: Which = "best"
    """which of the run's checkpoints"""
    task_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="task-arg")] = (
        field(default_factory=dict)
    )
    """argument of the task that overrides the run's, such as distance=4096; repeatable"""
    data: Path | None = None
    """text file that replaces the run's; none: the same"""
    seed: int | None = None
    """seed of a generated task; none: the run's"""
    threads: int = 1
    """number of torch threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """device of the model"""

    def __post_init__(self) -> None:
        """Validate."""
        command_line.check_at_least_1(self, "threads")
        if self.seed is not None:
            command_line.check_seed(self.seed)

    def open(self, stream: Stream | None = None) -> TrainedSequence:
        """Load the model from its checkpoint.

        Args:
            stream: stream that the model will read; None: the run's own data, which must exist.

        Raises:
            ValueError: the run has no checkpoint that can be loaded, or an option does not fit the run.
        """
        torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        trained, checkpoint = open_checkpoint(self.run, self.checkpoint, SequenceConfig)
        config = dataclasses.replace(
            trained,
            task_args={**trained.task_args, **self.task_args},  # arguments of the train split
            eval_task_args={**trained.eval_task_args, **self.task_args},
            data=trained.data if self.data is None else self.data,
            seed=trained.seed if self.seed is None else self.seed,
        )
        model = make_model(config, open_stream(config, "valid") if stream is None else stream, device)
        load_weights(model, checkpoint)
        return TrainedSequence(model.eval(), config, checkpoint.path.name)
