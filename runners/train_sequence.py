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

from functools import partial
from typing import Any

import torch
from stable_baselines3.common.utils import set_random_seed

from memory_suite.agents.distributed import DistributedContext, RankLostError
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs import command_line
from memory_suite.configs.command_line import display_path, exit_on_error
from memory_suite.configs.sequence_schema import SequenceConfig, load
from memory_suite.envs.streams.stream import Stream
from memory_suite.runners.run.folder import RunFolder, RunFolderError
from memory_suite.runners.run.loading import load_checkpoint, open_run_folder
from memory_suite.runners.run.messages import how_to_continue, result_paths, run_facts, thread_notes
from memory_suite.runners.run.progress import ProgressDisplay, counted
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.sequences.build import load_weights, make_model, open_stream
from memory_suite.runners.sequences.session import Session
from memory_suite.runners.sequences.trainer import SequenceTrainer, TrainingFaultError
from memory_suite.runners.training.build import choose_device


def main(argv: list[str] | None = None) -> int:
    """Train, evaluate, say where everything is."""
    config = load(argv)
    torch.set_num_threads(config.threads)
    ranks = DistributedContext.from_env()
    device = exit_on_error(lambda: ranks.device(choose_device(config.device)))
    stream = exit_on_error(lambda: open_stream(config, "train", ranks=ranks))
    exit_on_error(lambda: open_stream(config, "valid"))  # find out now whether the model can be judged later
    model = exit_on_error(lambda: _first_model(config, stream, device))
    try:
        ranks.init_process_group(device)
        return _run(config, SequenceTrainer(config, model, stream, ranks), ranks)
    except RankLostError as lost:
        sys.stderr.write(f"rank {ranks.rank}: error: {lost}\n")
        return 1


def _run(config: SequenceConfig, trainer: SequenceTrainer, ranks: DistributedContext) -> int:
    folder = exit_on_error(lambda: ranks.run_on_main(lambda: open_run_folder(config)))
    runner_state, notes = exit_on_error(lambda: _restore(config, trainer, folder, ranks))
    total = config.total_updates * config.tokens_per_update
    display = ProgressDisplay(total, unit="tokens", rank=ranks.rank)
    display.start_at(trainer.tokens)
    facts = _model_facts(config, trainer)
    display.announce({**facts, **run_facts(config, trainer.device, ranks, folder)})
    for note in notes:
        display.note(note)
    session = Session(config, trainer, folder, display, runner_state)
    to_continue = partial(how_to_continue, "train_sequence.py", folder, ranks)
    with GracefulStop(ranks) as stop:
        try:
            interrupted = session.train(stop)
        except TrainingFaultError as fault:  # resumed, it would come to the same
            display.fault(f"error: training stopped: {fault}\n{_where_to_begin_anew(folder)}")
            return 1
        except (RankLostError, ValueError, OSError) as fault:
            display.fault(f"error: training stopped: {fault}\n{to_continue()}")
            return 1
        if interrupted:
            display.note(f"Interrupted at {trainer.tokens:,} tokens, and saved. {to_continue()}")
            stop.leave_together()
            return EXIT_SAVED
    if not ranks.is_main:
        return 0
    try:
        score = session.judge_best()
    except (RunFolderError, OSError) as fault:
        display.note(f"error: the evaluation stopped: {fault}\n{to_continue()}")
        return 1
    folder.write_evaluation(score.to_json())
    if (unscored := score.note("held_out.final_tokens")) is not None:
        display.note(unscored)
    display.summary_table(
        {
            "training": f"{trainer.updates:,} updates, {trainer.tokens:,} tokens",
            **score.rows(),
            **result_paths(folder),
        }
    )
    return 0


def _restore(
    config: SequenceConfig, trainer: SequenceTrainer, folder: RunFolder, ranks: DistributedContext
) -> tuple[dict[str, Any] | None, list[str]]:
    """Set the trainer back to the last checkpoint; what the session had saved with it, and notes on that."""
    if config.resume is None:
        return None, []
    checkpoint = ranks.run_on_main(lambda: load_checkpoint(folder, config, "latest"))
    tree = unflatten(checkpoint.tensors, checkpoint.data)
    trainer.load_state_tree(tree["trainer"])
    notes = [*checkpoint.notes, f"resuming from {display_path(checkpoint.path)}"]
    notes += thread_notes(tree["runner"]["threads"], config)
    return tree["runner"], notes


def _first_model(config: SequenceConfig, stream: Stream, device: torch.device) -> SequenceModel:
    set_random_seed(config.seed)
    model = make_model(config, stream, device)
    if config.init is not None and config.resume is None:
        load_weights(model, RunFolder.open(config.init).latest_checkpoint())
    return model


def _model_facts(config: SequenceConfig, trainer: SequenceTrainer) -> dict[str, object]:
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    model = config.model
    arguments = "".join(f", {key} {value}" for key, value in config.task_args.items())
    return {
        "task": f"{config.task}{arguments}; {config.num_rows} rows in blocks of {config.block_size}",
        "training": f"up to {config.total_updates:,} updates of {config.tokens_per_update:,} tokens",
        "model": f"{counted(model.num_layers, 'layer')} of width {model.width}, {parameters:,} parameters",
        "memory": config.memory.summary,
    }


def _where_to_begin_anew(folder: RunFolder) -> str:
    if not folder.has_checkpoint:
        return "There is no checkpoint yet to begin from."
    return (
        "With other options a new run can begin from these weights: "
        f"python runners/train_sequence.py --init {display_path(folder.path)} OPTIONS"
    )


if __name__ == "__main__":
    DistributedContext.exit(command_line.run(main))
