"""Presets of environments say what the task is, how long to train and when to stop; they tune nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from memory_suite.configs.agent_schema import PRESETS, load

TASK = {"env", "env_args", "eval_env_args", "curriculum"}
LENGTH = {"total_steps", "num_envs", "stop", "evaluation"}
OTHER_NUMBERS_OF_ENVS = {"CartPole-v1": 8}


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_tunes_nothing(path: Path) -> None:
    assert yaml.safe_load(path.read_text()).keys() <= TASK | LENGTH
    assert load(["--env", path.stem]).num_envs == OTHER_NUMBERS_OF_ENVS.get(path.stem, 64)
