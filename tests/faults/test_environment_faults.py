"""Whatever an environment does, the message says what, where and when, and nothing is left running."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest

from memory_suite.envs.make import Vectorization
from memory_suite.runners.run.folder import RunFolder
from tests.faults import children
from tests.faults.environments import fail_in_workers, faulty, names_it, step_until_fault, workers_of
from tests.faults.faulty_env import CASTS, ENV_NAME, FAULTS
from tests.faults.harness import TRAINERS, Child

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")
"""Gymnasium warns of an error before it raises it."""
LINUX = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds worker processes in /proc")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("index", [0, 1])
def test_what_is_no_observation_or_reward_is_named(fault: str, index: int) -> None:
    message, _ = step_until_fault(faulty(fault, "sync", index))
    assert names_it(message, index, 20), message
    assert message is not None
    assert message.startswith(f"the {fault.split()[0]} ")


@pytest.mark.parametrize("fault", CASTS)
def test_an_observation_that_fits_without_loss_is_taken(fault: str) -> None:
    message, _ = step_until_fault(faulty(fault, "sync", 1))
    assert message is None


def test_a_float_is_no_integer() -> None:
    message, _ = step_until_fault(faulty("observation is float64", "sync", 1, integers=True))
    assert names_it(message, 1, 20)
    assert "dtype float64, its space says (3,) and int32" in str(message)


@pytest.mark.parametrize("fault", ["raise", "exit"])
def test_an_environment_in_this_process_that_raises_or_exits_is_named(fault: str) -> None:
    message, _ = step_until_fault(faulty(fault, "sync", 1))
    assert names_it(message, 1, 20), message


def test_worker_processes_that_fail_are_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_in_workers(1, monkeypatch).check()


@pytest.mark.parametrize("fault", ["observation has too many axes", "observation is a scalar"])
def test_what_shared_memory_would_flatten_or_stretch_is_named(fault: str) -> None:
    env = faulty(fault, "async", 1)
    message, _ = step_until_fault(env)
    env.close()
    assert names_it(message, 1, 20), message
    assert "Traceback" not in str(message)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_an_environment_declares_is_known_wherever_it_runs(vectorization: Vectorization) -> None:
    env = faulty("none", vectorization, 0)
    assert env.get_attr("episode_classes") == [("all",)] * 2
    env.reset()
    steps = [env.step(np.ones(2, dtype=np.int64))[3][1] for _ in range(7)]
    env.close()
    assert steps[-1]["episode"]["steps"] == 7.0
    assert not env.has_attr("what_it_lacks")


FAULTY_TRAINING = [*TRAINERS["ppo"][2:], "--env", ENV_NAME]


def without_corridor(words: list[str]) -> list[str]:
    """The words without the argument that only the corridor has."""
    position = words.index("--env-arg")
    return words[:position] + words[position + 2 :]


@pytest.mark.parametrize(
    "fault", ["observation is NaN", "reward is 1e30", "observation is a scalar", "raise"]
)
def test_a_training_stops_with_the_checkpoint_before(fault: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*without_corridor(FAULTY_TRAINING), "--env-arg", f"fault={fault}", "--env-arg", "fault_step=40"]
    child = Child(children.train, [*words, "--run", str(run)], log=tmp_path / "log")
    assert child.wait() == 1, child.said()
    said = " ".join(child.said().split())
    assert "error: training stopped: " in said
    assert "in environment 1 of 8, seed 1 at step 40 of each environment" in said
    assert f"Continue with: python runners/train_agent.py --resume {run}" in said
    assert "Traceback" not in said
    assert RunFolder.open(run).latest_checkpoint().step == 4 * 64


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_no_number_stops_training_in_the_same_update(where: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*TRAINERS["ppo"], "--run", str(run)]
    child = Child(children.train_with_nan, words, where, 27, log=tmp_path / "log")
    assert child.wait() == 1, child.said()
    said = " ".join(child.said().split())
    assert f"error: training stopped: the {where} became nan in update 5, at step 320" in said
    assert RunFolder.open(run).latest_checkpoint().step == 4 * 64


@LINUX
def test_a_killed_training_leaves_no_workers(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*without_corridor(FAULTY_TRAINING), "--num-envs", "2", "--ppo.batch-size", "16"]
    words += ["--vectorization", "async", "--total-steps", "100000", "--run", str(run)]
    child = Child(children.train, words, log=tmp_path / "log")
    metrics = run / "metrics.jsonl"
    assert child.runs_until(lambda: metrics.exists() and metrics.stat().st_size > 0), child.said()
    workers = workers_of(child.pid)
    assert len(workers) >= 2
    child.send(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 10.0
    while alive := [worker for worker in workers if Path(f"/proc/{worker}").exists()]:
        assert time.monotonic() < deadline, f"left over: {alive}"
        time.sleep(0.05)
