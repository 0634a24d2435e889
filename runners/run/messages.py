"""Messages that all training commands print: facts about the run, and how to continue it."""

from __future__ import annotations

from pathlib import Path

import torch

from memory_suite.agents.distributed import DistributedContext
from memory_suite.configs.command_line import display_path
from memory_suite.configs.run_config import RunConfig
from memory_suite.runners.run.folder import RunFolder


def run_facts(
    config: RunConfig, device: torch.device, ranks: DistributedContext, folder: RunFolder
) -> dict[str, object]:
    """Device, tracking and run folder, as rows to announce."""
    threads = f"{config.threads} torch thread{'s' if config.threads > 1 else ''}"
    return {
        "device": f"{device}, {threads}" + (f", {ranks.world_size} ranks" if ranks.is_distributed else ""),
        "tracking": "disabled" if config.track == "disabled" else f"Weights & Biases, {config.track}",
        "run folder": display_path(folder.path),
    }


def result_paths(folder: RunFolder) -> dict[str, object]:
    """Files of a finished run, as rows of its summary."""
    paths: dict[str, Path] = {
        "metrics": folder.metrics_file,
        "evaluation file": folder.evaluation_file,
        "checkpoints": folder.checkpoints,
    }
    if folder.wandb.is_dir():
        paths["Weights & Biases"] = folder.wandb
    return {name: display_path(path) for name, path in paths.items()}


def thread_notes(threads_before: int, config: RunConfig) -> list[str]:
    """A note if a resumed run computes with another number of threads."""
    if threads_before == config.threads:
        return []
    return [f"threads: {threads_before} before, {config.threads} now: results differ by rounding"]


def how_to_continue(command: str, folder: RunFolder, ranks: DistributedContext) -> str:
    """How to resume a run.

    Args:
        command: script in `runners/` that trains it.
        folder: the run folder.
        ranks: processes that train it.
    """
    if not folder.has_checkpoint:
        return "There is no checkpoint yet to continue from."
    resume = f"Continue with: python runners/{command} --resume {display_path(folder.path)}"
    return f"{resume} (or with torchrun, on any number of ranks)" if ranks.is_distributed else resume
