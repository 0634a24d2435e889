"""Object collision: what is shown fits the rules exactly, and its distribution fits a slow loop's."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from memory_suite.agents.serialization.state_tree import flatten, unflatten
from memory_suite.envs.streams.collision import (
    CHUNK_FRAMES,
    FRAME_TOKENS,
    NEVER_TARGET,
    CollisionRules,
    EasyQuestion,
    walk,
)
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.oracle import window_errors
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN
from tests.envs.streams.slow_collision import frames

ROW_FRAMES = 8_192
FAST_ROWS = 96
SLOW_ROWS = 20
QUESTIONS: tuple[EasyQuestion, ...] = ("latest", "current")


class Shown(NamedTuple):
    """Frames [B, F] taken apart again."""

    cells: NDArray[np.int64]
    """[B, F, 2 particles, 2]"""
    colors: NDArray[np.int64]
    """[B, F, 2]"""
    asked: NDArray[np.int64]
    """[B, F, 2]"""
    targets: NDArray[np.int64]
    """[B, F]"""
    ages: NDArray[np.int64]
    """[B, F] frames, -1 where not scored"""


def shown(stream: GeneratedStream, num_frames: int) -> Shown:
    """The next frames, with everything the token layout promises checked."""
    block = stream.read(num_frames * FRAME_TOKENS)
    frames_BF8 = block.tokens.reshape(-1, num_frames, 8)
    first = np.array([0, 16, 32, 0, 16, 32, 37, 37])
    sizes = np.array([16, 16, 5, 16, 16, 5, 5, 5])
    values = frames_BF8 - first
    assert (values >= 0).all()
    assert (values < sizes).all()
    targets = block.targets.reshape(-1, num_frames, 8)
    distance = block.distance.reshape(-1, num_frames, 8)
    assert (targets[..., :7] == IGNORE).all()
    assert (distance[..., :7] == UNKNOWN).all()
    scored = targets[..., 7] != IGNORE
    assert (distance[..., 7][scored] % 8 == 7).all()
    ages = np.where(scored, distance[..., 7] // 8, -1)
    cells = np.stack([values[..., 0:2], values[..., 3:5]], axis=2)
    return Shown(cells, values[..., [2, 5]], values[..., 6:8], targets[..., 7], ages)


@pytest.mark.parametrize("easy_question", QUESTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_target_and_distance_follows_from_what_was_shown(
    easy_question: EasyQuestion, seed: int
) -> None:
    """A loop over the tokens, over many chunks."""
    stream = GeneratedStream(CollisionRules(easy_question=easy_question), num_rows=2, seed=seed)
    seen = shown(stream, 20 * CHUNK_FRAMES + 77)
    num_scored = 0
    for row in range(2):
        last: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}
        for number in range(seen.targets.shape[1]):
            first, second = (tuple(cell) for cell in seen.cells[row, number].tolist())
            if first == second:
                last[tuple(seen.colors[row, number].tolist())] = (number, first)
            asked = tuple(seen.asked[row, number].tolist())
            if asked in last:
                when, (y, x) = last[asked]
                assert seen.targets[row, number] == (y > 7) * 2 + (x > 7)
                assert seen.ages[row, number] == number - when
                num_scored += 1
            else:
                assert seen.targets[row, number] == IGNORE
                assert seen.ages[row, number] == -1
    assert num_scored > 15_000


def test_warm_up_asks_about_what_was_not_shown() -> None:
    """The frames after a warm-up are those a row without one shows later, targets included."""
    warm_up = 3 * CHUNK_FRAMES
    late = GeneratedStream(CollisionRules(), num_rows=2)
    late.read(warm_up * FRAME_TOKENS)
    warm = GeneratedStream(CollisionRules(warm_up_frames=warm_up), num_rows=2)
    expected, got = late.read(20_000), warm.read(20_000)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
    np.testing.assert_array_equal(got.targets, expected.targets)
    np.testing.assert_array_equal(got.distance, expected.distance)
    assert got.is_first[:, 0].all()
    assert got.is_first.sum() == 2
    assert not expected.is_first.any()
    unseen = got.distance > np.arange(20_000)
    assert unseen.any()


def slow_walk(
    position: list[float], velocity: list[float], num_frames: int, velocities: list[list[float]]
) -> list[list[float]]:
    """Step by step, as the rules say."""
    position, coming, places = list(position), iter(velocities), []
    for _ in range(num_frames):
        while not all(0 < place + speed < 15 for place, speed in zip(position, velocity, strict=True)):
            velocity = next(coming)
        position = [place + speed for place, speed in zip(position, velocity, strict=True)]
        places.append(position)
    return places


INSIDE = st.floats(0.001, 14.999)
SPEEDS = st.one_of(st.just(0.0), st.floats(0.001, 20.0), st.floats(-20.0, -0.001))


@given(
    position=st.tuples(INSIDE, INSIDE),
    velocity=st.tuples(SPEEDS, SPEEDS),
    num_frames=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_legs_equal_steps(
    position: tuple[float, float], velocity: tuple[float, float], num_frames: int, seed: int
) -> None:
    """Straight legs computed at once are the way walked step by step with the same velocities."""
    velocities = np.random.default_rng(seed).normal(0, 0.5, (2_000, 2)).tolist()
    fast, _ = walk(np.array(position), np.array(velocity), num_frames, iter(velocities))
    slow = slow_walk(list(position), list(velocity), num_frames, velocities)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-9)


def test_a_walk_by_hand() -> None:
    """From 13.5 at 0.5 a step: 14, 14.5, and not 15, which is the border; then the first legal velocity."""
    velocities = iter([[0.6, 0.0], [0.0, -8.0], [-1.0, 0.25]])
    places, velocity = walk(np.array([13.5, 7.0]), np.array([0.5, 0.0]), 4, velocities)
    assert places.tolist() == [[14.0, 7.0], [14.5, 7.0], [13.5, 7.25], [12.5, 7.5]]
    assert velocity == [-1.0, 0.25]


def statistics(row: Shown) -> dict[str, float]:
    """Numbers that tell how one row [F, ...] was distributed."""
    numbers: dict[str, float] = {}
    hits = (row.cells[:, 0] == row.cells[:, 1]).all(axis=1)
    numbers["collision rate"] = hits.mean()
    numbers["collision goes on"] = (hits[1:] & hits[:-1]).mean()
    for particle, axis in itertools.product(range(2), range(2)):
        for cell in (0, 1, 4, 7, 8, 14, 15):
            numbers[f"particle {particle} axis {axis} in {cell}"] = (
                row.cells[:, particle, axis] == cell
            ).mean()
    for quadrant in range(4):
        cells = row.cells[hits, 0] // 8
        numbers[f"collisions in quadrant {quadrant}"] = (cells @ [2, 1] == quadrant).sum() / len(hits)
        numbers[f"target {quadrant}"] = (row.targets == quadrant).mean()
    for particle, color in itertools.product(range(2), range(5)):
        numbers[f"particle {particle} has color {color}"] = (row.colors[:, particle] == color).mean()
        numbers[f"asked {particle} is color {color}"] = (row.asked[:, particle] == color).mean()
    for gap in (1, 2, 8, 64):
        moved = np.abs(row.cells[gap:] - row.cells[:-gap])
        numbers[f"cells moved in {gap}"] = moved.mean()
        numbers[f"stays for {gap}"] = (moved == 0).all(axis=-1).mean()
        for cells in (1, 3, 6):
            numbers[f"moves over {cells} in {gap}"] = (moved > cells).mean()
        numbers[f"color differs after {gap}"] = (row.colors[gap:] != row.colors[:-gap]).mean()
    numbers["asks the current colors"] = (row.asked == row.colors).all(axis=1).mean()
    place = np.maximum.accumulate(np.where(hits, np.arange(len(hits)), -1))
    asks_latest = (row.asked == row.colors[place]).all(axis=1) & (place >= 0)
    numbers["asks the latest pair"] = asks_latest.mean()
    numbers["not scored"] = (row.ages < 0).mean()
    for age in (1, 16, 128, 512, 2_048, 4_096):
        numbers[f"age at least {age}"] = (row.ages >= age).mean()
    return numbers


def different(
    ours: list[dict[str, float]], theirs: list[dict[str, float]]
) -> dict[str, tuple[float, float, float]]:
    """The numbers whose means differ by more than 4.5 standard errors: both means, and that error."""
    far = {}
    for name in ours[0]:
        left, right = (np.array([numbers[name] for numbers in rows]) for rows in (ours, theirs))
        error = np.hypot(left.std(ddof=1) / len(left) ** 0.5, right.std(ddof=1) / len(right) ** 0.5)
        if abs(left.mean() - right.mean()) > 4.5 * error + 1e-9:
            far[name] = (float(left.mean()), float(right.mean()), float(error))
    return far


def slow_row(seed: int, easy_question: EasyQuestion) -> Shown:
    row = list(itertools.islice(frames(random.Random(seed), easy_question), ROW_FRAMES))
    return Shown(
        cells=np.array([frame.cells for frame in row]),
        colors=np.array([frame.colors for frame in row]),
        asked=np.array([frame.asked for frame in row]),
        targets=np.array([IGNORE if frame.target is None else frame.target for frame in row]),
        ages=np.array([UNKNOWN if frame.age is None else frame.age for frame in row]),
    )


@pytest.mark.parametrize("easy_question", QUESTIONS)
def test_the_distribution_equals_the_slow_loop(easy_question: EasyQuestion) -> None:
    """Marginals, motion, collisions, questions, targets and ages: rows are independent samples of each.

    Means of fast and slow rows differ by less than 4.5 standard errors in each of some 100 numbers.
    """
    stream = GeneratedStream(CollisionRules(easy_question=easy_question), num_rows=FAST_ROWS, seed=1)
    seen = shown(stream, ROW_FRAMES)
    fast = [statistics(Shown(*(array[row] for array in seen))) for row in range(FAST_ROWS)]
    slow = [statistics(slow_row(seed, easy_question)) for seed in range(SLOW_ROWS)]
    assert not different(fast, slow)


def _latest(seen: Shown) -> NDArray[np.int64]:
    """Colors [B, F, 2] of the particles when they last collided; -1 before that."""
    hits = (seen.cells[:, :, 0] == seen.cells[:, :, 1]).all(axis=2)
    place = np.maximum.accumulate(np.where(hits, np.arange(hits.shape[1]), -1), axis=1)
    return np.where(place[..., None] >= 0, np.take_along_axis(seen.colors, place[..., None], axis=1), -1)


@pytest.mark.parametrize("easy_question", QUESTIONS)
def test_known_rates(easy_question: EasyQuestion) -> None:
    """What follows from the rules alone, on one long row."""
    seen = shown(GeneratedStream(CollisionRules(easy_question=easy_question), seed=2), 1_000_000)
    for gap in (1, 8, 64):
        differs = (seen.colors[:, gap:] != seen.colors[:, :-gap]).mean()
        assert differs == pytest.approx(0.8 * (1 - 0.95**gap), abs=0.006)
    hits = (seen.cells[:, :, 0] == seen.cells[:, :, 1]).all(axis=2)
    latest = _latest(seen)
    known = (latest >= 0).all(axis=2)
    asks_latest = (seen.asked == latest).all(axis=2)[known].mean()
    asks_current = (seen.asked == seen.colors).all(axis=2)[known].mean()
    # 0.4 on purpose, and one random question in 25 by chance.
    meant, other = (asks_latest, asks_current) if easy_question == "latest" else (asks_current, asks_latest)
    assert meant == pytest.approx(0.4 + 0.6 / 25, abs=0.003)
    assert other < 0.12
    at_once = (seen.asked == seen.colors).all(axis=2)[hits].mean()
    assert at_once == pytest.approx(0.4 + 0.6 / 25, abs=0.03), "this frame's collision is the latest"
    quadrants = np.bincount(seen.targets[seen.targets != IGNORE], minlength=4)
    np.testing.assert_allclose(quadrants / quadrants.sum(), 0.25, atol=0.02)


@pytest.mark.parametrize(
    ("easy_question", "percent"),
    [
        ("current", {16_384: 60.1, 32_768: 48.9, 65_536: 32.3}),
        ("latest", {1_024: 66.2, 16_384: 36.5, 32_768: 29.5, 65_536: 19.4}),
    ],
)
def test_the_oracle_makes_the_known_errors(easy_question: EasyQuestion, percent: dict[int, float]) -> None:
    """Within 1 point of what was measured with the released rules."""
    stream = GeneratedStream(CollisionRules(easy_question=easy_question), num_rows=6)
    errors = window_errors(stream, list(percent), 400_000 * FRAME_TOKENS)
    assert errors.chance_error == 0.75
    measured = {window: 100 * error for window, error in errors.error.items()}
    assert measured == pytest.approx(percent, abs=1.0)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="easy_question must be 'latest' or 'current', got 'newest'"):
        CollisionRules(easy_question="newest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"easy_probability must lie in \[0, 1\], got 1\.5"):
        CollisionRules(easy_probability=1.5)
    with pytest.raises(ValueError, match="warm_up_frames must be at least 0, got -1"):
        CollisionRules(warm_up_frames=-1)
    with pytest.raises(ValueError, match=r"warm_up_frames must be a whole number, got 1\.5"):
        CollisionRules(warm_up_frames=1.5)  # type: ignore[arg-type]


def test_rows_of_episodes() -> None:
    rules = CollisionRules(min_episode_frames=20, max_episode_frames=2_000)
    stream = GeneratedStream(rules, num_rows=4)
    block = stream.read(8 * 40_000)
    for row in range(4):
        starts = np.flatnonzero(block.is_first[row])
        assert starts[0] == 0
        assert (starts % FRAME_TOKENS == 0).all()
        frames = np.diff(starts) // FRAME_TOKENS
        assert frames.min() >= 20
        assert frames.max() <= 2_000
        assert np.median(frames) == pytest.approx(200, rel=0.5), "log-uniform"
        # Nothing from before a beginning is asked about.
        since = (
            np.arange(block.tokens.shape[1])
            - starts[np.searchsorted(starts, np.arange(8 * 40_000), "right") - 1]
        )
        known = block.distance[row] >= 0
        assert (block.distance[row][known] <= since[known]).all()


LESSON = CollisionRules(
    max_episode_frames=64, min_episode_frames=64, lesson_frames=1_000_000, lesson_begins=0.9
)
"""as easy as at first for as long as a test looks"""


def lesson_rows(rules: CollisionRules, num_frames: int, num_rows: int = 8) -> list[Shown]:
    """What was shown in each whole row, of so many rows of a batch."""
    stream, twin = (GeneratedStream(rules, num_rows=num_rows, seed=5) for _ in range(2))
    seen = shown(stream, num_frames)
    first = twin.read(num_frames * FRAME_TOKENS).is_first.reshape(num_rows, num_frames, FRAME_TOKENS)[..., 0]
    return [
        Shown(*(array[row, begin:end] for array in seen))
        for row in range(num_rows)
        for begin, end in itertools.pairwise(np.flatnonzero(first[row]))
    ]


class Questions(NamedTuple):
    """What a loop over the frames of a lesson found out about its questions."""

    present: int
    """frames whose present colors have not collided, where others have, and ..."""
    asked_present: int
    """... whose question was of them"""
    ranks: list[float]
    """of a pair asked about, not the present one, among those that collided; 0: the first, 1: the last"""
    uncollided: int
    """frames that ask about a pair that has not collided, and ..."""
    never: int
    """... whose target says so"""
    oldest: int
    """frames since the collision that is asked about, at most"""


def questions(rows: list[Shown]) -> Questions:
    """Go through them frame by frame, and check every target and age."""
    present = asked_present = uncollided = never = oldest = 0
    ranks = []
    for row in rows:
        last: dict[tuple[int, ...], tuple[int, int]] = {}
        for number in range(len(row.targets)):
            colors = tuple(row.colors[number].tolist())
            asked = tuple(row.asked[number].tolist())
            if (row.cells[number, 0] == row.cells[number, 1]).all():
                y, x = row.cells[number, 0]
                last[colors] = (number, int(y > 7) * 2 + int(x > 7))  # pairs stay in the order of their first
            if last:
                assert asked in last or asked == colors
                if colors not in last:
                    present += 1
                    asked_present += asked == colors
                if asked != colors and len(last) > 1 and colors not in last:
                    ranks.append(list(last).index(asked) / (len(last) - 1))
            if asked in last:
                when, quadrant = last[asked]
                assert row.targets[number] == quadrant
                assert row.ages[number] == number - when
                oldest = max(oldest, number - when)
            else:
                assert row.targets[number] in (NEVER_TARGET, IGNORE)
                assert row.ages[number] == -1
                uncollided += 1
                never += row.targets[number] == NEVER_TARGET
    return Questions(present, asked_present, ranks, uncollided, never, oldest)


def test_every_target_of_a_lesson_follows_from_what_was_shown() -> None:
    """At first asked is about the present colors, or any pair that has collided; "never" is an answer."""
    found = questions(lesson_rows(LESSON, 8_192))
    assert found.never == found.uncollided > 1_000
    assert found.asked_present / found.present == pytest.approx(0.4, abs=0.02)
    assert np.mean(found.ranks) == pytest.approx(0.5, abs=0.04), (
        "none of them is asked about more than others"
    )
    assert len(found.ranks) > 500


def test_every_target_of_a_lesson_that_becomes_harder() -> None:
    """Half way, in rows of several chunks, and nothing easy is asked: that might be any pair."""
    rules = CollisionRules(
        easy_probability=0.0,
        min_episode_frames=3_000,
        max_episode_frames=100_000,
        lesson_frames=40_000,
        lesson_begins=0.2,
    )
    rows = [row for row in lesson_rows(rules, 40_000) if len(row.targets) > 2 * CHUNK_FRAMES]
    found = questions(rows)
    assert found.oldest > 2 * CHUNK_FRAMES
    assert 0 < found.asked_present < 0.35 * found.present
    assert 0 < found.never < 0.9 * found.uncollided


def test_ease_of_a_lesson() -> None:
    rules = CollisionRules(max_episode_frames=64, lesson_frames=1_000, lesson_begins=0.25)
    ease = [rules.ease(frames) for frames in (0, 250, 625, 999, 1_000, 5_000)]
    assert ease == pytest.approx([1.0, 1.0, 0.5, 1 / 750, 0.0, 0.0])
    assert CollisionRules().ease(0) == 0.0


def test_a_lesson_begins_with_short_rows_small_boxes_and_other_colors() -> None:
    rows = lesson_rows(LESSON, 8_192)
    lengths = np.array([len(row.targets) for row in rows])
    assert (lengths.min(), lengths.max()) == (1, 32)
    assert np.median(lengths) == pytest.approx(33**0.5, rel=0.3), "log-uniform"
    long = [row for row in rows if len(row.targets) >= 24]
    sides = np.array([np.ptp(row.cells, axis=0).max() for row in long])
    together = np.array([(row.cells[:, 0] == row.cells[:, 1]).all(axis=1).mean() for row in long])
    assert sides.min() <= 3
    assert sides.max() >= 12
    assert together[sides <= 4].mean() > 4 * together[sides >= 8].mean()
    stay = np.array([(row.colors[1:] == row.colors[:-1]).mean() for row in long])
    assert stay.min() < 0.4
    assert stay.max() > 0.9


def test_a_lesson_ends_with_the_rules_as_they_are() -> None:
    """After it nothing differs in distribution from rows that never had one."""
    plain = CollisionRules(min_episode_frames=512, max_episode_frames=512)
    taught = replace(plain, lesson_frames=2_000)
    after, without = (GeneratedStream(rules, num_rows=FAST_ROWS, seed=7) for rules in (taught, plain))
    for _ in range(4):  # each is somewhere in a row then
        after.read(1_000 * FRAME_TOKENS)
        without.read(1_000 * FRAME_TOKENS)
    ours, theirs = (shown(stream, 8_192) for stream in (after, without))
    assert not (ours.targets == NEVER_TARGET).any()
    per_row = [
        [statistics(Shown(*(array[row] for array in seen))) for row in range(FAST_ROWS)]
        for seen in (ours, theirs)
    ]
    assert not different(*per_row)


def test_short_rows_of_a_lesson_are_log_uniform_too() -> None:
    rules = CollisionRules(
        min_episode_frames=5, max_episode_frames=10, lesson_frames=10**6, lesson_begins=0.9
    )
    lengths = np.array([len(row.targets) for row in lesson_rows(rules, 2_048)])
    assert lengths.max() == 10
    assert (lengths == 10).mean() == pytest.approx(np.log(11 / 10) / np.log(11), abs=0.02)


def test_a_lesson_becomes_harder() -> None:
    """Longer rows, fewer collisions, and less often "never"."""
    rules = CollisionRules(min_episode_frames=64, max_episode_frames=256, lesson_frames=15_000)
    stream = GeneratedStream(rules, num_rows=8, seed=1)
    lengths, never, hits = [], [], []
    for _ in range(3):
        twin = GeneratedStream(rules, num_rows=8, seed=1)
        twin.load_state_dict(stream.state_dict())
        seen = shown(stream, 5_000)
        first = twin.read(5_000 * FRAME_TOKENS).is_first
        lengths.append(8 * 5_000 / first.sum())
        never.append((seen.targets == NEVER_TARGET).mean())
        hits.append((seen.cells[:, :, 0] == seen.cells[:, :, 1]).all(axis=2).mean())
    assert lengths[0] < lengths[1] < lengths[2]
    assert never[0] > never[1] > never[2] > 0
    assert hits[0] > hits[1] > hits[2] > 0


def test_rows_of_episodes_continue_exactly() -> None:
    rules = CollisionRules(max_episode_frames=50, lesson_frames=500, lesson_begins=0.5)
    stream, other = (GeneratedStream(rules, num_rows=3, seed=4) for _ in range(2))
    stream.read(1_003)
    tensors, rest = flatten(stream.state_dict())
    other.load_state_dict(unflatten(tensors, json.loads(json.dumps(rest))))
    for ours, theirs in zip(stream.read(5_000), other.read(5_000), strict=True):
        assert np.array_equal(ours, theirs)


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_episode_frames \(10\) must be 0 or at least"):
        CollisionRules(max_episode_frames=10)
    with pytest.raises(ValueError, match="lesson_frames needs episodes: give max_episode_frames"):
        CollisionRules(lesson_frames=100)
    with pytest.raises(ValueError, match=r"lesson_begins must lie in \[0, 1\), got 1"):
        CollisionRules(lesson_begins=1.0)
    with pytest.raises(ValueError, match="lesson_begins must be a number, got 'late'"):
        CollisionRules(lesson_begins="late")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="easy_probability must be a number, got True"):
        CollisionRules(easy_probability=True)
    with pytest.raises(ValueError, match="lesson_frames and warm_up_frames exclude each other"):
        CollisionRules(lesson_frames=100, max_episode_frames=64, warm_up_frames=10)
    with pytest.raises(ValueError, match="lesson_frames must be at least 0, got -1"):
        CollisionRules(lesson_frames=-1)


def test_the_easy_question_may_be_the_only_one() -> None:
    seen = shown(GeneratedStream(CollisionRules(easy_probability=1.0), seed=3), 50_000)
    asks_latest = (seen.asked == _latest(seen)).all(axis=2)
    first = int((seen.targets[0] != IGNORE).argmax())
    assert asks_latest[0, first:].all()
    assert not asks_latest[0, :first].any()
