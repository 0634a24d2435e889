"""Measure speed and memory, always as a ratio against something else in the same run.

    python runners/benchmark.py
    python runners/benchmark.py sequence
    python runners/benchmark.py spans
    python runners/benchmark.py streams
    python runners/benchmark.py tasks --json results.json --run runs/tasks

Parts: `envs` (batched environments against plain ones and Gymnasium's vector environments), `training`
(ours with each memory against stable-baselines3's PPO and sb3-contrib's RecurrentPPO: speed and peak memory),
`update` (against the machine's own rate of matrix multiplication), `acting` (cost of a step as an episode
grows, and as the maximum span grows), `ranks` (two processes against one), `solving` (wall-clock time until a
task is solved). Baselines alternate, so that a busy machine slows all of them; medians and ranges are
printed. The baselines are an extra: `.[bench]`.

`sequence`, `spans`, `streams` and `tasks` are commands with options of their own: the efficiency of memories
on sequence tasks (`benchmarks/sequence_efficiency.py`), the cost of a longer maximum span
(`benchmarks/span_scaling.py`), the oracles and the speed of token streams (`benchmarks/streams.py`), and what
the one configuration reaches on many tasks (`benchmarks/tasks.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import os
import platform
from collections.abc import Callable
from typing import Any

import torch

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.benchmarks import (
    acting,
    baselines,
    environments,
    ranks,
    sequence_efficiency,
    span_scaling,
    streams,
    tasks,
    time_to_solve,
    training,
    update,
)
from memory_suite.runners.benchmarks.figures import draw
from memory_suite.runners.benchmarks.options import PARTS, AgentSpec, BenchmarkCommand, Part
from memory_suite.runners.benchmarks.tables import Table
from memory_suite.runners.benchmarks.worker_process import BenchmarkError
from memory_suite.runners.plotting.matplotlib_style import image_bytes, require_matplotlib
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay

MEASURES: dict[Part, Callable[[AgentSpec, BenchmarkCommand], list[Table]]] = {
    "envs": environments.measure,
    "training": training.measure,
    "update": update.measure,
    "acting": acting.measure,
    "ranks": ranks.measure,
    "solving": time_to_solve.measure,
}
CHECKS: dict[Part, Callable[[AgentSpec], None]] = {
    "training": baselines.check,
    "acting": acting.check,
    "ranks": ranks.check,
    "solving": time_to_solve.check,
}
"""checks of the parts that cannot measure every agent, before any work is done"""


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write, draw."""
    argv = sys.argv[1:] if argv is None else argv
    others = {
        "sequence": sequence_efficiency.main,
        "spans": span_scaling.main,
        "streams": streams.main,
        "tasks": tasks.main,
    }
    if argv and argv[0] in others:
        return others[argv[0]](argv[1:])
    command, training_argv = command_line.parse_known(BenchmarkCommand, argv)
    spec = exit_on_error(lambda: _checked_spec(command, training_argv))
    display = ProgressDisplay(0)
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {command.threads} torch thread(s), "
        f"{spec.config.device}"
    )
    load = f"{os.getloadavg()[0]:.1f}"
    display.announce({"machine": machine, "torch": torch.__version__, "load": load})
    tables: list[Table] = []
    results: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "load": load, "tables": {}}
    try:
        for part in (part for part in PARTS if part in command.parts):
            for table in MEASURES[part](spec, command):
                display.note("\n".join(table.lines()))
                tables.append(table)
                results["tables"][table.name] = table.to_json()
            if command.json is not None:  # after each part: some take long
                write_json_atomically(command.json, results)
    except BenchmarkError as error:
        display.note(f"error: {error}")
        return 1
    if command.picture is not None:
        command.picture.write_bytes(image_bytes(draw(tables, f"{machine}; load {load} before"), "png"))
    return 0


def _checked_spec(command: BenchmarkCommand, training_argv: list[str]) -> AgentSpec:
    """The agent to measure; ValueError if one of the parts cannot measure it."""
    if command.picture is not None:
        require_matplotlib()
    spec = AgentSpec.from_command(command, training_argv)
    for part in command.parts:
        if part in CHECKS:
            CHECKS[part](spec)
    return spec


if __name__ == "__main__":
    sys.exit(command_line.run(main))
