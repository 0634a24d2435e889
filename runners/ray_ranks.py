r"""Train one agent on several nodes of a Ray cluster: start `torchrun` on each of them.

    python runners/ray_ranks.py --nodes 2 --ranks-per-node 4 --address auto -- \
        runners/train_agent.py --env corridor-long --run /shared/run

The command after `--` is run on every node, from the checkout, which must have the same path on all nodes.
Exit codes: 0 done; 2 a mistake in the options; 75 interrupted (and saved, if training had begun); 1 anything
else.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import contextlib
import socket
import subprocess
from dataclasses import dataclass
from typing import Any

from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.sweeps.ray_tune import connect

CHECKOUT = Path(__file__).resolve().parents[1]
POLL_SECONDS = 1.0
ROOM_SECONDS = 60.0
"""how long to wait until the cluster has enough free resources"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RayRanksCommand:
    """Start torchrun on nodes of a Ray cluster; it runs the command after `--`."""

    nodes: int = 1
    """number of nodes"""
    ranks_per_node: int = 2
    """number of processes on each node; each takes a core"""
    gpus: bool = False
    """each process also takes a GPU"""
    address: str | None = None
    """address of the cluster; "auto": the one this machine belongs to; none: start one here"""

    def __post_init__(self) -> None:
        """Validate the options."""
        command_line.check_at_least_1(self, "nodes", "ranks_per_node")


def main(argv: list[str] | None = None) -> int:
    """Start torchrun on the nodes, wait, and return the exit code."""
    own, words = _divided(sys.argv[1:] if argv is None else argv)
    command = command_line.parse(RayRanksCommand, own)
    if not words:
        exit_on_error(_nothing_to_run)
    exit_on_error(lambda: connect(command.address, None, show_output=True))
    import ray

    try:
        with GracefulStop() as stop:
            call = ray.remote(_Call).options(num_cpus=0).remote()
            tasks = exit_on_error(lambda: _start(command, words, call))
            return _wait(tasks, call, stop)
    finally:
        ray.shutdown()


def _divided(words: list[str]) -> tuple[list[str], list[str]]:
    """The words before and after the first `--`."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _nothing_to_run() -> None:
    raise ValueError("nothing to run: add -- runners/train_agent.py ... after the options")


class _Call:
    """Actor that holds the stop request for all nodes.

    Ray cancels a task by raising an exception in it, which the running code may swallow.
    """

    def __init__(self) -> None:
        self._made = False

    def make(self) -> None:
        """Tell them."""
        self._made = True

    def is_made(self) -> bool:
        """What they ask."""
        return self._made


def _start(command: RayRanksCommand, words: list[str], call: Any) -> list[Any]:
    """A task on every node, each of which runs torchrun there."""
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    ranks = command.ranks_per_node
    needs: dict[str, float] = {"CPU": ranks, **({"GPU": ranks} if command.gpus else {})}
    group = placement_group([needs] * command.nodes, strategy="STRICT_SPREAD")
    if not group.wait(ROOM_SECONDS):
        raise ValueError(f"nodes: the cluster has no room for {command.nodes} nodes with {needs} each")

    def placed(action: Any, node: int) -> Any:
        return ray.remote(action).options(
            num_cpus=ranks,
            num_gpus=ranks if command.gpus else 0,
            max_retries=0,  # a second torchrun would start the run again
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, node),
        )

    address, port = ray.get(placed(_free_address, 0).remote())
    options = [f"--nnodes={command.nodes}", f"--nproc-per-node={ranks}", "--max-restarts=0"]
    options += [f"--master-addr={address}", f"--master-port={port}"]
    return [
        placed(_run_node, node).remote([*options, f"--node-rank={node}", "--", *words], call)
        for node in range(command.nodes)
    ]


def _wait(tasks: list[Any], call: Any, stop: GracefulStop) -> int:
    import ray

    pending, asked = tasks, False
    while pending:
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_SECONDS)
        if stop.stop_requested and not asked:
            asked = True
            ray.get(call.make.remote())
    if asked:
        return EXIT_SAVED
    try:
        return 1 if any(ray.get(tasks)) else 0
    except ray.exceptions.RayError as error:
        sys.stderr.write(f"error: a node was lost: {str(error).splitlines()[0]}\n")
        return 1


def _free_address() -> tuple[str, int]:
    """Address of this node and a free port, where the ranks connect."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return ray.util.get_node_ip_address(), free.getsockname()[1]


def _run_node(words: list[str], call: Any) -> int:
    """Run torchrun on this node until it ends or a stop is requested."""
    import ray

    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *words], cwd=CHECKOUT)
    try:
        while process.poll() is None and not ray.get(call.is_made.remote()):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
    finally:  # also if the driver is gone; harmless if the process has ended
        process.terminate()
    return process.wait()


if __name__ == "__main__":
    sys.exit(command_line.run(main))
