"""Opens run folders and reads checkpoints out of them, checked against the folder's configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, TypeVar

from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs.run_config import RunConfig, checkpoint_options, from_yaml
from memory_suite.runners.run.folder import Checkpoint, RunFolder, RunFolderError

Config = TypeVar("Config", bound=RunConfig)

Which = Literal["best", "latest"]
"""which of a run's checkpoints"""


def open_run_folder(config: RunConfig) -> RunFolder:
    """Create the folder of a new run, or open the one to resume and update its config.yaml."""
    if config.resume is None:
        return RunFolder.create(config)
    folder = RunFolder.open(config.resume, keep_checkpoints=config.keep_checkpoints, to_resume=True)
    folder.write_config(config)
    return folder


def open_checkpoint(run: Path, which: Which, schema: type[Config]) -> tuple[Config, Checkpoint]:
    """Read the configuration and a checkpoint of a run; notes on damaged checkpoints go to stderr.

    Args:
        run: run folder.
        which: which of its checkpoints.
        schema: class of its configuration.

    Raises:
        ValueError: not a run folder, an invalid configuration, or no checkpoint that can be loaded.
    """
    folder = RunFolder.open(run)
    config = from_yaml(schema, folder.config_file)
    checkpoint = load_checkpoint(folder, config, which)
    for note in checkpoint.notes:
        sys.stderr.write(f"{note}\n")
    return config, checkpoint


def load_checkpoint(folder: RunFolder, config: RunConfig, which: Which) -> Checkpoint:
    """A checkpoint of an open run folder; its `notes` name the damaged ones that were skipped.

    Raises:
        RunFolderError: no checkpoint can be loaded, or it belongs to another run.
    """
    checkpoint = folder.best_checkpoint() if which == "best" else folder.latest_checkpoint()
    check_same_run(checkpoint, config)
    return checkpoint


def check_same_run(checkpoint: Checkpoint, config: RunConfig) -> None:
    """Refuse a checkpoint of another run than the one that config.yaml describes.

    Raises:
        RunFolderError: names the file and the first option that differs.
    """
    saved = unflatten(checkpoint.tensors, checkpoint.data)["runner"].get("config", {})  # absent in older ones
    for option, value in checkpoint_options(config).items():
        if saved.get(option, value) != value:
            raise RunFolderError(
                f"{checkpoint.path} is of another run: {option} was {saved[option]} there, and is {value} "
                "in config.yaml"
            )
