"""One agent trained on several nodes of a Ray cluster; the nodes are simulated on this machine."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memory_suite.runners import ray_ranks
from memory_suite.runners.run.folder import RunFolder
from tests.runners.launch import ROOT, finished, wait_for
from tests.runners.test_main_job import SMALL, rows

SECONDS = 300.0
"""a cluster takes its time on a busy machine"""
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "nothing to run: add -- runners/train_agent.py"),
        (["--nodes", "0", "--", "runners/train_agent.py"], "nodes must be at least 1, got 0"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        ray_ranks.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def start(cluster: str, *words: str, nodes: int = 2) -> subprocess.Popen[str]:
    options = ["--nodes", str(nodes), "--ranks-per-node", "1", "--address", cluster]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "runners" / "ray_ranks.py"), *options, "--", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@needs_ray
def test_a_run_on_two_nodes_is_interrupted_and_resumed(cluster: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    script = "runners/train_agent.py"
    process = start(cluster, script, *SMALL, "--total-steps", "1280000", "--run", str(run))
    wait_for(run / "checkpoints" / "latest", [process])
    os.kill(process.pid, signal.SIGTERM)
    ((code, said),) = finished([process], SECONDS)
    assert code == 75, said
    assert "2 ranks" in said
    assert "Interrupted at" in said
    steps = RunFolder.open(run).latest_checkpoint().step
    assert len(rows(run)) == steps // 128
    ((code, said),) = finished(
        [start(cluster, script, "--resume", str(run), "--total-steps", str(steps + 256))], SECONDS
    )
    assert code == 0, said
    assert (run / "evaluation.json").exists()
    ((code, said),) = finished([start(cluster, script, "--env", "corridor-lnog", nodes=1)], SECONDS)
    assert code == 1
    assert "did you mean 'corridor-long'" in said
