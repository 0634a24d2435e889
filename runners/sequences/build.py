"""Streams and models from a configuration."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs.model import transformer_settings
from memory_suite.configs.sequence_schema import SequenceConfig
from memory_suite.envs.streams.stream import Stream
from memory_suite.envs.streams.tasks import make_stream
from memory_suite.runners.run.folder import Checkpoint


def open_stream(
    config: SequenceConfig,
    split: str,
    *,
    ranks: DistributedContext | None = None,
    num_rows: int | None = None,
) -> Stream:
    """Open a split of a run's task.

    Args:
        config: configuration of the run.
        split: "train", "valid" or "test".
        ranks: processes that share the rows; None: all rows here.
        num_rows: rows of the whole batch; None: as in training.

    Raises:
        ValueError: an option does not work or a file is missing; the message names the option.
    """
    arguments: dict[str, Any] = dict(config.arguments(split))
    for name in arguments.keys() & inspect.signature(make_stream).parameters.keys():
        raise ValueError(f"the task {config.task!r} has no argument {name!r}")
    try:
        return make_stream(
            config.task,
            split=split,
            num_rows=config.num_rows if num_rows is None else num_rows,
            seed=config.seed,
            data=config.data,
            shard_index=0 if ranks is None else ranks.rank,
            num_shards=1 if ranks is None else ranks.world_size,
            **arguments,
        )
    except OSError as error:
        raise ValueError(str(error)) from None  # it names the option


def make_model(config: SequenceConfig, stream: Stream, device: torch.device) -> SequenceModel:
    """Build a model with weights drawn from the run's seed.

    Raises:
        ValueError: settings contradict each other.
    """
    torch.manual_seed(config.seed)
    return SequenceModel(
        transformer_settings(config.memory, config.model),
        vocabulary_size=stream.vocabulary_size,
        num_targets=stream.num_targets,
        dropout=config.model.dropout,
    ).to(device)


def load_weights(model: SequenceModel, checkpoint: Checkpoint) -> None:
    """Load the weights of a checkpoint into a model.

    Raises:
        ValueError: the checkpoint's model has another size or another task.
    """
    weights = unflatten(checkpoint.tensors, checkpoint.data)["trainer"]["model"]
    expected = {name: list(part.shape) for name, part in model.state_dict().items()}
    found = {name: list(part.shape) for name, part in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"task: the model of {checkpoint.path} has {name} of shape {found.get(name)}, but this task, "
                f"its arguments and the model's options need {expected.get(name)}"
            )
    model.load_state_dict(weights)
