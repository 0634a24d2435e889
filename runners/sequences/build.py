"""From a configuration to streams and models."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs.model import MemoryConfig, ModelConfig
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
    """A split of the task that a run is on.

    Args:
        config: of the run.
        split: "train", "valid" or "test".
        ranks: share the rows among them; None: all rows here.
        num_rows: of the whole batch; None: as in training.

    Raises:
        ValueError: names the option that cannot work, also if a file is missing.
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


def transformer_settings(memory: MemoryConfig, model: ModelConfig) -> TransformerSettings:
    """What the options mean for the transformer."""
    return TransformerSettings(
        width=model.width,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        feedforward_multiplier=model.feedforward_multiplier,
        query_key_gain=model.query_key_gain,
        null_memory=model.null_memory,
        layer_drop=model.layer_drop,
        attention=model.attention,
        memory=memory.kind,
        max_span=memory.max_span,
        ramp=memory.ramp,
        initial_span_fraction=memory.initial_span_fraction,
        span_divisor=memory.span_divisor,
        memory_size=memory.size,
        compressed_size=memory.compressed_size,
        compression_rate=memory.compression_rate,
        position_window=memory.position_window,
    )


def make_model(config: SequenceConfig, stream: Stream, device: torch.device) -> SequenceModel:
    """A fresh model, the same for the same seed.

    Raises:
        ValueError: settings that contradict each other.
    """
    torch.manual_seed(config.seed)
    return SequenceModel(
        transformer_settings(config.memory, config.model),
        vocabulary_size=stream.vocabulary_size,
        num_targets=stream.num_targets,
        dropout=config.model.dropout,
    ).to(device)


def load_weights(model: SequenceModel, checkpoint: Checkpoint) -> None:
    """Give a model the weights of a checkpoint.

    Raises:
        ValueError: they are of a model of another size, or for another task.
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
