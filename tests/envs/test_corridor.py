"""The corridor: both twins agree, memory is needed and enough, and nothing leaks (and test_contract.py)."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import OBJECT_TO_IDX

from memory_suite.envs.corridor.env import CorridorEnv
from memory_suite.envs.corridor.rules import CLASSES, CorridorRules
from memory_suite.envs.corridor.vector import CorridorVectorEnv
from memory_suite.envs.grid_world import Move
from tests.envs.same import assert_same


def play(env: CorridorEnv, policy: Any, episodes: int, seed: int = 0) -> float:
    """Mean return of `policy(observation, info)`."""
    total = 0.0
    observation, info = env.reset(seed=seed)
    for _ in range(episodes):
        done = False
        while not done:
            observation, reward, terminated, truncated, info = env.step(policy(observation, info))
            total += reward
            done = terminated or truncated
        observation, info = env.reset()
    return total / episodes


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31),
    num_colors=st.integers(2, 6),
    view_size=st.sampled_from([3, 5, 7]),
    extra=st.integers(0, 9),
    distribution=st.sampled_from(["uniform", "log-uniform"]),
    observable=st.booleans(),
    skill=st.floats(0, 1),
)
def test_vector_env_matches_reference(
    seed: int, num_colors: int, view_size: int, extra: int, distribution: str, observable: bool, skill: float
) -> None:
    """Same seeds and actions: same observations, rewards, ends and infos, over many episodes."""
    arguments: dict[str, Any] = {
        "num_colors": num_colors,
        "view_size": view_size,
        "min_length": view_size,
        "max_length": view_size + extra,
        "length_distribution": distribution,
        "observable": observable,
        "time_limit_factor": 2,
    }
    batch = CorridorVectorEnv(3, **arguments)
    singles = [CorridorEnv(**arguments) for _ in range(3)]
    observations, infos = batch.reset(seed=seed)
    for index, single in enumerate(singles):
        observation, info = single.reset(seed=seed + index)
        np.testing.assert_array_equal(observations[index], observation)
        assert infos["oracle_action"][index] == info["oracle_action"]
    rng = np.random.default_rng(seed)
    for _ in range(150):
        actions = np.where(rng.random(3) < skill, infos["oracle_action"], rng.integers(4, size=3))
        observations, rewards, terminated, truncated, infos = batch.step(actions)
        for index, single in enumerate(singles):
            observation, reward, ends, cut, info = single.step(actions[index])
            assert (rewards[index], terminated[index], truncated[index]) == (reward, ends, cut)
            if ends or cut:
                np.testing.assert_array_equal(infos["final_obs"][index], observation)
                for key, value in info.items():
                    assert infos["final_info"][key][index] == value, key
                observation, info = single.reset()
            np.testing.assert_array_equal(observations[index], observation)
            assert infos["cue"][index] == info["cue"]
            assert infos["oracle_action"][index] == info["oracle_action"]


def test_same_seed_same_episodes_and_no_global_generator_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002

    def lengths(seed: int) -> list[int]:
        env = CorridorEnv(max_length=50)
        env.reset(seed=seed)
        result = []
        for _ in range(80):  # more than one chunk of draws
            result.append(env._length)
            env.reset()
        return result

    assert lengths(5) == lengths(5)
    assert lengths(5) != lengths(6)
    batch = CorridorVectorEnv(2, max_length=5)
    batch.reset(seed=0)
    for _ in range(100):
        batch.step(np.array([1, 3]))
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


@pytest.mark.parametrize("num_colors", [2, 3, 6])
def test_remembering_is_sufficient(num_colors: int) -> None:
    env = CorridorEnv(max_length=30, num_colors=num_colors)
    assert play(env, lambda _, info: np.int64(info["oracle_action"]), episodes=200) == 1.0


def test_memory_is_necessary() -> None:
    """Wherever a door can be entered, what is seen says nothing about the ball's color."""
    seen: dict[int, set[bytes]] = {0: set(), 1: set()}
    env = CorridorEnv(length=4)
    env.reset(seed=0)
    for cue in (0, 1):
        for doors in ([0, 1], [1, 0]):
            for x in range(2, 5):  # beyond the ball's sight
                seen[cue].add(env.view_of(4, cue, doors, x).tobytes())
    assert seen[0] == seen[1]


def test_observable_variant_needs_no_memory() -> None:
    def policy(observation: np.ndarray, info: dict[str, Any]) -> np.int64:
        color = observation[1, 1, 1]
        for row, move in ((0, Move.UP), (2, Move.DOWN)):
            if observation[1, row, 0] == OBJECT_TO_IDX["door"] and observation[1, row, 1] == color:
                return np.int64(move)
        return np.int64(Move.RIGHT)

    assert play(CorridorEnv(max_length=20, observable=True), policy, episodes=100) == 1.0


@settings(max_examples=30)
@given(view_size=st.sampled_from([3, 5, 7]), num_colors=st.integers(2, 6), extra=st.integers(0, 5))
def test_ball_and_doors_are_never_in_sight_together(view_size: int, num_colors: int, extra: int) -> None:
    length = view_size + extra
    env = CorridorEnv(length=length, view_size=view_size, num_colors=num_colors)
    env.reset(seed=0)
    for x in range(length + env.rules.num_door_cells):
        objects = set(env.view_of(length, 0, list(range(num_colors)), x)[..., 0].flatten().tolist())
        assert not {OBJECT_TO_IDX["ball"], OBJECT_TO_IDX["door"]} <= objects
        assert (OBJECT_TO_IDX["ball"] in objects) == (x <= env.rules.radius)


def test_lengths_follow_their_distribution() -> None:
    rng = np.random.default_rng(0)
    uniform = np.concatenate(
        [CorridorRules(min_length=3, max_length=12).draw(rng).length_E for _ in range(400)]
    )
    counts = np.bincount(uniform)[3:]
    assert len(counts) == 10
    assert np.abs(counts / len(uniform) - 0.1).max() < 0.01
    rules = CorridorRules(min_length=3, max_length=200, length_distribution="log-uniform")
    logarithmic = np.concatenate([rules.draw(rng).length_E for _ in range(3_000)])
    assert set(logarithmic.tolist()) == set(range(3, 201))
    expected = np.log(21 / 3) / np.log(201 / 3)
    assert np.mean(logarithmic <= 20) == pytest.approx(expected, abs=0.01)


def test_time_limit_truncates_and_a_door_terminates() -> None:
    env = CorridorEnv(length=3, time_limit_factor=2)
    env.reset(seed=0)
    ends = [env.step(np.int64(Move.LEFT))[2:4] for _ in range(14)]
    assert ends[:-1] == [(False, False)] * 13
    assert ends[-1] == (False, True)
    env.reset(seed=0)
    for _ in range(13):
        env.step(np.int64(Move.RIGHT))
    assert env.step(np.int64(Move.UP))[2:4] == (True, False), "a door in the last step is an end, not a cut"


@pytest.mark.parametrize("length", [10_000, 100_000])
def test_very_long_corridors(length: int) -> None:
    batch = CorridorVectorEnv(2, length=length)
    batch.reset(seed=0)
    single = CorridorEnv(length=length, render_mode="rgb_array")
    single.reset(seed=0)
    for _ in range(50):
        observations, *_ = batch.step(np.zeros(2, dtype=np.int64))
        observation, *_ = single.step(np.int64(0))
        np.testing.assert_array_equal(observations[0], observation)
    picture = single.render()
    assert picture is not None
    assert picture.shape[1] < 1_000
    reddish = (picture[..., 0] > 200) & (picture[..., 1] < 120) & (picture[..., 2] < 120)
    assert reddish.any(), "the window has moved along: the agent, a highlighted red, is in it"


def test_pictures_match_the_reference_and_show_the_agent() -> None:
    batch = CorridorVectorEnv(2, length=5, render_mode="rgb_array")
    single = CorridorEnv(length=5, render_mode="rgb_array")
    batch.reset(seed=4)
    single.reset(seed=4)
    pictures = batch.render()
    assert pictures is not None
    picture = single.render()
    np.testing.assert_array_equal(pictures[0], picture)
    batch.step(np.zeros(2, dtype=np.int64))
    moved = batch.render()
    assert moved is not None
    assert not np.array_equal(moved[0], pictures[0])


def test_pictures_of_unequal_corridors_are_equally_wide() -> None:
    """A video, and stable-baselines3's mosaic of all environments, need that."""
    batch = CorridorVectorEnv(8, max_length=9, render_mode="rgb_array")
    batch.reset(seed=0)
    assert len(set(batch._length.tolist())) > 1
    pictures = batch.render()
    assert pictures is not None
    assert len({picture.shape for picture in pictures}) == 1
    assert np.array(pictures).any(axis=(1, 2, 3)).all(), "each shows something"


@pytest.mark.parametrize("observable", [False, True])
def test_vector_env_matches_sync_vector_env_of_references(observable: bool) -> None:
    """Key for key, dtype for dtype, masks and partial resets included."""
    arguments: dict[str, Any] = {"max_length": 7, "time_limit_factor": 1, "observable": observable}
    copies = SyncVectorEnv([lambda: CorridorEnv(**arguments)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    batch = CorridorVectorEnv(4, **arguments)
    mask = np.array([True, False, True, False])
    assert_same(batch.reset(seed=5), copies.reset(seed=5))
    rng = np.random.default_rng(0)
    for _ in range(200):
        actions = rng.integers(4, size=4)
        assert_same(batch.step(actions), copies.step(actions))
    assert_same(
        batch.reset(options={"reset_mask": mask.copy()}), copies.reset(options={"reset_mask": mask.copy()})
    )
    assert_same(batch.reset(seed=[1, None, 3, None]), copies.reset(seed=[1, None, 3, None]))


def test_a_caller_may_change_the_infos_it_was_given() -> None:
    batch = CorridorVectorEnv(2, length=5)
    _, infos = batch.reset(seed=0)
    infos["_cue"][:] = False
    infos["cue"][:] = False
    _, again = batch.reset(seed=0)
    assert again["_cue"].all()
    assert again["cue"].all()


def test_state_dict_continues_exactly() -> None:
    rng = np.random.default_rng(0)

    def run(env: VectorEnv[Any, Any, Any], actions: np.ndarray) -> list[Any]:
        return [[np.copy(part) for part in env.step(row)[:4]] for row in actions]

    env = CorridorVectorEnv(4, max_length=6)
    env.reset(seed=1)
    run(env, rng.integers(4, size=(300, 4)))
    state = copy.deepcopy(env.state_dict())
    json.dumps(state["generators"])
    actions = rng.integers(4, size=(600, 4))
    expected = run(env, actions)
    other = CorridorVectorEnv(4, max_length=6)
    other.reset(seed=99)
    other.load_state_dict(state)
    for mine, theirs in zip(run(other, actions), expected, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="of 4 environments, but there are 3"):
        CorridorVectorEnv(3).load_state_dict(state)


def test_observations_are_not_overwritten_later() -> None:
    env = CorridorVectorEnv(2, length=5)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    for _ in range(5):
        env.step(np.zeros(2, dtype=np.int64))
    np.testing.assert_array_equal(first, kept)


def test_declared_horizon_and_classes() -> None:
    rules = CorridorRules(min_length=3, max_length=200)
    assert rules.correlation_horizon == (2, 199)
    assert rules.episode_classes == ("3-20", "20-60", "60-120", "120-200")
    assert [CLASSES.name(length) for length in (3, 20, 21, 60, 200, 201, 2_000, 2_001)] == [
        "3-20", "3-20", "20-60", "20-60", "120-200", "200-2000", "200-2000", "2000+",
    ]  # fmt: skip
    assert CorridorRules(length=10_000).episode_classes == ("2000+",)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"view_size": 4}, "view_size"),
        ({"num_colors": 1}, "num_colors"),
        ({"num_colors": 7}, "num_colors"),
        ({"min_length": 2}, "min_length must be at least view_size"),
        ({"length": 4, "view_size": 5}, "length must be at least view_size"),
        ({"min_length": 9, "max_length": 8}, "max_length"),
        ({"time_limit_factor": 0}, "time_limit_factor"),
        ({"length_distribution": "normal"}, "length_distribution"),
        ({"length": 10.5}, "length must be a whole number"),
        ({"max_length": "20"}, "max_length must be a whole number"),
        ({"num_colors": None}, "num_colors must be a whole number"),
        ({"render_mode": "ascii"}, "render_mode"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        CorridorEnv(**arguments)
    with pytest.raises(ValueError, match=named):
        CorridorVectorEnv(2, **arguments)
