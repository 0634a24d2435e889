"""One configuration on many tasks: `python runners/benchmark.py tasks`.

Each task is trained by `train_agent.py` with no options but the budget of tasks without a preset, the seed
and the method. Finished runs are kept, so the same command goes on where it stopped.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory_suite.agents.model.settings import Method
from memory_suite.agents.ranges import check
from memory_suite.configs import command_line
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay

TRAIN_AGENT = Path(__file__).resolve().parents[1] / "train_agent.py"
FIELD = "memory_suite.runners.benchmarks.field_tasks:"
BUDGETS: dict[str, tuple[str, ...]] = {
    "corridor-long": (),
    "instruction-short": ("--total-steps", "1500000"),
    "portal-short": ("--total-steps", "3000000"),
    "MiniGrid-MemoryS7-v0": ("--total-steps", "1000000"),
    "CartPole-v1": (),
    "Pendulum-v1": ("--total-steps", "200000", "--num-envs", "8"),
    f"{FIELD}PositionsOnlyCartPole-v0": ("--total-steps", "300000", "--num-envs", "8"),
    f"{FIELD}TMaze50-v0": ("--total-steps", "250000"),
    f"{FIELD}TMaze200-v0": ("--total-steps", "250000"),
    f"{FIELD}RedundantCue-v0": ("--total-steps", "250000"),
    f"{FIELD}RarelyNeededCue-v0": ("--total-steps", "250000"),
    f"{FIELD}Majority-v0": ("--total-steps", "500000"),
    f"{FIELD}KeyValue-v0": ("--total-steps", "500000"),
    f"{FIELD}RepeatPrevious-v0": ("--total-steps", "500000"),
    f"{FIELD}RepeatFirst-v0": ("--total-steps", "500000"),
}
"""options of each task: how long it is trained, and in how many environments"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksCommand:
    """Train the one configuration on many tasks, and write what was reached to one file."""

    json: Path
    """results; those of finished runs are kept"""
    run: Path
    """folder of the run folders"""
    tasks: tuple[str, ...] = tuple(name.removeprefix(FIELD) for name in BUDGETS)
    """which tasks"""
    methods: tuple[Method, ...] = ("counterfactual", "none")
    """which methods of forgetting"""
    seeds: int = 1
    """number of seeds, from 0 on"""

    def __post_init__(self) -> None:
        """Validate the options."""
        known = [name.removeprefix(FIELD) for name in BUDGETS]
        for task in self.tasks:
            if task not in known:
                raise ValueError(f"tasks must be among {', '.join(known)}, got {task!r}")
        check("seeds", self.seeds, "[1, inf)")


def main(argv: list[str]) -> int:
    """Train what is not trained yet, and print the table."""
    command = command_line.exit_on_error(lambda: command_line.parse(TasksCommand, argv))
    display = ProgressDisplay(0)
    results: list[dict[str, Any]] = []
    if command.json.is_file():
        results = json.loads(command.json.read_text())["runs"]
    for seed in range(command.seeds):
        for task in command.tasks:
            for method in command.methods:
                chosen = {"task": task, "method": method, "seed": seed}
                if any(chosen.items() <= result.items() for result in results):
                    continue
                result = _train(task, method, seed, command.run)
                results.append({**chosen, **result})
                content = {"command": " ".join(["python runners/benchmark.py tasks", *argv]), "runs": results}
                write_json_atomically(command.json, content)
                display.note(row(results[-1]))
    for line in table(results):
        display.note(line)
    return 0


def _train(task: str, method: Method, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one agent in a process of its own."""
    env = next(name for name in BUDGETS if name.removeprefix(FIELD) == task)
    options = ["--env", env, *BUDGETS[env], "--method", method, "--seed", str(seed)]
    run = folder / f"{task}-{method}-{seed}"
    words = [*options, "--run", str(run), "--track", "disabled"]
    if (run / "config.yaml").is_file():
        words = ["--resume", str(run)]
    before = time.monotonic()
    done = subprocess.run([sys.executable, str(TRAIN_AGENT), *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"error: training {task} ended with code {done.returncode}; see {run}")
    found = json.loads((run / "evaluation.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    kept = ("episodes", "success_rate", "success_ci95", "return_mean", "return_std", "retained_mean")
    return {
        "command": " ".join(["python runners/train_agent.py", *options]),
        "revision": _revision(),
        "machine": f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread",
        "seconds": round(time.monotonic() - before),
        "steps": last["time/total_timesteps"],
        "possible_mean": found["possible_mean"],
        "metrics": found["metrics"],
        **{name: found[name] for name in kept},
    }


def _revision() -> str:
    """The revision of the checkout; empty outside of one."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def table(results: list[dict[str, Any]]) -> list[str]:
    """Results as a Markdown table."""
    head = ["| task | method | seed | steps | success | return | memories retained, by layer |"]
    return [*head, "| --- | --- | --- | --- | --- | --- | --- |", *map(row, results)]


def row(result: dict[str, Any]) -> str:
    """One result as a row of the table."""
    success = "" if result["success_rate"] is None else f"{result['success_rate']:.1%}"
    memories = ", ".join(f"{count:.1f}" for count in result["retained_mean"])
    error = result["return_std"] / np.sqrt(result["episodes"])
    cells = [
        *(result["task"], result["method"], str(result["seed"]), f"{result['steps']:,}", success),
        f"{result['return_mean']:.4g} +- {error:.2g}",
        f"{memories} of {result['possible_mean']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"
