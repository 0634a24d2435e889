"""The instruction world: both twins agree, memory is needed and enough, and the text is what it should be."""

from __future__ import annotations

import copy
import json
import pickle
import random
import zlib
from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite.envs.instruction import grammar as words
from memory_suite.envs.instruction.env import InstructionEnv
from memory_suite.envs.instruction.grammar import Grammar, decode, encode, grammar
from memory_suite.envs.instruction.page import HEIGHT, WIDTH
from memory_suite.envs.instruction.rules import CLASSES, InstructionRules
from memory_suite.envs.instruction.vector import InstructionVectorEnv
from memory_suite.envs.make import make_vec_env
from memory_suite.envs.registration import REGISTRY
from tests.envs.same import assert_same

WORLDS = [name for name in REGISTRY if name.startswith("instruction")]


def play(env: InstructionEnv, policy: Any, episodes: int, seed: int = 0) -> float:
    """Mean return of `policy(observation, info)`."""
    total = 0.0
    observation, info = env.reset(seed=seed)
    for _ in range(episodes):
        done = False
        while not done:
            observation, reward, done, _, info = env.step(policy(observation, info))
            total += reward
        observation, info = env.reset()
    return total / episodes


def texts_of(rules: InstructionRules, rng: np.random.Generator) -> list[list[str]]:
    """The texts of 20 episodes."""
    drawn = rules.draw(rng)
    parts = np.split(drawn.line_L, drawn.num_lines_E.cumsum()[:20])[:20]
    return [[rules.grammar.text(int(line)) for line in part] for part in parts]


def character_and_message(text: str, before: str, between: str) -> tuple[str, str] | None:
    """What an instruction or a reminding meeting names, read from its text alone; None for other lines."""
    for character in words.CHARACTERS:
        for message in words.MESSAGES:
            if text[:-1] == f"{before}{character}{between}{message}":
                return character, message
    return None


# -- both twins ------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_instructions=st.integers(1, 4),
    num_characters=st.integers(4, 16),
    num_messages=st.integers(2, 16),
    spare=st.integers(0, 4),
    extra=st.integers(0, 20),
    distribution=st.sampled_from(["uniform", "log-uniform"]),
    lure_share=st.floats(0, 1),
    observable=st.booleans(),
    skill=st.floats(0, 1),
)
def test_vector_env_matches_reference(
    seed: int,
    num_instructions: int,
    num_characters: int,
    num_messages: int,
    spare: int,
    extra: int,
    distribution: str,
    lure_share: float,
    observable: bool,
    skill: float,
) -> None:
    """Same seeds and actions: same observations, rewards, ends, infos and pages, over many episodes."""
    arguments: dict[str, Any] = {
        "num_instructions": num_instructions,
        "num_characters": num_characters,
        "num_messages": num_messages,
        "min_lines": 2 * num_instructions + spare,
        "num_lines": 2 * num_instructions + spare + extra,
        "lines_distribution": distribution,
        "lure_share": lure_share,
        "observable": observable,
        "render_mode": "ansi",
    }
    batch = InstructionVectorEnv(3, **arguments)
    singles = [InstructionEnv(**arguments) for _ in range(3)]
    observations, infos = batch.reset(seed=seed)
    for index, single in enumerate(singles):
        observation, info = single.reset(seed=seed + index)
        np.testing.assert_array_equal(observations[index], observation)
        assert infos["oracle_action"][index] == info["oracle_action"]
    rng = np.random.default_rng(seed)
    for _ in range(100):
        spoken = rng.integers(num_messages + 1, size=3)
        actions = np.where(rng.random(3) < skill, infos["oracle_action"], spoken)
        observations, rewards, terminated, truncated, infos = batch.step(actions)
        texts, pages = batch.lines(), batch.render()
        assert pages is not None
        for index, single in enumerate(singles):
            observation, reward, ends, cut, info = single.step(actions[index])
            assert (rewards[index], terminated[index], truncated[index]) == (reward, ends, cut)
            if ends:
                np.testing.assert_array_equal(infos["final_obs"][index], observation)
                assert single.line == ""
                for key, value in info.items():
                    assert infos["final_info"][key][index] == value, key
                observation, info = single.reset()
            np.testing.assert_array_equal(observations[index], observation)
            assert infos["cue"][index] == info["cue"]
            assert infos["oracle_action"][index] == info["oracle_action"]
            assert texts[index] == single.line
            assert pages[index] == single.render()


def test_vector_env_matches_reference_beyond_the_first_chunk() -> None:
    batch = InstructionVectorEnv(1)
    single = InstructionEnv()
    batch.reset(seed=0)
    single.reset(seed=0)
    for _ in range(batch.rules.chunk_lines + 30):
        observations, _, terminated, *_ = batch.step(np.array([1]))
        observation, _, ends, *_ = single.step(np.int64(1))
        assert terminated[0] == ends
        if ends:
            observation, _ = single.reset()
        np.testing.assert_array_equal(observations[0], observation)


def test_a_caller_may_change_what_it_was_given() -> None:
    batch = InstructionVectorEnv(2, min_lines=4, num_lines=4)
    observations, infos = batch.reset(seed=0)
    kept = copy.deepcopy((observations, infos))
    observations[:] = 1
    for value in infos.values():
        value[:] = 0
    again = batch.reset(seed=0)
    assert_same(again, kept)
    for _ in range(10):
        batch.step(np.zeros(2, dtype=np.int64))
    assert_same(again, kept)


def test_state_dict_continues_exactly() -> None:
    rng = np.random.default_rng(0)
    arguments: dict[str, Any] = {"min_lines": 4, "num_lines": 1_000, "num_characters": 4}

    def run(env: InstructionVectorEnv, actions: np.ndarray) -> list[Any]:
        answers = [copy.deepcopy(env.step(row)) for row in actions]
        return [(answer, env.render()) for answer in answers]

    env = InstructionVectorEnv(4, **arguments, render_mode="ansi")
    env.reset(seed=1)
    run(env, rng.integers(9, size=(300, 4)))
    state = copy.deepcopy(env.state_dict())
    json.dumps(state["generators"])
    actions = rng.integers(9, size=(2_000, 4))
    text = env.lines()
    expected = run(env, actions)
    other = InstructionVectorEnv(4, **arguments, render_mode="ansi")
    other.reset(seed=99)
    other.load_state_dict(state)
    assert other.lines() == text
    for mine, theirs in zip(run(other, actions), expected, strict=True):
        assert_same(mine, theirs)
    with pytest.raises(ValueError, match="of 4 environments, but there are 3"):
        InstructionVectorEnv(3, **arguments).load_state_dict(state)
    with pytest.raises(ValueError, match=r"other arguments: _chunk_line_NL has the shape"):
        InstructionVectorEnv(4).load_state_dict(state)


def test_sb3_wrapper_takes_it() -> None:
    env = make_vec_env("instruction-short", 3, seed=0)
    env.reset()
    for _ in range(20):
        _, _, dones, infos = env.step(np.zeros(3, dtype=np.int64))
    assert dones.all()
    assert infos[0]["terminal_info"]["correct_messages"] == 0.0
    assert infos[0]["episode_class"] == "2-50"
    assert infos[0]["is_success"] is False


# -- Gymnasium's contract --------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_obeys_the_gymnasium_api(name: str, render_mode: str) -> None:
    check_env(gym.make(REGISTRY[name].id, render_mode=render_mode).unwrapped)


@pytest.mark.parametrize("name", WORLDS)
def test_is_made_pickled_and_described(name: str) -> None:
    env = gym.make(REGISTRY[name].id)
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    first, _ = env.reset(seed=3)
    second, _ = again.reset(seed=3)
    np.testing.assert_array_equal(first, second)
    copied = pickle.loads(pickle.dumps(env.unwrapped))
    for _ in range(15):
        action = np.int64(0)
        np.testing.assert_array_equal(env.unwrapped.step(action)[0], copied.step(action)[0])
    batch = gym.make_vec(REGISTRY[name].id, num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(batch.unwrapped, InstructionVectorEnv)
    batch.reset(seed=3)
    assert len(pickle.dumps(batch.unwrapped)) < 200_000, "the grammar's tables stay behind"
    copied = pickle.loads(pickle.dumps(batch.unwrapped))
    for _ in range(30):
        actions = np.zeros(2, dtype=np.int64)
        np.testing.assert_array_equal(batch.step(actions)[0], copied.step(actions)[0])


def test_registered_worlds_have_their_sizes() -> None:
    short: Any = gym.make("MemorySuite/InstructionShort-v0").unwrapped
    long: Any = gym.make("MemorySuite/InstructionLong-v0").unwrapped
    assert (short.rules.num_instructions, short.rules.min_lines, short.rules.num_lines) == (2, 20, 20)
    assert (long.rules.num_instructions, long.rules.num_lines) == (6, 2_000)
    assert (
        f"16 x {short.observation_space.nvec[0]}, {short.observation_space.dtype}" in InstructionEnv.__doc__
    )
    assert short.observation_space.shape == (16,)


def test_same_seed_same_episodes_and_no_global_generator_is_touched() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002

    def lines(seed: int) -> list[str]:
        env = InstructionEnv(min_lines=1_500, num_lines=2_000)
        env.reset(seed=seed)
        result = [env.line]
        for _ in range(10):  # more than one chunk of draws
            env.reset()
            result.append(env.line)
        return result

    assert lines(5) == lines(5)
    assert lines(5) != lines(6)
    batch = InstructionVectorEnv(2, min_lines=4, num_lines=5)
    batch.reset(seed=0)
    for _ in range(100):
        batch.step(np.array([1, 3]))
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    assert before == after


@pytest.mark.parametrize("action", [-1, 9, 1.5, "1"])
def test_the_reference_refuses_actions_outside_the_space(action: Any) -> None:
    env = InstructionEnv()
    env.reset(seed=0)
    with pytest.raises(ValueError, match="not in Discrete"):
        env.step(action)


@pytest.mark.parametrize(
    ("actions", "named"),
    [
        ([0, 9], "environment 1 is 9"),
        ([-1, 0], "environment 0 is -1"),
        ([0.5, 1.0], "whole numbers"),
        ([1], "2 whole numbers"),
        ([[0, 1]], "2 whole numbers"),
    ],
)
def test_the_vector_env_refuses_actions_outside_the_space(actions: list[Any], named: str) -> None:
    batch = InstructionVectorEnv(2)
    batch.reset(seed=0)
    with pytest.raises(ValueError, match=named):
        batch.step(np.array(actions))


def test_a_step_before_the_first_reset_or_after_the_end_is_refused() -> None:
    with pytest.raises(gym.error.ResetNeeded):
        InstructionVectorEnv(2).step(np.zeros(2, dtype=np.int64))
    env = InstructionEnv(min_lines=4, num_lines=4)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset(seed=0)
    assert [env.step(np.int64(0))[2] for _ in range(4)] == [False, False, False, True]
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.int64(0))
    env.reset()
    env.step(np.int64(0))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_instructions": 0}, "num_instructions must lie between 1 and num_characters"),
        ({"num_instructions": 5, "num_characters": 4}, "num_instructions must lie between 1 and num_char"),
        ({"num_characters": 17}, "num_characters must lie between 1 and 16"),
        ({"num_characters": 0}, "num_characters must lie between 1 and 16"),
        ({"num_messages": 1}, "num_messages must lie between 2 and 16"),
        ({"num_messages": 17}, "num_messages must lie between 2 and 16"),
        ({"num_instructions": 6, "min_lines": 11}, "min_lines must be at least 12"),
        ({"min_lines": 9, "num_lines": 8}, "num_lines"),
        ({"lines_distribution": "normal"}, "lines_distribution must be 'uniform' or"),
        ({"lure_share": 1.1}, "lure_share must lie between 0 and 1"),
        ({"lure_share": float("nan")}, "lure_share must be a number"),
        ({"speaking_penalty": -0.1}, "speaking_penalty must be at least 0"),
        ({"speaking_penalty": float("inf")}, "speaking_penalty must be a number"),
        ({"speaking_penalty": "0.1"}, "speaking_penalty must be a number"),
        ({"num_lines": 20.5}, "num_lines must be a whole number"),
        ({"min_lines": "20"}, "min_lines must be a whole number"),
        ({"num_messages": None}, "num_messages must be a whole number"),
        ({"render_mode": "ascii"}, "render_mode"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        InstructionEnv(**arguments)
    with pytest.raises(ValueError, match=named):
        InstructionVectorEnv(2, **arguments)


def test_no_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1"):
        InstructionVectorEnv(0)


# -- memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_remembering_is_sufficient(name: str) -> None:
    """The oracle has the maximum in 1,000 episodes, and finds nothing to be wrong."""
    env: Any = gym.make_vec(REGISTRY[name].id, num_envs=100, vectorization_mode="vector_entry_point")
    _, infos = env.reset(seed=0)
    returns, episodes = np.zeros(100), 0
    while episodes < 1_000:
        _, rewards, terminated, _, infos = env.step(infos["oracle_action"])
        returns += rewards
        if terminated.any():
            np.testing.assert_allclose(returns[terminated], env.max_return)
            final = infos["final_info"]
            assert final["is_success"][terminated].all()
            assert (final["correct_messages"][terminated] == 1).all()
            assert not final["out_of_turn"].any()
            returns[terminated] = 0
            episodes += terminated.sum()


def test_an_agent_that_reads_and_remembers_needs_no_oracle() -> None:
    """The text says all: a dictionary filled by instructions and looked up at meetings scores 1."""
    env = InstructionEnv(num_instructions=4, min_lines=8, num_lines=60, lure_share=0.8)
    remembered: dict[str, str] = {}

    def policy(_: np.ndarray, info: dict[str, Any]) -> np.int64:
        asked = character_and_message(env.line, "Can you tell the ", " that ")
        assert (asked is not None) == info["cue"]
        if asked is not None:
            remembered[asked[0]] = asked[1]
        met = [name for name in words.CHARACTERS if env.line == f"You see the {name}."]
        action = words.MESSAGES.index(remembered.pop(met[0])) + 1 if met else 0
        assert action == info["oracle_action"]
        return np.int64(action)

    assert play(env, policy, episodes=300) == pytest.approx(1.0)
    assert not remembered


@pytest.mark.parametrize("num_messages", [2, 8])
def test_memory_is_necessary(num_messages: int) -> None:
    """A table of the best answer to each line, made from one half of the episodes, is at chance on the other.

    What is said changes nothing, so such a table is the most that a policy without memory can be.
    """
    env = InstructionVectorEnv(100, num_messages=num_messages, num_characters=3, min_lines=4, num_lines=12)
    assert env.memory_free_return == 1 / num_messages

    def halves(seed: int) -> dict[bytes, Counter[int]]:
        seen: dict[bytes, Counter[int]] = {}
        observations, infos = env.reset(seed=seed)
        for _ in range(1_500):
            for observation, answer in zip(observations, infos["oracle_action"].tolist(), strict=True):
                if answer:
                    seen.setdefault(observation.tobytes(), Counter())[answer] += 1
            observations, _, _, _, infos = env.step(np.zeros(100, dtype=np.int64))
        return seen

    known, unseen = halves(0), halves(1_000)
    assert len(known) == len(unseen) == 3, "a meeting's line tells whom, not what"
    right = sum(unseen[line][answers.most_common(1)[0][0]] for line, answers in known.items())
    total = sum(answers.total() for answers in unseen.values())
    assert total > 20_000
    assert right / total == pytest.approx(1 / num_messages, abs=0.015)


def test_best_memory_free_policy_scores_the_stated_bound() -> None:
    env = InstructionEnv(num_messages=4, min_lines=4, num_lines=8)
    meetings = {tuple(encode(f"You see the {name}.")) for name in words.CHARACTERS}

    def policy(observation: np.ndarray, _: dict[str, Any]) -> np.int64:
        return np.int64(tuple(observation[observation > 0].tolist()) in meetings)

    assert play(env, policy, episodes=4_000) == pytest.approx(env.memory_free_return, abs=0.025)


def test_observable_variant_needs_no_memory() -> None:
    env = InstructionEnv(observable=True)

    def policy(observation: np.ndarray, _: dict[str, Any]) -> np.int64:
        due = character_and_message(decode(observation), "You see the ", " and remember that ")
        return np.int64(0 if due is None else words.MESSAGES.index(due[1]) + 1)

    assert play(env, policy, episodes=100) == env.memory_free_return == env.max_return == 1.0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), skill=st.floats(0, 1), observable=st.booleans())
def test_nothing_earns_more_than_the_maximum(seed: int, skill: float, observable: bool) -> None:
    env = InstructionEnv(num_instructions=3, min_lines=6, num_lines=12, num_messages=2, observable=observable)
    rng = np.random.default_rng(seed)
    _, info = env.reset(seed=seed)
    for _ in range(20):
        total, done = 0.0, False
        while not done:
            action = info["oracle_action"] if rng.random() < skill else rng.integers(3)
            _, reward, done, _, info = env.step(np.int64(action))
            total += reward
        assert total <= env.max_return + 1e-9
        assert info["is_success"] == (info["correct_messages"] == 1.0)
        _, info = env.reset()


# -- rules -----------------------------------------------------------------------------------------


def test_rewards_by_hand() -> None:
    """Right: 1/2. Wrong or silent at a meeting: 0. Speaking elsewhere: the penalty."""
    env = InstructionEnv(speaking_penalty=0.25, min_lines=6, num_lines=6)
    _, info = env.reset(seed=0)
    rewards: list[float] = []
    meetings = 0
    done = False
    while not done:
        due, line = info["oracle_action"], env.line
        action = 0
        if due and meetings == 0:
            action, expected = due, 0.5
        elif due:
            action, expected = due % 8 + 1, 0.0
        elif line.startswith("Can you tell the") and info["cue"]:
            action, expected = 3, -0.25
        else:
            action, expected = 0, 0.0
        meetings += due > 0
        _, reward, done, truncated, info = env.step(np.int64(action))
        assert (reward, truncated) == (expected, False)
        rewards.append(reward)
    assert sorted(rewards) == [-0.25, -0.25, 0.0, 0.0, 0.0, 0.5]
    assert info == {
        "cue": False,
        "oracle_action": 0,
        "is_success": False,
        "correct_messages": 0.5,
        "out_of_turn": 2,
        "episode_class": "2-50",
    }


def test_speaking_out_of_turn_costs_reward_but_not_success() -> None:
    env = InstructionEnv()
    _, info = env.reset(seed=0)
    total, done = 0.0, False
    while not done:
        _, reward, done, _, info = env.step(np.int64(info["oracle_action"] or 1))
        total += reward
    assert info["is_success"]
    assert info["out_of_turn"] == 18
    assert total == pytest.approx(1 - 18 * 0.01)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_instructions=st.integers(1, 6),
    spare=st.integers(0, 3),
    extra=st.integers(0, 30),
)
def test_every_instructed_character_is_met_once_and_later(
    seed: int, num_instructions: int, spare: int, extra: int
) -> None:
    fewest = 2 * num_instructions + spare
    rules = InstructionRules(
        num_instructions=num_instructions, min_lines=fewest, num_lines=fewest + extra, num_characters=7
    )
    nearest, farthest = rules.correlation_horizon
    for text in texts_of(rules, np.random.default_rng(seed)):
        assert fewest <= len(text) <= fewest + extra
        asked: dict[str, int] = {}
        met: dict[str, int] = {}
        for place, line in enumerate(text):
            instruction = character_and_message(line, "Can you tell the ", " that ")
            if instruction is not None:
                assert instruction[0] not in asked
                asked[instruction[0]] = place
            for name in words.CHARACTERS:
                if line == f"You see the {name}.":
                    assert name not in met
                    met[name] = place
        assert len(asked) == num_instructions
        assert set(met) == set(asked)
        for name, place in met.items():
            assert nearest <= place - asked[name] <= farthest


def test_instructions_and_meetings_fall_anywhere() -> None:
    """Every distance of the horizon occurs, and so does every place."""
    rules = InstructionRules(num_instructions=1, min_lines=8, num_lines=8)
    rng = np.random.default_rng(0)
    distances: Counter[int] = Counter()
    places: Counter[int] = Counter()
    for _ in range(4):
        drawn = rules.draw(rng)
        for line in drawn.line_L.reshape(-1, 8):
            (asked,) = np.flatnonzero(line < rules.grammar.num_pairs)
            (met,) = np.flatnonzero(rules.grammar.answers_L[line])
            distances[met - asked] += 1
            places.update((int(asked), int(met)))
    assert set(distances) == set(range(1, 8))
    assert set(places) == set(range(8))
    assert min(places.values()) > 0.8 * max(places.values())


def test_messages_and_characters_are_drawn_evenly() -> None:
    rules = InstructionRules(num_characters=5, num_messages=3)
    rng = np.random.default_rng(0)
    lines = np.concatenate([rules.draw(rng).line_L for _ in range(20)])
    pairs = np.bincount(lines[lines < rules.grammar.num_pairs], minlength=15)
    assert len(pairs) == 15
    np.testing.assert_allclose(pairs / pairs.sum(), 1 / 15, atol=0.006)


def test_numbers_of_lines_follow_their_distribution() -> None:
    rng = np.random.default_rng(0)
    rules = InstructionRules(min_lines=4, num_lines=13)
    uniform = np.concatenate([rules.draw(rng).num_lines_E for _ in range(40)])
    counts = np.bincount(uniform)[4:]
    assert len(counts) == 10
    assert np.abs(counts / len(uniform) - 0.1).max() < 0.01
    rules = InstructionRules(min_lines=4, num_lines=200, lines_distribution="log-uniform")
    logarithmic = np.concatenate([rules.draw(rng).num_lines_E for _ in range(600)])
    assert set(logarithmic.tolist()) == set(range(4, 201))
    expected = np.log(21 / 4) / np.log(201 / 4)
    assert np.mean(logarithmic <= 20) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize("lure_share", [0.0, 0.3, 1.0])
def test_lures_have_their_share(lure_share: float) -> None:
    rules = InstructionRules(lure_share=lure_share)
    rng = np.random.default_rng(0)
    lines = rules.grammar.draw_distractors(rng, 20_000, lure_share)
    named = [
        any(f"the {name}" in text for name in words.CHARACTERS)
        or any(message in text for message in words.MESSAGES)
        for text in (rules.grammar.text(line).lower() for line in lines.tolist())
    ]
    assert np.mean(named) == pytest.approx(lure_share, abs=0.01)


def test_no_two_episodes_are_alike() -> None:
    rules = InstructionRules()
    rng = np.random.default_rng(0)
    episodes = [tuple(row) for _ in range(10) for row in rules.draw(rng).line_L.reshape(-1, 20).tolist()]
    assert len(episodes) > 4_000
    assert len(set(episodes)) == len(episodes)


@pytest.mark.parametrize("num_lines", [20_000, 100_000])
def test_very_long_texts(num_lines: int) -> None:
    batch = InstructionVectorEnv(2, min_lines=num_lines, num_lines=num_lines)
    single = InstructionEnv(min_lines=num_lines, num_lines=num_lines, render_mode="ansi")
    batch.reset(seed=0)
    single.reset(seed=0)
    for _ in range(50):
        observations, *_ = batch.step(np.zeros(2, dtype=np.int64))
        observation, *_ = single.step(np.int64(0))
        np.testing.assert_array_equal(observations[0], observation)
    assert batch.rules.chunk_lines == num_lines


def test_declared_horizon_and_classes() -> None:
    rules = InstructionRules(num_instructions=6, min_lines=20, num_lines=2_000)
    assert rules.correlation_horizon == (1, 1_999)
    assert rules.episode_classes == ("2-50", "50-200", "200-600", "600-2000")
    assert [CLASSES.name(lines) for lines in (2, 50, 51, 200, 2_000, 2_001)] == [
        "2-50", "2-50", "50-200", "50-200", "600-2000", "2000+",
    ]  # fmt: skip
    assert InstructionRules().episode_classes == ("2-50",)
    for env in (InstructionEnv(), InstructionVectorEnv(2)):
        assert env.correlation_horizon == (1, 19)
        assert env.episode_classes == ("2-50",)
        assert env.max_return == 1.0
        assert env.memory_free_return == 1 / 8


# -- text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_characters", "num_messages", "observable"),
    [(10, 8, False), (10, 8, True), (16, 16, False), (1, 2, True)],
)
def test_every_line_is_tokenized_as_its_text(
    num_characters: int, num_messages: int, observable: bool
) -> None:
    lines = grammar(num_characters, num_messages, observable)
    texts = [lines.text(line) for line in range(lines.size)]
    assert lines.tokens_LW.shape == (lines.size, words.LINE_LENGTH)
    for text, tokens in zip(texts, lines.tokens_LW, strict=True):
        ids = encode(text)
        assert len(ids) < words.LINE_LENGTH
        assert tokens.tolist() == ids + [0] * (words.LINE_LENGTH - len(ids))
        assert decode(tokens) == text
    assert lines.answers_L.tolist() == [lines.answer(line) for line in range(lines.size)]


def test_there_are_thousands_of_distractors_and_none_twice() -> None:
    lines = grammar(10, 8)
    texts = [lines.text(line) for line in range(2 * lines.num_pairs, lines.size)]
    assert len(set(texts)) == len(texts) == 32_352
    marked = {lines.text(line) for line in range(2 * lines.num_pairs)}
    assert len(marked) == 80 + 10, "instructions, and meetings that tell whom"
    assert not marked & set(texts)
    lures = [text for text in texts if any(f"the {name}" in text for name in words.CHARACTERS)]
    assert len(lures) > 3_000
    tricky = [text for text in lures if text.startswith(("Can you tell the ", "You see the "))]
    assert len(tricky) > 1_000


def test_some_lures_have_exactly_the_words_of_an_instruction() -> None:
    """So that their order must be read."""
    lines = grammar(10, 8)
    instructions = {tuple(sorted(row)) for row in lines.tokens_LW[: lines.num_pairs].tolist()}
    others = {tuple(sorted(row)) for row in lines.tokens_LW[2 * lines.num_pairs :].tolist()}
    assert instructions <= others


def test_every_line_occurs() -> None:
    lines = grammar(2, 2)
    drawn = lines.draw_distractors(np.random.default_rng(0), 1_500_000, 0.1)
    assert set(drawn.tolist()) == set(range(2 * lines.num_pairs, lines.size))


def test_the_vocabulary_is_fixed() -> None:
    """What an agent has learned depends on these numbers: only ever add at the end."""
    vocabulary = words.VOCABULARY
    assert len(set(vocabulary)) == len(vocabulary) == 211
    assert [vocabulary.index(word) for word in ("", ".", "'s", "baker", "judge", "the", "spring")] == [
        0, 1, 4, 5, 20, 21, 210,
    ]  # fmt: skip
    assert zlib.crc32(" ".join(vocabulary[:211]).encode()) == 2842036311
    used = {token for number in (1, 16) for row in grammar(16, 16, number == 1).tokens_LW for token in row}
    assert used == set(range(211)), "every token occurs"
    assert encode("Can you tell the baker that the bridge is closed?") == [
        61, 62, 63, 21, 5, 64, 21, 22, 23, 24, 3,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "named"), [("You see the dragon.", "'dragon' is not in the vocabulary"), ("You see!", "got '!'")]
)
def test_unknown_words_are_refused(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        encode(text)


@pytest.mark.parametrize("line", [-1, 32_512])
def test_unknown_lines_are_refused(line: int) -> None:
    with pytest.raises(ValueError, match="between 0 and 32511"):
        grammar(10, 8).text(line)


def test_grammars_are_shared_and_survive_pickling() -> None:
    assert grammar(10, 8) is grammar(10, 8)
    assert pickle.loads(pickle.dumps(grammar(3, 2))) is grammar(3, 2)
    assert isinstance(grammar(3, 2, True), Grammar)


# -- pages -----------------------------------------------------------------------------------------


def test_page_as_text() -> None:
    env = InstructionEnv(min_lines=6, num_lines=6, render_mode="ansi")
    _, info = env.reset(seed=0)
    page: Any = None
    lines: list[str] = []
    spoken = ["right", "missed", "out of turn"]
    expected: list[str] = []
    done = False
    meetings = 0
    while not done:
        lines.append(env.line)
        expected.append(f"{len(lines):7}  {env.line}")
        due = info["oracle_action"]
        said = due if due and meetings == 0 else 2 if len(lines) == 1 and not due else 0
        if said:
            message = words.MESSAGES[said - 1].capitalize()
            expected.append(f"            - {message}. ({spoken[0] if due else spoken[2]})")
        elif due:
            expected.append("            - You say nothing. (missed)")
        meetings += due > 0
        _, _, done, _, info = env.step(np.int64(said))
        page = env.render()
        if not done:
            assert page.splitlines()[-1] == f">{len(lines) + 1:6}  {env.line}"
    assert page.splitlines() == expected
    assert sum("right" in row for row in expected) == sum("missed" in row for row in expected) == 1


def test_pictures_match_the_reference_have_one_size_and_show_the_line() -> None:
    batch = InstructionVectorEnv(2, render_mode="rgb_array")
    single = InstructionEnv(render_mode="rgb_array")
    batch.reset(seed=4)
    single.reset(seed=4)
    pictures: list[Any] = []
    for action in (1, 2, 0, 0, 3, 1, 1, 1, 1, 1, 1, 1):  # more than fit on a page
        batch.step(np.full(2, action))
        single.step(np.int64(action))
        both: Any = batch.render()
        np.testing.assert_array_equal(both[0], single.render())
        pictures.extend(both)
    assert {(picture.shape, picture.dtype) for picture in pictures} == {
        ((HEIGHT, WIDTH, 3), np.dtype(np.uint8))
    }
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert all((picture < 60).all(axis=2).sum() > 500 for picture in pictures), "dark ink on paper"


@pytest.mark.parametrize("observable", [False, True])
def test_the_longest_lines_fit_into_the_picture(observable: bool) -> None:
    from PIL import ImageFont

    from memory_suite.envs.instruction.page import FONT_SIZE, SPEECH_COLUMN, TEXT_COLUMN

    font = ImageFont.load_default(FONT_SIZE)
    lines = grammar(16, 16, observable)
    longest = sorted((lines.text(line) for line in range(lines.size)), key=len)[-200:]
    assert max(font.getlength(text) for text in longest) < WIDTH - TEXT_COLUMN
    spoken = [f"{message}. (out of turn)" for message in words.MESSAGES]
    assert max(font.getlength(text) for text in spoken) < WIDTH - SPEECH_COLUMN


def test_no_render_mode_renders_nothing() -> None:
    env, batch = InstructionEnv(), InstructionVectorEnv(2)
    env.reset(seed=0)
    batch.reset(seed=0)
    assert env.render() is None
    assert batch.render() is None
