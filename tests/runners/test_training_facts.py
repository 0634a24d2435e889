"""What a run says about itself before it begins."""

from __future__ import annotations

import pytest

from memory_suite.configs.agent_schema import load
from memory_suite.envs.make import make_vec_env
from memory_suite.runners.training.build import make_agent
from memory_suite.runners.training.facts import agent_facts, task_facts

RULE = "counterfactual: memories whose absence changes no action; "


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--num-envs 64", f"{RULE}16 of 64 environments keep all memories"),
        (
            "--num-envs 3",
            f"{RULE}with fewer than 4 environments none keeps all memories, so a use of an expired memory "
            "cannot be found",
        ),
        (
            "--memory transformer-xl",
            "counterfactual: nothing to learn, since memory transformer-xl does not learn spans",
        ),
        (
            "--method paper --penalty.weight 1e-4",
            "paper: spans learn from the task loss on a ramp of 16 steps, against a penalty of weight 0.0001 "
            "(form all)",
        ),
        ("--method paper --memory none", "paper: nothing to learn, since memory none does not learn spans"),
        ("--method none", "none: every memory is kept for the initial span of 1,049 steps"),
    ],
)
def test_it_says_how_it_forgets(words: str, said: str) -> None:
    config = load(["--policy.width", "16", *words.split()])
    agent = make_agent(config, make_vec_env("corridor-short", config.num_envs, 0))
    assert agent_facts(config, agent)["forgetting"] == said


@pytest.mark.parametrize(
    ("normalized", "said"),
    [("true", "running standard deviation, fixed after 10 rollouts"), ("false", "not normalized")],
)
def test_it_says_what_is_normalized(normalized: str, said: str) -> None:
    config = load(["--num-envs", "2", "--policy.normalize-observations", normalized])
    facts = agent_facts(config, make_agent(config, make_vec_env("corridor-short", 2, 0)))
    units = "returns: critic in units of the size of returns"
    assert facts["normalized"] == f"observations: {said}; {units}"


def test_it_says_what_it_is_about_to_do() -> None:
    assert task_facts(load(["--env", "CartPole-v1", "--algo", "a2c"])) == {
        "environment": "CartPole-v1 x 8",
        "algorithm": "A2C, up to 100,000 steps",
    }
