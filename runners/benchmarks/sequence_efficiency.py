"""The efficiency table: memories of equal reach on one task, one model and one batch.

    python runners/benchmark.py sequence --task text

Each memory trains in a process of its own (for its peak memory), is evaluated on held-out data, and then
updates of the trained models are interleaved in one process, so that a busy machine slows all of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.settings import MemoryKind
from memory_suite.agents.ranges import check
from memory_suite.agents.serialization.state_tree import unflatten
from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.configs.run_config import checkpoint_options
from memory_suite.configs.sequence_schema import SequenceConfig, from_yaml, load
from memory_suite.runners import IMPORT_PATH
from memory_suite.runners.benchmarks.baselines import COMPRESSION_RATE, RAW_SHARE
from memory_suite.runners.benchmarks.tables import interleaved
from memory_suite.runners.run.folder import RunFolder, write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.sequences.build import make_model, open_stream
from memory_suite.runners.sequences.evaluation import NOTHING_SCORED
from memory_suite.runners.sequences.trainer import SequenceTrainer
from memory_suite.runners.training.build import choose_device

BASELINE = "transformer-xl"
"""memory that ratios are taken against"""
PUBLISHED = {
    "text": {
        "transformer-xl": (27, 649),
        "compressive": (21, 838),
        "adaptive-span": (20, 483),
        "expire-span": (15, 408),
    },
    "collision": {"compressive": (12, 327), "adaptive-span": (17, 365), "expire-span": (12, 130)},
}
"""the paper's peak GPU memory (GB) and time per batch (ms): enwik8 and Object Collision"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceBenchmarkCommand:
    """Efficiency of memories of equal reach: held-out performance, time, peak memory, memory held."""

    task: Literal["text", "collision"] = "text"
    """training task of all memories"""
    data: Path | None = None
    """file to read the text from; none: the default one"""
    memories: tuple[MemoryKind, ...] = ("transformer-xl", "adaptive-span", "compressive", "expire-span")
    """memories to compare"""
    reach: int = 4096
    """reach of every memory in steps: size of transformer-xl, maximum span of others"""
    initial_span_fraction: float = 0.05
    """initial fraction p of memories with learned spans"""
    penalty: float = 1e-6
    """weight of the span penalty of memories with learned spans"""
    width: int = 256
    """width of the model"""
    num_layers: int = 4
    """number of layers"""
    num_heads: int = 4
    """number of attention heads"""
    num_rows: int = 4
    """rows in the batch"""
    block_size: int = 256
    """tokens of a row in a block"""
    updates: int = 100
    """training updates before the measurement"""
    learning_rate: float = 1e-3
    """learning rate of all models"""
    held_out_tokens: int = 65_536
    """tokens of the valid split in the evaluation"""
    rounds: int = 5
    """number of interleaved measurements of each memory"""
    run: Path = Path("runs/efficiency")
    """folder of the runs; finished ones are not trained again"""
    seed: int = 0
    """seed of all models and streams"""
    threads: int = 1
    """number of torch threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """device of the models"""
    json: Path | None = None
    """also write the numbers to this file"""

    def __post_init__(self) -> None:
        """Validate."""
        names = ("reach", "width", "num_layers", "num_heads", "num_rows", "block_size", "updates", "rounds")
        command_line.check_at_least_1(self, *names, "threads", "held_out_tokens")
        check("initial_span_fraction", self.initial_span_fraction, "(0, 1)")
        check("penalty", self.penalty, "[0, inf)")
        check("learning_rate", self.learning_rate, "(0, inf)")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)

    def training_argv(self, memory: str) -> list[str]:
        """Options of train_sequence.py for one memory."""
        raw = max(1, self.reach // RAW_SHARE)
        size = raw if memory == "compressive" else self.reach
        options: dict[str, object] = {
            "task": self.task,
            "run": self.run / f"{self.task}-{memory}",
            "memory.kind": memory,
            "memory.max-span": self.reach,
            "memory.ramp": min(64, self.reach),
            "memory.initial-span-fraction": self.initial_span_fraction,
            "memory.size": size,
            "memory.compression-rate": COMPRESSION_RATE,
            "memory.compressed-size": max(1, (self.reach - raw) // COMPRESSION_RATE),
            "model.width": self.width,
            "model.num-layers": self.num_layers,
            "model.num-heads": self.num_heads,
            "model.null-memory": "false",
            "num-rows": self.num_rows,
            "block-size": self.block_size,
            "total-updates": self.updates,
            "optimizer.warmup-updates": min(100, self.updates // 10),
            "optimizer.learning-rate": self.learning_rate,
            "penalty.weight": self.penalty,
            "penalty.form": "all",
            "penalty.begin-updates": 0,
            "held-out.every": self.updates,
            "held-out.tokens": 1,
            "held-out.final-tokens": self.held_out_tokens,
            "seed": self.seed,
            "threads": self.threads,
            "device": self.device,
            "track": "disabled",
        }
        if self.data is not None:
            options["data"] = self.data
        pairs = list(options.items())
        # Train on the stream of the evaluation: the preset's shorter training rows would fill no memory.
        evaluated = load(["--task", self.task]).eval_task_args
        pairs += [("task-arg", f"{name}={value}") for name, value in evaluated.items()]
        return [word for name, value in pairs for word in (f"--{name}", str(value))]


def main(argv: list[str] | None = None) -> int:
    """Train, measure, print the table."""
    command = command_line.parse(SequenceBenchmarkCommand, argv)
    exit_on_error(lambda: choose_device(command.device))
    exit_on_error(lambda: _check_inputs(command))
    torch.set_num_threads(command.threads)
    display = ProgressDisplay(0)
    machine = f"{os.cpu_count()} cores, {command.threads} torch thread(s), {command.device}"
    display.announce({"machine": machine, "torch": torch.__version__, "load": f"{os.getloadavg()[0]:.1f}"})
    base = _peak_mebibytes([sys.executable, "-c", "import memory_suite.runners.sequences.session"])
    peaks: dict[str, float] = {memory: _train(command, memory, display) for memory in command.memories}
    times = _update_milliseconds(command)
    rows = {memory: _row(command, memory, peak - base, times) for memory, peak in peaks.items()}
    for kind, row in rows.items():
        display.summary_table({f"{kind}: {name}": value for name, value in row.items()})
    if command.json is not None:
        write_json_atomically(command.json, {"machine": machine, "rows": rows, "milliseconds": times})
    return 0


def _folder(command: SequenceBenchmarkCommand, memory: str) -> RunFolder:
    return RunFolder.open(command.run / f"{command.task}-{memory}")


def _check_inputs(command: SequenceBenchmarkCommand) -> None:
    """Refuse data and run folders that cannot be used.

    Raises:
        ValueError: a folder holds a run with other options, or a finished run whose peak memory was not noted
            before an interruption. Resumed without training, its process would show a lower peak.
    """
    if command.run.exists() and not command.run.is_dir():
        raise ValueError(f"run: {command.run} is a file, not a folder")
    for memory in command.memories:
        requested = _relevant_options(load(command.training_argv(memory)))
        path = command.run / f"{command.task}-{memory}"
        if not (path / "config.yaml").is_file():
            continue
        found = _relevant_options(from_yaml(path / "config.yaml"))
        for option in [*requested, *sorted(found.keys() - requested.keys())]:
            was, is_now = found.get(option), requested.get(option)
            if was != is_now:
                raise ValueError(
                    f"run: {path} was trained with {option} = {was}, and this command asks for {is_now}; "
                    "choose another --run, or ask for the same"
                )
        folder = RunFolder.open(path)
        tokens = command.updates * command.num_rows * command.block_size
        if (
            not _peak_file(path).is_file()
            and folder.has_checkpoint
            and folder.latest_checkpoint().step >= tokens
        ):
            raise ValueError(
                f"run: {path} is trained, but its peak memory was not noted; delete it to measure again"
            )
    open_stream(load(command.training_argv(command.memories[0])), "train")


def _relevant_options(config: SequenceConfig) -> dict[str, Any]:
    """Options that the numbers depend on, including some that a resumed run may change."""
    return {
        **checkpoint_options(config),
        "threads": config.threads,
        "device": config.device,
        "model.attention": config.model.attention,
        "held_out.final_tokens": config.held_out.final_tokens,
    }


def _train(command: SequenceBenchmarkCommand, memory: str, display: ProgressDisplay) -> float:
    """Train unless the run is finished; returns the peak memory of the process in MiB."""
    path = command.run / f"{command.task}-{memory}"
    peak_file = _peak_file(path)
    if peak_file.is_file():
        display.note(f"{memory}: trained before, in {path}")
        return float(peak_file.read_text())
    display.note(f"{memory}: {command.updates} updates")
    argv = ["--resume", str(path)] if (path / "config.yaml").is_file() else command.training_argv(memory)
    peak = _peak_mebibytes(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "train_sequence.py"), *argv]
    )
    peak_file.write_text(f"{peak}\n")
    return peak


def _peak_file(path: Path) -> Path:
    """File with the peak memory of a finished training."""
    return path / "peak_mebibytes"


def _peak_mebibytes(argv: list[str]) -> float:
    """Peak resident memory of a process in MiB; SystemExit if it fails."""
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(IMPORT_PATH)}
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(argv)} ended with exit code {process.returncode}")
    return usage.ru_maxrss / 1024


def _update_milliseconds(command: SequenceBenchmarkCommand) -> dict[str, list[float]]:
    """Milliseconds of `rounds` updates of each trained model, interleaved."""
    trainers: dict[str, SequenceTrainer] = {}
    for memory in command.memories:
        folder = _folder(command, memory)
        config = dataclasses.replace(from_yaml(folder.config_file), device=command.device)
        stream = open_stream(config, "train")
        model = make_model(config, stream, choose_device(config.device))
        trainer = SequenceTrainer(config, model, stream, DistributedContext())
        found = folder.latest_checkpoint()
        trainer.load_state_tree(unflatten(found.tensors, found.data)["trainer"])
        trainers[memory] = trainer

    def milliseconds(trainer: SequenceTrainer) -> float:
        began = time.perf_counter()
        trainer.update()
        if command.device == "cuda":
            torch.cuda.synchronize()
        return 1000 * (time.perf_counter() - began)

    measurements = {memory: partial(milliseconds, trainer) for memory, trainer in trainers.items()}
    return interleaved(measurements, command.rounds)


def _error_text(found: dict[str, Any]) -> str:
    """Error rate with its interval over rows, and the loss."""
    low, high = (1.0 - bound for bound in reversed(found["accuracy_ci95"]))
    return f"{found['error']:.1%} error ({low:.1%} to {high:.1%}), {found['loss']:.2f} nats"


def _row(
    command: SequenceBenchmarkCommand, memory: str, peak: float, times: dict[str, list[float]]
) -> dict[str, Any]:
    found = json.loads(_folder(command, memory).evaluation_file.read_text())
    quality = NOTHING_SCORED
    if found["targets"]:
        is_text = command.task == "text"
        quality = f"{found['bits_per_target']:.4f} bits per byte" if is_text else _error_text(found)
    row: dict[str, Any] = {
        "held out": quality,
        "time per batch": f"{statistics.median(times[memory]):,.0f} ms "
        f"({min(times[memory]):,.0f} to {max(times[memory]):,.0f})",
    }
    if BASELINE in times and memory != BASELINE:
        ratios = [ours / theirs for ours, theirs in zip(times[memory], times[BASELINE], strict=True)]
        row[f"time against {BASELINE}"] = (
            f"{statistics.median(ratios):.3f}x ({min(ratios):.3f} to {max(ratios):.3f})"
        )
    row["peak memory above the imports"] = f"{peak:,.0f} MiB"
    row["memories held, by layer"] = ", ".join(f"{mean:,.0f}" for mean in found["retained_mean"])
    row["bytes held"] = f"{found['bytes_held_mean'] / 2**20:,.1f} MiB"
    published = PUBLISHED[command.task].get(memory)
    if published:
        row["the paper's own"] = f"{published[0]} GB, {published[1]} ms a batch"
    return row
