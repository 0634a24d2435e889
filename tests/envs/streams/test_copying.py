"""Copy: every episode follows its rules, at any distance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory_suite.envs.streams.copying import CopyRules
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, Block


def episodes(block: Block, row: int, rules: CopyRules) -> list[Block]:
    """The row cut where it starts anew: the lead-in if there is one, then episodes, the last perhaps cut."""
    starts = np.flatnonzero(block.is_first[row])
    assert starts[0] == 0
    ends = [*starts[1:], block.tokens.shape[1]]
    pieces = [block.part((row, slice(start, end))) for start, end in zip(starts, ends, strict=True)]
    if pieces[0].tokens[0] != rules.start_token:
        assert (pieces[0].targets == IGNORE).all()
        assert len(pieces[0].tokens) < rules.episode_tokens(rules.bounds[1])
        pieces = pieces[1:]
    return pieces


def judge(episode: Block, rules: CopyRules) -> NDArray[np.int64]:
    """Go through a whole episode token by token; its string."""
    n = rules.string_length
    tokens = episode.tokens.tolist()
    assert tokens[0] == rules.start_token
    assert tokens.count(rules.start_token) == tokens.count(rules.cue_token) == 1
    string = tokens[1 : n + 1]
    cue = tokens.index(rules.cue_token)
    assert len(tokens) == cue + n
    assert rules.bounds[0] <= cue - 1 <= rules.bounds[1]
    for place, token in enumerate(tokens):
        separate = rules.noise == "separate"
        if n < place < cue:
            assert (rules.alphabet_size if separate else 0) <= token < rules.start_token
        elif place not in (0, cue):
            assert token < rules.alphabet_size
        if place < cue:
            assert episode.targets[place] == IGNORE
            assert episode.distance[place] == UNKNOWN
        else:
            target, distance = episode.targets[place], episode.distance[place]
            assert target == string[place - cue]
            assert distance == cue - 1
            assert tokens[place - distance] == target, "the symbol lies `distance` tokens back"
    assert tokens[cue + 1 :] == string[:-1]
    return np.array(string)


@given(
    string_length=st.integers(1, 9),
    alphabet_size=st.integers(2, 20),
    extra=st.integers(0, 50),
    spread=st.integers(0, 50),
    distribution=st.sampled_from(["uniform", "log-uniform"]),
    noise=st.sampled_from(["separate", "alphabet"]),
    seed=st.integers(0, 2**31),
)
def test_every_episode_follows_the_rules(
    string_length: int,
    alphabet_size: int,
    extra: int,
    spread: int,
    distribution: Any,
    noise: Any,
    seed: int,
) -> None:
    rules = CopyRules(
        string_length=string_length,
        alphabet_size=alphabet_size,
        min_distance=string_length + extra,
        max_distance=string_length + extra + spread,
        distance_distribution=distribution,
        noise=noise,
    )
    block = GeneratedStream(rules, num_rows=2, seed=seed).read(1_000)
    assert block.tokens.max() < rules.vocabulary_size
    for row in range(2):
        *whole, cut = episodes(block, row, rules)
        assert whole
        for episode in whole:
            judge(episode, rules)
        distance = int(cut.distance.max())
        if distance != UNKNOWN and len(cut.tokens) == rules.episode_tokens(distance):
            judge(cut, rules)


def test_an_episode_by_hand() -> None:
    """String of 2, distance 4: START s1 s2 noise noise CUE s1, and s1 s2 are asked for at the end."""
    rules = CopyRules(string_length=2, alphabet_size=3, distance=4)
    assert (rules.start_token, rules.cue_token, rules.vocabulary_size) == (6, 7, 8)
    block = GeneratedStream(rules, seed=0).read(100)
    first = episodes(block, 0, rules)[0]
    a, b = first.tokens[1:3].tolist()
    noise = first.tokens[3:5].tolist()
    assert all(3 <= token < 6 for token in noise)
    assert first.tokens.tolist() == [6, a, b, *noise, 7, a]
    assert first.targets.tolist() == [-1] * 5 + [a, b]
    assert first.distance.tolist() == [-1] * 5 + [4, 4]


@pytest.mark.parametrize("distance", [131_072, 500_000])
def test_far_distances(distance: int) -> None:
    rules = CopyRules(distance=distance)
    block = GeneratedStream(rules, seed=1).read(2 * rules.episode_tokens(distance) + 10)
    judge(episodes(block, 0, rules)[0], rules)


def test_a_string_as_long_as_the_distance_has_no_noise() -> None:
    rules = CopyRules(string_length=5, distance=5)
    block = GeneratedStream(rules, seed=1).read(60)
    judge(episodes(block, 0, rules)[0], rules)


def test_symbols_noise_and_distances_are_uniform() -> None:
    rules = CopyRules(string_length=4, alphabet_size=5, min_distance=10, max_distance=19, noise="alphabet")
    block = GeneratedStream(rules, num_rows=8, seed=2).read(20_000)
    whole = [episode for row in range(8) for episode in episodes(block, row, rules)[:-1]]
    strings = np.array([judge(episode, rules) for episode in whole])
    for place in range(4):
        share = np.bincount(strings[:, place], minlength=5) / len(strings)
        np.testing.assert_allclose(share, 0.2, atol=0.02)
    repeats = (strings[1:] == strings[:-1]).mean()
    assert repeats == pytest.approx(0.2, abs=0.02), "strings are independent"
    noise = np.concatenate([episode.tokens[5 : int(episode.distance.max()) + 1] for episode in whole])
    np.testing.assert_allclose(np.bincount(noise, minlength=5) / len(noise), 0.2, atol=0.01)
    distances = np.array([int(episode.distance.max()) for episode in whole])
    np.testing.assert_allclose(np.bincount(distances, minlength=20)[10:] / len(distances), 0.1, atol=0.015)


def test_log_uniform_distances() -> None:
    rules = CopyRules(string_length=1, min_distance=2, max_distance=127, distance_distribution="log-uniform")
    block = GeneratedStream(rules, num_rows=8, seed=2).read(30_000)
    whole = [episode for row in range(8) for episode in episodes(block, row, rules)[:-1]]
    distances = np.array([int(episode.distance.max()) for episode in whole])
    assert set(range(2, 20)) <= set(distances.tolist())
    assert np.mean(distances < 16) == pytest.approx(0.5, abs=0.02)


def test_rows_show_their_targets_at_different_times() -> None:
    rules = CopyRules(string_length=4, distance=1_000)
    block = GeneratedStream(rules, num_rows=64, seed=0).read(2_010)
    first_target = (block.targets != IGNORE).argmax(axis=1)
    assert len(set(first_target.tolist())) > 50
    assert (block.targets != IGNORE).any(axis=0)[1_005:].mean() > 0.15


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"string_length": 0}, "string_length must be at least 1"),
        ({"alphabet_size": 1}, "alphabet_size must be at least 2"),
        ({"distance": 15}, r"distance must be at least string_length \(16\)"),
        ({"min_distance": 3}, r"min_distance must be at least string_length \(16\)"),
        ({"max_distance": 63}, r"max_distance \(63\) must not be less than min_distance \(64\)"),
        ({"distance": 1 << 30}, "distance must be at most 67108864"),
        ({"distance": 20.0}, r"distance must be a whole number, got 20\.0"),
        ({"noise": "white"}, "noise must be 'separate' or 'alphabet'"),
        ({"distance_distribution": "normal"}, "distance_distribution must be 'uniform' or 'log-uniform'"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CopyRules(**arguments)
