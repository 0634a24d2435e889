"""A run that the tests of the commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_suite.runners import train_agent


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a barely trained agent with two layers, on corridors of 3 to 20 steps."""
    run = tmp_path_factory.mktemp("short") / "run"
    words = "--env corridor-short --num-envs 8 --total-steps 1280 --policy.width 16 --policy.num-layers 2"
    words += " --policy.num-heads 2 --ppo.n-steps 16 --ppo.batch-size 64 --evaluation.episodes 20"
    words += " --memory.max-span 32 --memory.initial-span-fraction 0.2 --memory.ramp 4"
    words += " --track disabled --checkpoint-every 2 --stop.success none"
    assert train_agent.main([*words.split(), "--run", str(run)]) == 0
    return run
