"""Short trainings recorded to the last digit: a change of the numbers is never an accident.

    python -m tests.faults.golden --renew

records them anew; the changelog says why. The numbers hold for one version of torch and NumPy and one
processor, which are recorded too: with the same instructions another one's matrix products round differently.
There the updates must agree to `TOLERANCE`.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory_suite.runners.run.folder import RunFolder
from tests.faults import children
from tests.faults.harness import Child, bits, rows_of

FOLDER = Path(__file__).parent / "golden"
COMMAND = "python -m tests.faults.golden --renew"

_SIZE = (
    *("--num-envs", "8", "--policy.width", "16", "--policy.num-layers", "2", "--policy.num-heads", "2"),
    *("--ppo.n-steps", "8", "--ppo.batch-size", "32", "--a2c.n-steps", "8", "--total-steps", "3200"),
    *("--memory.max-span", "64", "--memory.ramp", "4", "--memory.size", "6", "--memory.compressed-size", "4"),
    *("--stop.success", "none", "--track", "disabled", "--evaluation.episodes", "1"),
    *("--checkpoint-every", "100"),
)
RUNS: dict[str, tuple[str, ...]] = {
    "ppo-expire-span-corridor": (*_SIZE, "--env", "corridor-short", "--env-arg", "max_length=4"),
    "a2c-expire-span-corridor": (
        *(*_SIZE, "--env", "corridor-short", "--algo", "a2c", "--env-arg", "max_length=4"),
        *("--memory.random-shortening", "true"),
    ),
    "ppo-adaptive-span-portal": (*_SIZE, "--env", "portal-short", "--memory", "adaptive-span"),
    "ppo-paper-portal": (
        *(*_SIZE, "--env", "portal-short", "--method", "paper", "--penalty.weight", "1e-2"),
        *("--ppo.adam-beta2", "0.999"),
    ),
    "ppo-compressive-corridor": (*_SIZE, "--env", "corridor-short", "--memory", "compressive"),
    "ppo-transformer-xl-cartpole": (*_SIZE, "--env", "CartPole-v1", "--memory", "transformer-xl"),
}
"""fifty updates each"""
ELSEWHERE_UPDATES = {"ppo-transformer-xl-cartpole": 4}
"""so many are compared on another processor where not all are: CartPole goes a way of its own then"""
TOLERANCE = {"rel": 1e-4, "abs": 1e-6}
"""on another processor; between two of them 3e-5 was the largest difference, of numbers of at least 0.01"""

METRICS = (
    *("time/total_timesteps", "rollout/ep_rew_mean", "train/loss", "train/value_loss", "train/entropy_loss"),
    *("train/policy_gradient_loss", "forgetting/reliance", "memory/layer1/retained_mean"),
)


def versions() -> dict[str, str]:
    """What random numbers, and with them all others, depend on besides the program."""
    return {"torch": torch.__version__, "numpy": np.__version__}


def processor() -> str:
    """What rounding depends on: the instructions torch uses, and whose kernels the libraries choose."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else [platform.processor()]
    kind = [line for line in lines if line.startswith(("vendor_id", "cpu family", "model\t"))][:3]
    words = [line.split(":")[-1].strip() for line in kind or lines[:1]]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *words])


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Train one of `RUNS`: its rows and a hash of its last checkpoint's weights."""
    run = folder / name
    child = Child(children.train, [*RUNS[name], "--run", str(run)], log=folder / f"{name}.log")
    code = child.wait()
    assert code == 0, child.said()
    weights = hashlib.sha256()
    for key, tensor in sorted(RunFolder.open(run).latest_checkpoint().tensors.items()):
        if "/policy/" in key:
            weights.update(bits(tensor))
    rows = [{key: row[key] for key in METRICS if key in row} for row in rows_of(run)]
    return {"rows": rows, "weights": weights.hexdigest()}


def recorded(name: str) -> dict[str, Any]:
    """What the last renewal found."""
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def renew() -> None:
    """Record every run."""
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            content = {"versions": versions(), "processor": processor(), **measure(name, Path(folder))}
            rows = ",\n".join(f"  {json.dumps(row)}" for row in content.pop("rows"))
            head = json.dumps(content)[:-1]
            (FOLDER / f"{name}.json").write_text(f'{head}, "rows": [\n{rows}\n]}}\n')
            sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--renew"]:
        sys.exit(f"usage: {COMMAND}")
    renew()
