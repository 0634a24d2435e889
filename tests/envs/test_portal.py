"""The portal: twins agree, and the doorway alone tells which door is right (and test_contract.py)."""

from __future__ import annotations

import collections
import itertools
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.constants import OBJECT_TO_IDX, STATE_TO_IDX

from memory_suite.envs.grid_world import STEPS, Move
from memory_suite.envs.portal.env import AGENT, PortalEnv
from memory_suite.envs.portal.rules import (
    CELLS,
    CHUNK,
    MAX_STEPS_PER_ROOM,
    PLACE_PAIRS,
    PLACES,
    PortalRules,
    draw_distinct,
    guess_rooms,
    oracle_action,
    steps_to_door,
)
from memory_suite.envs.portal.vector import PortalVectorEnv
from tests.envs.same import assert_same

DOOR = OBJECT_TO_IDX["door"]
CLOSED, OPEN, LOCKED = STATE_TO_IDX["closed"], STATE_TO_IDX["open"], STATE_TO_IDX["locked"]

SIZES = st.fixed_dictionaries(
    {
        "rooms": st.integers(1, 7),
        "num_colors": st.integers(2, 6),
        "view_size": st.sampled_from([None, 3, 5, 7, 9]),
        "sparse": st.booleans(),
        "alike": st.booleans(),
        "observable": st.booleans(),
    }
)


@settings(max_examples=30)
@given(arguments=SIZES, seed=st.integers(0, 2**31), skill=st.floats(0, 1))
def test_vector_env_matches_reference(arguments: dict[str, Any], seed: int, skill: float) -> None:
    """Same seeds and actions: same observations, rewards, ends and infos, key for key and dtype for dtype."""
    batch = PortalVectorEnv(3, **arguments)
    copies = SyncVectorEnv([lambda: PortalEnv(**arguments)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    mine, theirs = batch.reset(seed=seed), copies.reset(seed=seed)
    assert_same(mine, theirs)
    rng = np.random.default_rng(seed)
    for _ in range(120):
        actions = np.where(rng.random(3) < skill, mine[-1]["oracle_action"], rng.integers(4, size=3))
        mine, theirs = batch.step(actions), copies.step(actions)
        assert_same(mine, theirs)


def test_vector_env_matches_reference_beyond_the_first_chunk() -> None:
    """More episodes, and more cells of arrival, than one draw holds."""
    batch = PortalVectorEnv(2, rooms=2)
    copies = SyncVectorEnv([lambda: PortalEnv(rooms=2)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    mine, theirs = batch.reset(seed=1), copies.reset(seed=1)
    episodes = 0
    for _ in range(2_500):
        mine, theirs = batch.step(mine[-1]["oracle_action"]), copies.step(theirs[-1]["oracle_action"])
        assert_same(mine, theirs)
        episodes += int(mine[2][0])
    assert episodes > CHUNK


def play_oracle(env: PortalEnv, seed: int) -> tuple[float, dict[str, Any], int]:
    """Return, last info and length of one episode."""
    _, info = env.reset(seed=seed)
    total = 0.0
    for steps in itertools.count(1):
        _, reward, terminated, truncated, info = env.step(info["oracle_action"])
        total += reward
        if terminated or truncated:
            return total, info, steps
    raise AssertionError


@pytest.mark.parametrize(
    "arguments", [{"rooms": 1}, {}, {"rooms": 9, "alike": True}, {"view_size": 3}, {"sparse": True}]
)
def test_remembering_is_sufficient(arguments: dict[str, Any]) -> None:
    env = PortalEnv(**arguments)
    for seed in range(40):
        total, info, _ = play_oracle(env, seed)
        assert total == pytest.approx(env.max_return)
        assert info["is_success"]
        assert info["rooms_passed"] == env.rules.rooms
        assert info["repeated_mistakes"] == 0


def test_the_worst_luck_of_a_perfect_memory_fits_the_time_limit_exactly() -> None:
    """Wrong once in every room, each time as far from the door as can be."""

    class Unlucky(PortalEnv):
        def _enter(self, room: int) -> None:
            self._looks = [look._replace(places=((0, 1), (4, 3))) for look in self._looks]
            super()._enter(room)
            look = self._looks[room]
            door = self._rights[room] if room < self._known else 1 - self._rights[room]
            self._position = max(CELLS, key=lambda cell: steps_to_door(cell, look.places[door]))

        def walk(self) -> Move:
            """To the right door where it is known, else to the wrong one."""
            right = self._rights[self._room]
            target = right if self._room < self._known else 1 - right
            return oracle_action(self._position, self._looks[self._room], target, knows=True)

    for rooms in (1, 2, 5):
        env = Unlucky(rooms=rooms)
        env.reset(seed=0)
        for _ in range(env.rules.time_limit - 1):
            assert not any(env.step(env.walk())[2:4])
        _, _, terminated, truncated, info = env.step(env.walk())
        assert (terminated, truncated) == (True, False)
        assert not info["repeated_mistakes"]
    farthest = max(steps_to_door(cell, place) for cell in CELLS for place in PLACES)
    assert farthest + 1 == MAX_STEPS_PER_ROOM
    assert [PortalRules(rooms=rooms).time_limit for rooms in (1, 5, 50)] == [11, 119, 7_949]
    assert PortalRules(rooms=5, time_limit_factor=3).time_limit == 357


def test_nothing_but_the_doorway_tells_which_door_is_right() -> None:
    """Same look, same cell: same observation, whichever door is right and whatever the room's number."""
    env = PortalEnv(rooms=3)
    env.reset(seed=0)
    looks = [env.rules.look(number) for number in (70, 700, 1_900)]
    for cell in CELLS:
        views = set()
        for rights in ([0, 0, 0], [1, 1, 1]):
            for room, passed in ((1, 1), (1, 2), (1, 3)):
                env.place(looks, rights, room, cell, passed=passed)
                views.add(env._observe().tobytes())
            env.place(looks[::-1], rights[::-1], 1, cell)
            views.add(env._observe().tobytes())
        assert len(views) == 1
    views = set()
    for right in (0, 1):
        env.place(looks, [right] * 3, 1, looks[1].places[0], doorway=0)
        views.add(env._observe().tobytes())
    assert len(views) == 2


@pytest.mark.parametrize("observable", [False, True])
def test_doors_show_where_they_lead_in_the_doorway_only(observable: bool) -> None:
    env = PortalEnv(observable=observable)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=0)
    seen = collections.Counter[str]()
    for _ in range(2_000):
        states = observation[..., 2][observation[..., 0] == DOOR].tolist()
        assert len(states) == 2
        agents = np.argwhere(observation[..., 0] == AGENT[0])
        assert len(agents) == (env._doorway is None)
        if observable:
            assert sorted(states) == [OPEN, LOCKED]
            assert info["cue"]
        elif info["cue"]:
            shown = [state for state in states if state != CLOSED]
            assert shown == [OPEN if env._doorway == env._rights[env._room] else LOCKED]
            seen["open" if shown == [OPEN] else "locked"] += 1
        else:
            assert states == [CLOSED, CLOSED]
        observation, _, terminated, truncated, info = env.step(rng.integers(4))
        if terminated or truncated:
            observation, info = env.reset()
    assert observable or min(seen["open"], seen["locked"]) > 20


def test_observable_variant_needs_no_memory() -> None:
    """A policy of the present observation alone: go to the open door."""
    env = PortalEnv(rooms=8, observable=True)
    for seed in range(30):
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            doors = observation[..., 0] == DOOR
            place = tuple(np.argwhere(doors & (observation[..., 2] == OPEN))[0].tolist())
            agent = np.argwhere(observation[..., 0] == AGENT[0])
            action = Move.RIGHT
            if len(agent):
                look = next(pair for pair in PLACE_PAIRS if place in pair)
                action = oracle_action(
                    tuple(agent[0].tolist()), env.rules.look(0)._replace(places=look), look.index(place),
                    knows=True,
                )  # fmt: skip
            observation, reward, terminated, truncated, info = env.step(np.int64(action))
            total += reward
            done = terminated or truncated
        assert total == pytest.approx(2.0)
        assert info["rooms_passed"] == 8
    assert env.memory_free_return == env.max_return


def test_doors_lead_on_or_back_and_the_bookkeeping_counts() -> None:
    env = PortalEnv(rooms=3)
    env.reset(seed=0)

    def take(right: bool) -> tuple[float, bool, dict[str, Any]]:
        """Walk into the right or wrong door, and through it unless that is the end."""
        door = env._rights[env._room] if right else 1 - env._rights[env._room]
        while True:
            look = env._looks[env._room]
            move = oracle_action(env._position, look, door, knows=True)
            _, reward, terminated, _, info = env.step(np.int64(move))
            if info["cue"]:
                break
            assert reward == 0.0
        if not terminated:
            _, later, *_ = env.step(np.int64(Move.LEFT))
            assert later == 0.0
        return reward, terminated, info

    third = pytest.approx(1 / 3)
    assert take(True)[:2] == (third, False)
    assert env._room == 1
    assert take(False)[0] == 0.0
    assert (env._room, env._known, env._repeated_mistakes) == (0, 2, 0)
    assert take(False)[0] == 0.0, "the right one was taken before: a repeated mistake"
    assert (env._room, env._known, env._repeated_mistakes) == (0, 2, 1)
    assert take(True)[0] == 0.0, "paid once only"
    assert take(False)[0] == 0.0
    assert env._repeated_mistakes == 2
    take(True)
    assert take(True)[0] == third
    assert take(False)[0] == 0.0
    take(True)
    take(True)
    reward, terminated, info = take(True)
    assert reward == pytest.approx(4 / 3)
    assert terminated
    assert (info["is_success"], info["rooms_passed"], info["repeated_mistakes"]) == (True, 3, 2)


def test_the_doorway_is_passed_by_any_action_and_arrival_is_random() -> None:
    arrivals: collections.Counter[tuple[int, int]] = collections.Counter()
    env = PortalEnv(rooms=2, time_limit_factor=1_000)
    _, info = env.reset(seed=0)
    action = itertools.cycle(Move)
    for _ in range(12_000):
        here = env._doorway, env._rights[env._room], env._room
        _, _, terminated, _, info = env.step(np.int64(next(action) if info["cue"] else info["oracle_action"]))
        if here[0] is not None:
            assert env._room == (here[2] + 1 if here[0] == here[1] else 0)
            arrivals[env._position] += 1
        if terminated:
            _, info = env.reset()
    share = np.array([arrivals[cell] for cell in CELLS]) / arrivals.total()
    assert np.abs(share - 1 / 9).max() < 0.02


def test_time_limit_truncates_and_the_last_door_terminates() -> None:
    env = PortalEnv(rooms=1)
    env.reset(seed=0)
    side = Move.UP if env._position[1] > 1 else Move.DOWN
    back = Move.DOWN if side is Move.UP else Move.UP
    env._looks = [env._looks[0]._replace(places=((0, 2), (4, 2)))]
    env._position, env._rights = (2, 1), [0]
    ends = [env.step(np.int64(move))[2:4] for move in ([Move.DOWN, Move.UP] * 5)]
    assert ends == [(False, False)] * 10
    assert env.step(np.int64(back))[2:4] == (False, True)
    env.reset(seed=0)
    env._looks = [env._looks[0]._replace(places=((0, 2), (4, 2)))]
    env._position, env._rights = (1, 2), [0]
    for move in [Move.DOWN, Move.UP] * 5:
        env.step(np.int64(move))
    assert env.step(np.int64(Move.LEFT))[2:4] == (True, False), "a door in the last step is an end, not a cut"


def test_declared_horizon_is_what_a_perfect_memory_meets() -> None:
    """Steps from the sight of an opened door to the choice in the same room, over many episodes."""
    for rooms in (1, 3):
        env = PortalEnv(rooms=rooms)
        fewest, most = env.correlation_horizon
        seen = set()
        for seed in range(1_500):
            _, info = env.reset(seed=seed)
            sights: dict[int, int] = {}
            for step in itertools.count(1):
                room, doorway = env._room, env._doorway
                if doorway is not None:
                    sights[room] = step - 1
                _, _, terminated, _, info = env.step(info["oracle_action"])
                if doorway is None and env._doorway is not None and room in sights:
                    seen.add(step - 1 - sights[room])
                if terminated:
                    break
        assert min(seen) == fewest
        assert max(seen) <= most
        assert rooms > 1 or max(seen) == most
    assert PortalRules(rooms=50).correlation_horizon == (1, 299)


@settings(max_examples=40)
@given(arguments=SIZES, seed=st.integers(0, 2**31))
def test_no_two_rooms_of_an_episode_look_alike_unless_asked(arguments: dict[str, Any], seed: int) -> None:
    rules = PortalRules(**arguments)
    drawn = rules.draw(np.random.default_rng(seed))
    assert drawn.look_ER.shape == drawn.right_ER.shape == (CHUNK, rules.rooms)
    assert drawn.look_ER.min() >= 0 and drawn.look_ER.max() < rules.num_looks
    for looks in drawn.look_ER.tolist():
        assert len(set(looks)) == (1 if rules.alike else rules.rooms)


def test_all_looks_differ() -> None:
    for num_colors in (2, 4):
        rules = PortalRules(num_colors=num_colors)
        looks = {rules.look(number) for number in range(rules.num_looks)}
        assert len(looks) == rules.num_looks == 66 * num_colors * (num_colors - 1)
        for look in looks:
            assert look.colors[0] != look.colors[1]
            assert max(look.colors) < num_colors
            assert {*look.places} <= {*PLACES}


@pytest.mark.parametrize("below", [5, 30])
def test_distinct_numbers_are_drawn_evenly(below: int) -> None:
    """Every sequence, on both ways to draw them."""
    rows = draw_distinct(np.random.default_rng(0), 120_000, 2, below)
    counts = np.zeros((below, below))
    np.add.at(counts, (rows[:, 0], rows[:, 1]), 1)
    assert np.diag(counts).sum() == 0
    off = counts[~np.eye(below, dtype=bool)]
    expected = len(rows) / len(off)
    assert np.abs(off - expected).max() < 5 * np.sqrt(expected)


def test_right_doors_are_drawn_evenly_whatever_the_look_and_the_room() -> None:
    rules = PortalRules(rooms=10, num_colors=2)
    rng = np.random.default_rng(0)
    chunks = [rules.draw(rng) for _ in range(300)]
    right_ER = np.concatenate([chunk.right_ER for chunk in chunks])
    look_ER = np.concatenate([chunk.look_ER for chunk in chunks])
    assert np.abs(right_ER.mean(axis=0) - 0.5).max() < 0.02
    times = np.bincount(look_ER.ravel(), minlength=rules.num_looks)
    share = np.bincount(look_ER.ravel(), weights=right_ER.ravel()) / times
    assert np.abs(share - 0.5).max() < 0.07
    assert np.abs(np.corrcoef(right_ER.T) - np.eye(10)).max() < 0.04


@pytest.mark.parametrize(("rooms", "time_limit"), [(1, 11), (2, 12), (3, 20)])
def test_the_guessing_bound_is_what_guessing_gives(rooms: int, time_limit: int) -> None:
    """The computed probabilities against a simulation of a fair coin and the way to the nearer door."""
    rng = np.random.default_rng(0)
    costs = [min(steps_to_door(cell, place) for place in pair) for pair in PLACE_PAIRS for cell in CELLS]
    trials = 20_000
    costs_drawn = rng.choice(costs, size=(trials, time_limit)).tolist()
    coins = (rng.random((trials, time_limit)) < 0.5).tolist()
    outcomes = np.zeros((trials, 2))
    for trial in range(trials):
        time = room = best = 0
        for cost, right in zip(costs_drawn[trial], coins[trial], strict=True):
            time += cost
            if time > time_limit or room == rooms:
                break
            room = room + 1 if right else 0
            best = max(best, room)
            time += 1
        outcomes[trial] = room == rooms, best
    np.testing.assert_allclose(outcomes.mean(axis=0), guess_rooms(rooms, time_limit), atol=0.02)


@pytest.mark.parametrize("view_size", [3, 5, 9])
def test_a_partial_view_is_centred_on_the_agent(view_size: int) -> None:
    whole, partial = PortalEnv(), PortalEnv(view_size=view_size)
    whole.reset(seed=2)
    partial.reset(seed=2)
    radius = view_size // 2
    rng = np.random.default_rng(0)
    for _ in range(100):
        action = rng.integers(4)
        frame, *_, cut, _ = whole.step(action)
        view, *_ = partial.step(action)
        if whole._doorway is None:
            frame[whole._position] = (OBJECT_TO_IDX["empty"], 0, 0)
        padded = np.empty((5 + 2 * radius, 5 + 2 * radius, 3), dtype=np.uint8)
        padded[:] = frame[0, 0]
        padded[radius:-radius, radius:-radius] = frame
        x, y = whole._position
        np.testing.assert_array_equal(view, padded[x : x + view_size, y : y + view_size])
        if cut:
            whole.reset()
            partial.reset()


def test_the_oracle_never_turns_round() -> None:
    """Each of its moves brings it nearer to the door it goes to, the nearer one if it does not know."""
    look = PortalRules().look(0)
    for pair in PLACE_PAIRS:
        look = look._replace(places=pair)
        for start in CELLS:
            for right, knows in itertools.product((0, 1), (False, True)):
                cell, steps = start, 0
                while cell in CELLS:
                    dx, dy = STEPS[oracle_action(cell, look, right, knows=knows)]
                    cell, steps = (cell[0] + dx, cell[1] + dy), steps + 1
                goals = pair[right : right + 1] if knows else pair
                assert cell in goals
                assert steps == min(steps_to_door(start, goal) for goal in goals)


def test_pictures_match_the_reference_and_show_what_happens() -> None:
    batch = PortalVectorEnv(2, render_mode="rgb_array")
    singles = [PortalEnv(render_mode="rgb_array") for _ in range(2)]
    _, infos = batch.reset(seed=4)
    for index, single in enumerate(singles):
        single.reset(seed=4 + index)
    pictures = set()
    for _ in range(12):
        rendered = batch.render()
        assert rendered is not None
        for single, mine in zip(singles, rendered, strict=True):
            np.testing.assert_array_equal(mine, single.render())
        pictures.add(rendered[0].tobytes())
        actions = infos["oracle_action"]
        for single, action in zip(singles, actions, strict=True):
            single.step(action)
        infos = batch.step(actions)[-1]
    assert len(pictures) == 12


def test_the_bar_shows_the_way_through_the_rooms() -> None:
    env = PortalEnv(rooms=5, render_mode="rgb_array")
    env.reset(seed=0)
    env.place(env._looks, env._rights, 1, (1, 1), passed=3)
    picture = env.render()
    assert picture is not None
    width = picture.shape[1]
    colors = [tuple(picture[0, width * (2 * room + 1) // 10].tolist()) for room in range(5)]
    green, white, grey = (60, 160, 60), (230, 230, 230), (70, 70, 70)
    assert colors == [green, white, green, grey, grey]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"rooms": 0}, "rooms must be at least 1"),
        ({"rooms": -3}, "rooms must be at least 1"),
        ({"rooms": 2.0}, "rooms must be a whole number"),
        ({"rooms": 133, "num_colors": 2}, "rooms must be at most 132"),
        ({"num_colors": 1}, "num_colors must lie between 2, the number of doors in a room, and 6"),
        ({"num_colors": 7}, "num_colors"),
        ({"view_size": 4}, "view_size must be odd"),
        ({"view_size": 1}, "view_size must be odd and between 3 and 9"),
        ({"view_size": 11}, "view_size"),
        ({"view_size": "whole"}, "view_size must be a whole number"),
        ({"time_limit_factor": 0}, "time_limit_factor"),
        ({"sparse": 1}, "sparse must be True or False"),
        ({"observable": "yes"}, "observable must be True or False"),
        ({"render_mode": "ascii"}, "render_mode"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PortalEnv(**arguments)
    with pytest.raises(ValueError, match=named):
        PortalVectorEnv(2, **arguments)


def test_many_rooms_that_look_alike() -> None:
    env = PortalEnv(rooms=200, num_colors=2, alike=True)
    env.reset(seed=0)
    assert len(set(env._looks)) == 1
