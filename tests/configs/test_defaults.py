"""Python and the command line have the same defaults."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule

from memory_suite import MemoryA2C, MemoryPolicy, MemoryPPO
from memory_suite.agents.algorithms.forgetting import DEFAULT_PENALTY
from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.model import transformer_settings

CONFIG = TrainConfig()


def defaults_of(*functions: Any) -> dict[str, Any]:
    """Defaults of keyword arguments; later functions win."""
    parameters = [inspect.signature(function).parameters.values() for function in functions]
    return {
        parameter.name: parameter.default
        for group in parameters
        for parameter in group
        if parameter.default is not inspect.Parameter.empty
    }


@pytest.mark.parametrize(("algorithm", "group"), [(MemoryPPO, CONFIG.ppo), (MemoryA2C, CONFIG.a2c)])
def test_hyperparameters(algorithm: type[MemoryOnPolicyAlgorithm], group: Any) -> None:
    python = defaults_of(MemoryOnPolicyAlgorithm.__init__, algorithm.__init__)
    options = {field.name: getattr(group, field.name) for field in fields(group)}
    schedule = python.pop("learning_rate")
    assert isinstance(schedule, LinearSchedule) and options.pop("learning_rate_schedule") == "linear"
    assert (schedule.start, schedule.end, schedule.end_fraction) == (options.pop("learning_rate"), 0.0, 1.0)
    del options["adam_beta2"], options["adam_eps"]  # of the policy
    assert {name: python[name] for name in options} == options
    assert python["method"] == CONFIG.method
    assert python["penalty"] is None
    assert python["random_shortening"] == CONFIG.memory.random_shortening
    assert (python["success_window_episodes"], python["success_min_episodes"]) == (
        CONFIG.stop.window_episodes,
        CONFIG.stop.min_episodes,
    )


def test_the_policy() -> None:
    space = spaces.Box(-1.0, 1.0, (2,))
    policy = MemoryPolicy(space, spaces.Discrete(2), lambda _: 1e-3)
    assert policy.transformer.settings == transformer_settings(CONFIG.memory, CONFIG.policy)
    assert policy.encoder.normalize == CONFIG.policy.normalize_observations
    for group in policy.optimizer.param_groups:
        assert group["betas"] == (0.9, CONFIG.ppo.adam_beta2)
        assert group["eps"] == CONFIG.ppo.adam_eps == CONFIG.a2c.adam_eps


def test_the_penalty() -> None:
    assert (DEFAULT_PENALTY.weight, DEFAULT_PENALTY.form) == (CONFIG.penalty.weight, CONFIG.penalty.form)
    assert DEFAULT_PENALTY.use_weight == 0.0
