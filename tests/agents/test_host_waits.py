"""Acting does not wait for the device: on a GPU each look of the host at a tensor stops both.

There may be no GPU here, so what waits is counted by what asks: on CUDA each of these calls is a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecEnv

from memory_suite.agents.diagnostics import rollout_diagnostics
from memory_suite.agents.diagnostics.step_records import LocalStep, StepRecord, gather_steps
from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model import layer as layer_module
from memory_suite.agents.model.transformer import COMPACTION_INTERVAL_STEPS
from memory_suite.envs.make import make_vec_env
from tests.agents.small_envs import Endless, RepeatFirst
from tests.agents.test_algorithms import FEW_MEMORIES, ppo, vec

LOOKS = ("cpu", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")
LONG, SHORT = 96, 32
"""steps of two rollouts; what they differ by is what steps cost"""


@contextmanager
def counted_looks() -> Iterator[Counter[str]]:
    """How often the host looked at a tensor, until a rollout's steps were fetched for statistics."""
    counts: Counter[str] = Counter()

    def fetched(steps: Sequence[LocalStep], ranks: DistributedContext) -> list[StepRecord]:
        records = list(gather_steps(steps, ranks))
        patch.undo()
        return records

    def counting(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        return look

    with pytest.MonkeyPatch.context() as patch:
        for name in LOOKS:
            patch.setattr(torch.Tensor, name, counting(name, getattr(torch.Tensor, name)))
        patch.setattr(rollout_diagnostics, "gather_steps", fetched)
        yield counts


def looks_in_a_rollout(make: Callable[[], VecEnv], num_steps: int, **changes: Any) -> Counter[str]:
    """Looks of the second rollout: the first lays out what follows."""
    model = ppo(make(), n_steps=num_steps, batch_size=4 * num_steps, **changes)
    model.learn(4 * num_steps)
    callback = CallbackList([])
    callback.init_callback(model)
    with counted_looks() as counts:
        assert model.collect_rollouts(callback)
    return counts


@pytest.mark.parametrize("memory", ["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: vec(lambda: RepeatFirst(7)),
        lambda: vec(lambda: TimeLimit(Endless(), 5)),
        lambda: make_vec_env("portal-short", 4, seed=0),
    ],
    ids=["a cue", "a time limit", "cues of several numbers"],
)
def test_a_rollout_step_synchronizes_only_for_its_actions(
    make: Callable[[], VecEnv], memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits are drawn, where spans are learned, whenever an episode begins."""
    monkeypatch.setattr(layer_module, "SLOTS_PER_ALLOCATION", {"cpu": 16})
    policy = {"memory": memory, "num_layers": 2, **FEW_MEMORIES}
    changes = {"policy_kwargs": policy, "random_shortening": memory == "expire-span"}
    few, many = (looks_in_a_rollout(make, steps, **changes) for steps in (SHORT, LONG))
    extra = many - few
    steps = LONG - SHORT
    assert extra.pop("cpu") == steps  # the actions
    layers = 0 if memory == "none" else 2
    free_slots = layers * steps // 16
    compactions = layers * steps // COMPACTION_INTERVAL_STEPS
    assert extra.total() <= free_slots + compactions + layers, extra
