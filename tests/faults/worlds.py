"""Environments under any sequence of calls, and what can be had from them with a memory and without."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from memory_suite.envs.grid_world import Move
from tests.envs.same import assert_same
from tests.envs.test_contract import (
    batched,
    corridor_guesses,
    num_actions,
    plain,
    portal_guesses,
    returns,
    skilled,
)
from tests.faults.harness import Figure

POINTS = 0.02
"""how far from chance an agent without memory may be"""
CLEAR = 0.95
"""how often what stays visible is told right at least"""
ENOUGH_CONTROLS = 100
"""of such trials"""
ENOUGH_EPISODES = 4
"""that an observation must have been in before a table claims to know what goes with it"""
FEWER_LOOKS: dict[str, dict[str, Any]] = {"portal": {"num_colors": 2}}
"""so that the same is seen in many episodes"""
SURE = 0.9
"""share of these with the same answer"""


def twins(name: str) -> type[RuleBasedStateMachine]:
    """The batched twin and copies of the reference say the same, whatever hypothesis does to them."""

    class Twins(RuleBasedStateMachine):
        NUM_ENVS = 3

        @initialize(seed=st.integers(0, 2**31))
        def begin(self, seed: int) -> None:
            self.batch: Any = batched(name, self.NUM_ENVS).unwrapped
            self.copies = SyncVectorEnv(
                [partial(plain, name)] * self.NUM_ENVS, autoreset_mode=AutoresetMode.SAME_STEP
            )
            self.compare(self.batch.reset(seed=seed), self.copies.reset(seed=seed))

        @rule(steps=st.integers(1, 80), skill=st.sampled_from([0.0, 0.5, 0.9, 1.0]), seed=st.integers(0, 99))
        def play(self, steps: int, skill: float, seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(steps):
                actions = skilled(self.oracle, skill, num_actions(self.batch), rng)
                self.compare(self.batch.step(actions), self.copies.step(actions))

        @rule(
            mask=st.lists(st.booleans(), min_size=NUM_ENVS, max_size=NUM_ENVS).filter(any),
            seeds=st.none() | st.lists(st.none() | st.integers(0, 99), min_size=NUM_ENVS, max_size=NUM_ENVS),
        )
        def reset_some(self, mask: list[bool], seeds: list[int | None] | None) -> None:
            mine, theirs = (
                env.reset(seed=seeds, options={"reset_mask": np.array(mask)})
                for env in (self.batch, self.copies)
            )
            kept = np.where(mask, mine[-1]["oracle_action"], self.oracle)
            self.compare(mine, theirs)
            self.oracle = kept

        @rule()
        def save_and_restore(self) -> None:
            state = copy.deepcopy(self.batch.state_dict())
            self.batch = batched(name, self.NUM_ENVS).unwrapped
            self.batch.load_state_dict(state)

        @rule()
        def copy_both(self) -> None:
            self.batch, self.copies = copy.deepcopy(self.batch), copy.deepcopy(self.copies)

        @rule(action=st.sampled_from([-1, 99]), index=st.integers(0, NUM_ENVS - 1))
        def ask_the_impossible(self, action: int, index: int) -> None:
            """It is refused, and nothing has happened."""
            actions = np.zeros(self.NUM_ENVS, dtype=np.int64)
            actions[index] = action
            with pytest.raises(ValueError, match="action"):
                self.batch.step(actions)

        def compare(self, mine: Any, theirs: Any) -> None:
            assert_same(mine, theirs)
            self.oracle = mine[-1]["oracle_action"]

    return Twins


def do_anything(name: str, sequences: int) -> None:
    """Play so many sequences of calls; the first that separates the twins is an error that lists it."""
    run_state_machine_as_test(
        twins(name),
        settings=settings(
            max_examples=sequences,
            stateful_step_count=15,
            phases=[Phase.generate],  # to make a failure smaller takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


def oracle_solves(name: str, seeds: int) -> Figure:
    """Good: seeds whose first episode a perfect memory plays to the highest return."""
    batch = batched(name, seeds)
    total, success = returns(batch, lambda _, info: info["oracle_action"], seed=0)
    most: float = batch.unwrapped.max_return  # type: ignore[attr-defined]
    return Figure(
        what=f"{name}: seeds that remembering solves",
        good=int((success & np.isclose(total, most)).sum()),
        of=seeds,
    )


def guessing(name: str, trials: int) -> Figure:
    """Good: 1 if an agent that guesses is right as often as chance says, within two points."""
    measure = {"corridor": _guess_doors, "portal": _guess_rooms, "instruction": _guess_messages}
    right, chance = measure[name.split("-")[0]](name, trials)
    return Figure(
        what=f"{name}: guessing is right as often as chance is, within {POINTS:g}",
        good=int(abs(right - chance) <= POINTS),
        of=1,
        remarks=f"{right:.3f} of {trials:,}, chance {chance:.3f}",
    )


def _guess_doors(name: str, trials: int) -> tuple[float, float]:
    """Walk to the doors and take either."""
    _, chance, _ = corridor_guesses()
    return _first_episodes(name, trials, lambda observation, info, rng: chance(observation, rng))


def _guess_messages(name: str, trials: int) -> tuple[float, float]:
    """Say any message whenever somebody is met, which the text tells."""

    def policy(observation: Any, info: Any, rng: np.random.Generator) -> Any:
        said = rng.integers(1, messages + 1, size=len(observation))
        return np.where(info["oracle_action"] > 0, said, 0)

    messages = num_actions(batched(name, 1)) - 1
    return _first_episodes(name, trials, policy)


def _first_episodes(name: str, trials: int, policy: Any) -> tuple[float, float]:
    """Mean return of so many episodes, and what the environment states for agents without memory."""
    batch = batched(name, 1_000)
    rng = np.random.default_rng(0)
    totals: list[float] = []
    while len(totals) < trials:
        first = 1_000 * len(totals)
        totals += returns(batch, lambda seen, info: policy(seen, info, rng), seed=first)[0].tolist()
    return float(np.mean(totals)), batch.unwrapped.memory_free_return  # type: ignore[attr-defined]


def _guess_rooms(name: str, trials: int) -> tuple[float, float]:
    """Go to the nearer door, and count only doors of rooms that were never tried before."""
    nearer = portal_guesses()[0]
    batch: Any = batched(name, 500).unwrapped
    rng = np.random.default_rng(0)
    observation, _ = batch.reset(seed=0)
    tried = right = 0
    while tried < trials:
        known, passed, inside = batch._known.copy(), batch._passed.copy(), batch._room < batch.rules.rooms - 1
        observation, _, terminated, truncated, _ = batch.step(nearer(observation, rng))
        first = inside & ~terminated & ~truncated & (batch._known > known)  # the last room ends the episode
        tried += int(first.sum())
        right += int((first & (batch._passed > passed)).sum())
    return right / tried, 0.5


def nothing_visible(name: str, steps: int, num_envs: int = 250) -> Figure:
    """Tell from single observations what had to be remembered.

    A table of the observations that went with one answer only is made from one half of the environments and
    read in the other, whose players walk about without memory.

    Returns:
        Good: 1 if it is as bad as chance, within two points and what so few trials leave open, and right
        where the environment keeps the answer in sight; without that the table would prove nothing.
    """
    told, trials, choices, seen = _told_by_a_table(name, steps, num_envs, observable=False)
    control, clear, _, _ = _told_by_a_table(name, steps, num_envs, observable=True)
    chance = 1.0 / choices
    spread = (chance * (1.0 - chance) / max(trials, 1)) ** 0.5
    holds = told <= chance + POINTS + 4.0 * spread and control > CLEAR and clear >= ENOUGH_CONTROLS
    return Figure(
        what=f"{name}: nothing seen later tells what to remember",
        good=int(holds),
        of=1,
        remarks=f"a table knows {trials:,} of {seen:,} and is right in {told:.2f}, chance {chance:.2f}; "
        f"if kept in sight {clear:,} and {control:.2f}",
    )


def _told_by_a_table(
    name: str, steps: int, num_envs: int, *, observable: bool
) -> tuple[float, int, int, int]:
    """Share told right, how often the table knew, how many answers there are, and observations asked about.

    What an episode shows several times counts once.
    """
    family = name.split("-")[0]
    batch: Any = batched(name, num_envs, observable=observable, **FEWER_LOOKS.get(family, {})).unwrapped
    rng = np.random.default_rng(0)
    table: dict[bytes, Counter[int]] = {}
    asked: set[tuple[int, int, bytes, int]] = set()
    counted: set[tuple[int, int, bytes, int]] = set()
    episode = np.zeros(num_envs, dtype=np.int64)
    observation, info = batch.reset(seed=0)
    for _ in range(-(-steps // num_envs)):
        secret = _secret(batch, info)
        for index in np.flatnonzero((secret >= 0) & (~info["cue"] | observable)).tolist():
            shown = (index, int(episode[index]), observation[index].tobytes(), int(secret[index]))
            if index % 2:
                asked.add(shown)
            elif shown not in counted:
                counted.add(shown)
                table.setdefault(shown[2], Counter())[shown[3]] += 1
        actions = rng.integers(num_actions(batch), size=num_envs)
        ahead = rng.random(num_envs) < 0.5 * (family == "corridor")  # or nobody would see its end
        observation, _, terminated, truncated, info = batch.step(np.where(ahead, int(Move.RIGHT), actions))
        episode += terminated | truncated
    known: dict[bytes, int] = {}
    for key, answers in table.items():
        answer, times = answers.most_common(1)[0]
        if answers.total() >= ENOUGH_EPISODES and times >= SURE * answers.total():
            known[key] = answer
    right = [known[key] == answer for _, _, key, answer in asked if key in known]
    choices = {answer for answers in table.values() for answer in answers}
    return float(np.mean(right)) if right else 0.0, len(right), len(choices), len(asked)


def _secret(batch: Any, info: dict[str, Any]) -> np.ndarray:
    """What each environment wants to be remembered now; -1: nothing."""
    match type(batch).__name__:
        case "CorridorVectorEnv":
            secret: np.ndarray = batch._combination // batch._num_orders
        case "PortalVectorEnv":
            secret = batch._kind & 1
        case _:
            secret = info["oracle_action"] - 1
    return secret
