"""What every environment of the registry promises. A new entry is tested without a line here.

The one thing a new kind of environment may add is `GUESSING`: its best policies without memory.
"""

from __future__ import annotations

import copy
import functools
import json
import pickle
import random
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import OBJECT_TO_IDX

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite.envs.grid_world import Move
from memory_suite.envs.portal.env import AGENT
from memory_suite.envs.portal.rules import CELLS, Look, oracle_action, steps_to_door
from memory_suite.envs.registration import REGISTRY
from tests.envs.same import assert_same

NAMES = list(REGISTRY)
every_entry = pytest.mark.parametrize("name", NAMES)
Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""a batch of observations and a source of chance to actions: nothing is remembered"""


def plain(name: str, **arguments: Any) -> gym.Env[Any, Any]:
    """The reference environment without Gymnasium's wrappers."""
    return gym.make(REGISTRY[name].id, disable_env_checker=True, **arguments).unwrapped


def batched(name: str, num_envs: int, **arguments: Any) -> VectorEnv[Any, Any, Any]:
    return gym.make_vec(REGISTRY[name].id, num_envs, vectorization_mode="vector_entry_point", **arguments)


def num_actions(env: Any) -> int:
    return int(getattr(env, "single_action_space", env.action_space).n)


def skilled(oracle: Any, skill: Any, actions: int, rng: np.random.Generator) -> np.ndarray:
    """The oracle's actions, each with probability `skill`; random ones otherwise."""
    oracle = np.asarray(oracle)
    return np.where(rng.random(oracle.shape) < skill, oracle, rng.integers(actions, size=oracle.shape))


def transitions(env: gym.Env[Any, Any], steps: int, *, seed: int | None, skill: float = 0.9) -> Iterator[Any]:
    """Everything `env` says in so many steps."""
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=seed)
    yield observation, info
    for _ in range(steps):
        said = env.step(skilled(info["oracle_action"], skill, num_actions(env), rng)[()])
        yield said
        info = said[-1]
        if said[2] or said[3]:
            observation, info = env.reset()
            yield observation, info


# -- Gymnasium's interface -------------------------------------------------------------------------


@every_entry
def test_obeys_the_gymnasium_api(name: str) -> None:
    check_env(plain(name, render_mode="rgb_array"))


@every_entry
def test_a_seed_decides_everything(name: str) -> None:
    first = [*transitions(plain(name), 300, seed=5)]
    assert_same(first, [*transitions(plain(name), 300, seed=5)])
    env = plain(name)
    for _ in transitions(env, 100, seed=9):
        pass
    assert_same(first, [*transitions(env, 300, seed=5)])
    others = [pickle.dumps([*transitions(plain(name), 300, seed=seed)]) for seed in range(6)]
    assert len(set(others)) > 1, "another seed, other episodes"


@every_entry
def test_no_global_generator_is_touched(name: str) -> None:
    def states() -> Any:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002

    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = states()
    for _ in transitions(plain(name), 300, seed=None):
        pass
    batch = batched(name, 3)
    _, infos = batch.reset()
    for _ in range(300):
        infos = batch.step(infos["oracle_action"])[-1]
    assert before == states()
    sequence = [random.random() for _ in range(3)]
    random.seed(1)
    for _ in transitions(plain(name), 20, seed=3):
        pass
    assert sequence == [random.random() for _ in range(3)], "nor read"


@every_entry
@pytest.mark.parametrize("duplicate", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_copies_continue_equally(name: str, duplicate: Callable[[Any], Any]) -> None:
    env = plain(name)
    for _ in transitions(env, 40, seed=3):
        pass
    again = duplicate(env)
    action = env.action_space.sample()
    assert_same(env.step(action), again.step(action))
    assert_same([*transitions(env, 300, seed=None)], [*transitions(again, 300, seed=None)])


@every_entry
def test_a_spec_survives_json(name: str) -> None:
    env = gym.make(REGISTRY[name].id, observable=True)
    assert env.spec is not None
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert spec == env.spec
    again = gym.make(spec)
    assert_same([*transitions(env, 50, seed=3)], [*transitions(again, 50, seed=3)])
    batch = gym.make_vec(REGISTRY[name].id, 2, vectorization_mode="vector_entry_point", observable=True)
    assert batch.spec is not None
    twin = gym.make_vec(gym.envs.registration.EnvSpec.from_json(batch.spec.to_json()))
    assert type(twin.unwrapped) is type(batch.unwrapped)
    assert twin.num_envs == 2
    assert_same(batch.reset(seed=1), twin.reset(seed=1))


@every_entry
def test_runs_in_spawned_processes(name: str) -> None:
    # Nothing of this module: the processes would import all that it imports.
    makers = [functools.partial(gym.make, f"memory_suite:{REGISTRY[name].id}", disable_env_checker=True)] * 2
    options: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    there, here = AsyncVectorEnv(makers, context="spawn", **options), SyncVectorEnv(makers, **options)
    try:
        mine, theirs = there.reset(seed=7), here.reset(seed=7)
        assert_same(mine, theirs)
        for _ in range(20):
            mine, theirs = there.step(mine[-1]["oracle_action"]), here.step(theirs[-1]["oracle_action"])
            assert_same(mine, theirs)
    finally:
        there.close()


@every_entry
def test_random_actions_stay_inside_the_spaces(name: str) -> None:
    """100,000 steps of the twin, some thousands of the reference."""
    rng = np.random.default_rng(0)
    batch = batched(name, 125)
    actions = num_actions(batch)
    observation, info = batch.reset(seed=0)
    for _ in range(800):
        assert batch.observation_space.contains(observation)
        assert info["oracle_action"].min() >= 0 and info["oracle_action"].max() < actions
        assert info["cue"].dtype == bool
        observation, reward, terminated, truncated, info = batch.step(rng.integers(actions, size=125))
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
        assert not (terminated & truncated).any()
        ended = terminated | truncated
        for index in np.flatnonzero(ended):
            assert batch.single_observation_space.contains(info["final_obs"][index])
            assert info["final_info"]["_is_success"][index]
    env = plain(name)
    for said in transitions(env, 3_000, seed=0, skill=0.5):
        assert env.observation_space.contains(said[0])
        assert env.action_space.contains(said[-1]["oracle_action"])
        assert isinstance(said[-1]["cue"], bool)
        if len(said) == 5:
            assert ("is_success" in said[-1]) == (said[2] or said[3])


# -- autoreset ---------------------------------------------------------------------------------------


@every_entry
def test_vector_env_matches_sync_vector_env_of_references(name: str) -> None:
    """Key for key, dtype for dtype; masked and partly seeded resets included."""
    copies = SyncVectorEnv([functools.partial(plain, name)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    batch = batched(name, 3)
    assert batch.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert (batch.observation_space, batch.action_space) == (copies.observation_space, copies.action_space)
    mask = np.array([True, False, True])
    rng = np.random.default_rng(0)
    mine, theirs = batch.reset(seed=5), copies.reset(seed=5)
    assert_same(mine, theirs)
    for skill in (1.0, 0.9, 0.0):
        for _ in range(500):
            actions = skilled(mine[-1]["oracle_action"], skill, num_actions(batch), rng)
            mine, theirs = batch.step(actions), copies.step(actions)
            assert_same(mine, theirs)
        assert_same(
            batch.reset(options={"reset_mask": mask.copy()}),
            copies.reset(options={"reset_mask": mask.copy()}),
        )
        seeds = [int(rng.integers(99)), None, 3]
        mine, theirs = batch.reset(seed=seeds), copies.reset(seed=seeds)
        assert_same(mine, theirs)


@every_entry
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_copies_of_the_reference_reset_in_every_mode(name: str, mode: AutoresetMode) -> None:
    """The episodes are those of a single environment, whichever way they follow one another."""
    vector = SyncVectorEnv([functools.partial(plain, name)] * 2, autoreset_mode=mode)
    single = plain(name)
    observations, infos = vector.reset(seed=3)
    observation, info = single.reset(seed=3)
    np.testing.assert_array_equal(observations[0], observation)
    episodes = 0
    for _ in range(10_000):
        observations, rewards, terminated, truncated, infos = vector.step(infos["oracle_action"])
        observation, reward, ends, cut, info = single.step(info["oracle_action"])
        np.testing.assert_array_equal(observations[0], observation)
        assert (rewards[0], terminated[0], truncated[0]) == (reward, ends, cut)
        dones = terminated | truncated
        if mode is AutoresetMode.DISABLED and dones.any():
            observations, fresh = vector.reset(options={"reset_mask": dones.copy()})
            actions = np.where(dones, fresh["oracle_action"], infos["oracle_action"])
            infos = {"oracle_action": actions}
        if ends or cut:
            episodes += 1
            if mode is AutoresetMode.NEXT_STEP:
                observations, rewards, terminated, truncated, infos = vector.step(infos["oracle_action"])
                assert (rewards[0], terminated[0], truncated[0]) == (0.0, False, False)
            observation, info = single.reset()
            np.testing.assert_array_equal(observations[0], observation)
            if episodes == 2:
                return
    raise AssertionError("two episodes should have ended")


@every_entry
def test_the_state_of_a_batch_can_be_saved_and_restored(name: str) -> None:
    batch, other = batched(name, 4), batched(name, 4)
    rng = np.random.default_rng(0)

    def run(env: Any, infos: Any, steps: int) -> list[Any]:
        said = [({}, infos)]
        for row in np.random.default_rng(1).random((steps, 4)) < 0.95:
            action = np.where(row, said[-1][-1]["oracle_action"], 0)
            said.append(env.step(action))
        return said

    _, infos = batch.reset(seed=1)
    infos = run(batch, infos, int(rng.integers(200, 400)))[-1][-1]
    state: Any = copy.deepcopy(batch.state_dict())  # type: ignore[attr-defined]
    json.dumps(state["generators"])
    expected = run(batch, infos, 400)
    other.reset(seed=99)
    other.load_state_dict(state)  # type: ignore[attr-defined]
    assert_same(run(other, infos, 400), expected)
    with pytest.raises(ValueError, match="of 4 environments, but there are 3"):
        batched(name, 3).load_state_dict(state)  # type: ignore[attr-defined]


# -- pictures ------------------------------------------------------------------------------------------


@every_entry
def test_renders_in_every_mode_it_declares(name: str) -> None:
    modes = plain(name).metadata["render_modes"]
    assert modes
    for mode in (None, *modes):
        env = plain(name, render_mode=mode)
        _, info = env.reset(seed=0)
        shapes = set()
        for _ in range(5):
            rendered: Any = env.render()
            if mode == "rgb_array":
                assert rendered.dtype == np.uint8
                shapes.add(rendered.shape)
            elif mode == "ansi":
                assert isinstance(rendered, str) and rendered
            else:
                assert rendered is None, mode
            info = env.step(info["oracle_action"])[-1]
        assert len(shapes) == (mode == "rgb_array"), "a video needs pictures of one size"
        env.close()
    with pytest.raises(ValueError, match="render_mode"):
        type(plain(name))(render_mode="hologram")


@every_entry
def test_vector_env_renders_like_the_reference(name: str) -> None:
    for mode in (None, *batched(name, 1).metadata["render_modes"]):
        batch = batched(name, 2, render_mode=mode)
        singles = [plain(name, render_mode=mode) for _ in range(2)]
        _, infos = batch.reset(seed=4)
        for index, single in enumerate(singles):
            single.reset(seed=4 + index)
        for _ in range(5):
            if mode is None:
                assert batch.render() is None
            else:
                assert_same(batch.render(), tuple(single.render() for single in singles))
            for single, action in zip(singles, infos["oracle_action"], strict=True):
                single.step(action)
            infos = batch.step(infos["oracle_action"])[-1]
    with pytest.raises(ValueError, match="render_mode"):
        type(batch.unwrapped)(2, render_mode="hologram")


# -- faults --------------------------------------------------------------------------------------------


@every_entry
def test_an_action_outside_the_space_is_refused(name: str) -> None:
    env, batch = plain(name), batched(name, 2)
    env.reset(seed=0)
    batch.reset(seed=0)
    beyond = num_actions(env)
    for action in (beyond, -1, 0.5, "0", None, np.array([0, 1])):
        with pytest.raises(ValueError, match="action"):
            env.step(action)
    for actions in ([0, beyond], [-1, 0], [0.5, 1.0], [0], [[0, 1]], [beyond + 3, 0]):
        with pytest.raises(ValueError, match="action"):
            batch.step(np.array(actions))
    env.step(np.int64(0))
    batch.step(np.zeros(2, dtype=np.int64))


@every_entry
def test_stepping_outside_an_episode_is_refused(name: str) -> None:
    env = plain(name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        batched(name, 2).step(np.zeros(2, dtype=np.int64))
    _, info = env.reset(seed=0)
    ended = False
    while not ended:
        _, _, terminated, truncated, info = env.step(info["oracle_action"])
        ended = terminated or truncated
    for _ in range(2):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(env.action_space.sample())
    env.reset()
    env.step(env.action_space.sample())


# -- what memory is worth ------------------------------------------------------------------------------


def returns(
    batch: VectorEnv[Any, Any, Any], act: Callable[[Any, Any], np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return and success of the first episode of each environment."""
    observation, info = batch.reset(seed=seed)
    total, success = np.zeros(batch.num_envs), np.zeros(batch.num_envs, dtype=bool)
    playing = np.ones(batch.num_envs, dtype=bool)
    while playing.any():
        observation, reward, terminated, truncated, info = batch.step(act(observation, info))
        total[playing] += reward[playing]
        ended = (terminated | truncated) & playing
        if ended.any():
            success[ended] = info["final_info"]["is_success"][ended]
            playing &= ~ended
    return total, success


@every_entry
def test_memory_is_enough(name: str) -> None:
    """An agent that remembers what it was shown gets the most there is, in every episode."""
    batch = batched(name, 100)
    total, success = returns(batch, lambda _, info: info["oracle_action"], seed=0)
    np.testing.assert_allclose(total, batch.unwrapped.max_return)  # type: ignore[attr-defined]
    assert success.all()


@every_entry
@settings(max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_no_actions_pay_more_than_the_stated_maximum(name: str, seed: int) -> None:
    """Agents of every skill, and those that do one thing over and over, for many episodes each."""
    batch = batched(name, 60)
    most: float = batch.unwrapped.max_return  # type: ignore[attr-defined]
    actions = num_actions(batch)
    rng = np.random.default_rng(seed)
    skill = np.linspace(0.0, 1.0, 60)
    total, highest, lowest = np.zeros(60), -np.inf, np.inf
    _, info = batch.reset(seed=seed)
    repeated = np.zeros(60, dtype=np.int64)
    for _ in range(1_000):
        repeated = np.where(rng.random(60) < 0.2, rng.integers(actions, size=60), repeated)
        chosen = np.where(rng.random(60) < skill, info["oracle_action"], repeated)
        _, reward, terminated, truncated, info = batch.step(chosen)
        total += reward
        highest, lowest = max(highest, total.max()), min(lowest, total.min())
        total[terminated | truncated] = 0.0
    assert highest <= most + 1e-9
    assert highest > 0.0, "something was paid at all"


@every_entry
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31), choices=st.lists(st.tuples(st.integers(0, 63), st.booleans()), max_size=150)
)
def test_no_sequence_of_actions_pays_more_than_the_stated_maximum(
    name: str, seed: int, choices: list[tuple[int, bool]]
) -> None:
    env: Any = plain(name)
    _, info = env.reset(seed=seed)
    total = 0.0
    for choice, follow_oracle in choices:
        action = info["oracle_action"] if follow_oracle else choice % num_actions(env)
        _, reward, terminated, truncated, info = env.step(np.int64(action))
        total += reward
        assert total <= env.max_return + 1e-9
        if terminated or truncated:
            break


def looked_up(decide: Callable[[np.ndarray], int]) -> Policy:
    """A policy that decides once for each observation there is."""
    known: dict[bytes, int] = {}

    def act(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for observation in observations:
            key = observation.tobytes()
            if key not in known:
                known[key] = decide(observation)
        return np.array([known[observation.tobytes()] for observation in observations])

    return act


def corridor_guesses() -> list[Policy]:
    """Walk to the doors; take the upper one, the one of a color, or either by chance."""

    def doors(observations: np.ndarray) -> tuple[Any, Any]:
        centre = observations.shape[1] // 2
        return observations[:, centre, centre - 1], observations[:, centre, centre + 1]

    def upper(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        above, _ = doors(observations)
        return np.where(above[:, 0] == OBJECT_TO_IDX["door"], Move.UP, Move.RIGHT)

    def chance(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        above, _ = doors(observations)
        either = rng.choice([Move.UP, Move.DOWN], size=len(observations))
        return np.where(above[:, 0] == OBJECT_TO_IDX["door"], either, Move.RIGHT)

    def red(observations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        above, below = doors(observations)
        door = OBJECT_TO_IDX["door"]
        up, down = (above[:, :2] == (door, 0)).all(1), (below[:, :2] == (door, 0)).all(1)
        return np.select([up, down], [int(Move.UP), int(Move.DOWN)], int(Move.RIGHT))

    return [upper, chance, red]


def portal_guesses() -> list[Policy]:
    """Go to the nearer door, the first in reading order, the lower color, or each from half the cells."""

    def go(choose: Callable[[np.ndarray, Look, tuple[int, int]], int | None]) -> Policy:
        def decide(observation: np.ndarray) -> int:
            agents = np.argwhere(observation[..., 0] == AGENT[0])
            places = np.argwhere((observation[..., 0] == OBJECT_TO_IDX["door"]).T)[:, ::-1]
            if not len(agents):
                return int(Move.RIGHT)
            first, second = (tuple(place.tolist()) for place in places)
            look = Look((first, second), (observation[first][1], observation[second][1]))
            cell = tuple(agents[0].tolist())
            door = choose(observation, look, cell)
            return int(oracle_action(cell, look, door or 0, knows=door is not None))

        return looked_up(decide)

    def halves(observation: np.ndarray, look: Look, cell: tuple[int, int]) -> int:
        def nearness(other: tuple[int, int]) -> int:
            return steps_to_door(other, look.places[0]) - steps_to_door(other, look.places[1])

        half = sorted(CELLS, key=nearness).index(cell) - len(CELLS) // 2
        return sum(look.colors) % 2 if half == 0 else int(half > 0)

    return [
        go(lambda observation, look, cell: None),
        go(lambda observation, look, cell: 0),
        go(lambda observation, look, cell: int(np.argmin(look.colors))),
        go(halves),
    ]


GUESSING: dict[str, Callable[[], list[Policy]]] = {"corridor": corridor_guesses, "portal": portal_guesses}
"""policies without memory, the best known among them, by the family of environments"""


@every_entry
def test_memory_is_needed(name: str) -> None:
    """No policy of the present observation alone gets more than is stated, and the best gets nearly that."""
    num_envs = int(np.clip(20_000 // plain(name).correlation_horizon[1], 60, 1_000))  # type: ignore[attr-defined]
    batch = batched(name, num_envs)
    stated: float = batch.unwrapped.memory_free_return  # type: ignore[attr-defined]
    most: float = batch.unwrapped.max_return  # type: ignore[attr-defined]
    assert stated < 0.75 * most
    rng = np.random.default_rng(0)
    actions = num_actions(batch)
    family = name.split("-")[0]
    policies: list[Policy] = [lambda observation, rng: rng.integers(actions, size=len(observation))]
    policies += GUESSING[family]() if family in GUESSING else []
    reached = []
    for number, policy in enumerate(policies):
        total, _ = returns(batch, lambda observation, _, policy=policy: policy(observation, rng), seed=number)
        mean, error = total.mean(), total.std() / np.sqrt(len(total))
        assert mean <= stated + 4 * error + 1e-9
        reached.append(mean)
    assert family not in GUESSING or max(reached) > 0.75 * stated, "the stated bound is not a loose one"


@every_entry
def test_horizon_and_returns_are_declared(name: str) -> None:
    """The same on both twins; and one flag takes the need for memory away."""
    for env in (plain(name), batched(name, 1).unwrapped):
        shown: Any = env
        fewest, most = shown.correlation_horizon
        assert isinstance(fewest, int) and isinstance(most, int)
        assert 0 < fewest <= most
        assert 0.0 < shown.memory_free_return < shown.max_return
    assert plain(name).correlation_horizon == batched(name, 1).unwrapped.correlation_horizon  # type: ignore[attr-defined]
    observable: Any = plain(name, observable=True)
    assert observable.memory_free_return == observable.max_return
