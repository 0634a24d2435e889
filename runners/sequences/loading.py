"""A model out of a run folder, and what the commands that look at one have in common."""

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
    """A trained model and the task it is to be seen on."""

    model: SequenceModel
    config: SequenceConfig
    checkpoint: str
    """name of the checkpoint's file"""

    def stream(self, split: str, *, num_rows: int | None = None) -> Stream:
        """A split from its beginning."""
        return open_stream(self.config, split, num_rows=num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedOptions:
    """Which model, on which data, computed where."""

    run: Path
    """run folder of `train_sequence.py`"""
    checkpoint: Which = "best"
    """which of the run's checkpoints"""
    task_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="task-arg")] = (
        field(default_factory=dict)
    )
    """argument of the task that differs from the run's on this split, such as distance=4096; repeatable"""
    data: Path | None = None
    """another text than the run's; none: the same"""
    seed: int | None = None
    """of a generated task; none: the run's"""
    threads: int = 1
    """torch's threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the model computes"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        command_line.check_at_least_1(self, "threads")
        if self.seed is not None:
            command_line.check_seed(self.seed)

    def open(self, stream: Stream | None = None) -> TrainedSequence:
        """Read the checkpoint.

        Args:
            stream: what the model is to read; None: splits of the run's own data, which then must be there.

        Raises:
            ValueError: the run has none that can be loaded, or an option does not fit it.
        """
        torch.set_num_threads(self.threads)
        device = choose_device(self.device)
        trained, checkpoint = open_checkpoint(self.run, self.checkpoint, SequenceConfig)
        config = dataclasses.replace(
            trained,
            task_args={**trained.task_args, **self.task_args},  # which the train split goes by
            eval_task_args={**trained.eval_task_args, **self.task_args},
            data=trained.data if self.data is None else self.data,
            seed=trained.seed if self.seed is None else self.seed,
        )
        model = make_model(config, open_stream(config, "valid") if stream is None else stream, device)
        load_weights(model, checkpoint)
        return TrainedSequence(model.eval(), config, checkpoint.path.name)
