"""Measure the token streams: errors of oracles that see a window, and tokens per second.

    python runners/benchmark.py streams
    python runners/benchmark.py streams --part oracle --warm-up-frames 200000

`oracle`: for both questions of object collision, the error of an oracle that sees the last N tokens and
guesses when they do not hold the answer. `speed`: object collision's frames per minute and every task's
tokens per second, read in blocks as training reads them, by wall clock and by process time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.envs.streams.collision import FRAME_TOKENS
from memory_suite.envs.streams.oracle import WINDOWS, window_errors
from memory_suite.envs.streams.tasks import TASKS, make_stream
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamsCommand:
    """Measure the token streams: errors of oracles that see a window, and tokens per second."""

    part: Literal["all", "oracle", "speed"] = "all"
    """part to measure; both by default"""
    frames: int = 400_000
    """frames of each row on which oracles are evaluated"""
    warm_up_frames: int = 0
    """frames simulated before a row begins, so that collisions reach their final distribution of ages"""
    rows: int = 8
    """rows in the batch"""
    seed: int = 0
    """seed of the generated streams"""
    block_tokens: int = 512
    """tokens of a row read at a time when speed is measured"""
    seconds: float = 5.0
    """seconds of the speed measurement of each task"""
    data: Path | None = None
    """text file; a default one is fetched if none is named"""
    json: Path | None = None
    """also write the numbers to this file"""

    def __post_init__(self) -> None:
        """Validate."""
        command_line.check_at_least_1(self, "frames", "rows", "block_tokens")
        if not self.seconds > 0:
            raise ValueError(f"seconds must be above 0, got {self.seconds}")
        if self.warm_up_frames < 0:
            raise ValueError(f"warm_up_frames must be at least 0, got {self.warm_up_frames}")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    command = command_line.parse(StreamsCommand, argv)
    display = ProgressDisplay(0)
    results: dict[str, Any] = {}
    if command.part in ("all", "oracle"):
        results["oracle"] = exit_on_error(lambda: measure_oracle(command, display))
    if command.part in ("all", "speed"):
        results["speed"] = exit_on_error(lambda: measure_speed(command, display))
    if command.json is not None:
        write_json_atomically(command.json, results)
    return 0


def measure_oracle(command: StreamsCommand, display: ProgressDisplay) -> dict[str, Any]:
    """Errors in percent by question and window."""
    results = {}
    for question in ("current", "latest"):
        stream = make_stream(
            "collision",
            split="test",
            num_rows=command.rows,
            tokens_per_row=command.frames * FRAME_TOKENS,
            seed=command.seed,
            easy_question=question,
            warm_up_frames=command.warm_up_frames,
        )
        try:
            errors = window_errors(stream, WINDOWS, command.frames * FRAME_TOKENS)
        except ValueError as error:
            raise ValueError(f"frames: {error}") from None
        percent = {str(window): round(100 * error, 2) for window, error in errors.error.items()}
        results[question] = {
            "error_percent": percent,
            "median_age_frames": round(errors.median_distance / FRAME_TOKENS),
            "targets_scored": errors.num_targets_scored,
        }
        display.summary_table(
            {
                f"{question}, window of {int(window):,} tokens": f"{error}%"
                for window, error in percent.items()
            }
            | {f"{question}, median age": f"{results[question]['median_age_frames']:,} frames"}
        )
    return results


def measure_speed(command: StreamsCommand, display: ProgressDisplay) -> dict[str, Any]:
    """Tokens per second of wall clock and of process time."""
    results = {}
    for task in TASKS:
        data: dict[str, Any] = {"data": command.data} if task == "text" else {}
        try:
            stream = make_stream(task, num_rows=command.rows, seed=command.seed, **data)
        except OSError as error:
            raise ValueError(str(error)) from None
        wall, process = time.perf_counter(), time.process_time()
        while time.perf_counter() - wall < command.seconds:
            stream.read(command.block_tokens)
        tokens = stream.position * command.rows
        per_second = tokens / (time.perf_counter() - wall), tokens / (time.process_time() - process)
        results[task] = {"tokens_per_second": per_second[0], "tokens_per_process_second": per_second[1]}
        display.summary_table(
            {task: f"{per_second[0]:,.0f} tokens/s ({per_second[1]:,.0f} by process time)"}
            | ({"collision frames": f"{_frames_per_minute(per_second)}"} if task == "collision" else {})
        )
    return results


def _frames_per_minute(per_second: tuple[float, float]) -> str:
    wall, process = (60 * tokens / FRAME_TOKENS / 1e6 for tokens in per_second)
    return f"{wall:,.1f}M a minute ({process:,.1f}M by process time)"
