"""Exact counterfactuals: the same episode with a memory removed, exchanged or inserted.

The record of an episode contains every memory, so the state of the memory before any step can be rebuilt and
edited. A probe compares what the policy does with it to the record, in two ways.

*The decision*: the recorded actions are replayed up to a decision, so that all observations are the same. Any
difference in the decision is caused by the memory. A memory without effect changes exactly nothing.

*The return*: from the edit on, the policy acts by itself, with the same random numbers at the same steps.

    record = record_episode(model, env, seed=7)
    probe = Probe(model, env, record)
    for effect in probe.sweep():
        print(effect.births, effect.change)

An important memory may have a copy: an agent that stands still beside the ball remembers it twice, and
dropping one of two equal memories changes almost nothing. Therefore `sweep` ranks single memories, and
`together` drops all cues at once.

A row of the batch (B) is one edit, row 0 the episode without an edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.agents.episodes.recorder import PROBABILITIES, Agent, EpisodePlayer, choices_of
from memory_suite.agents.model.store.base import Store
from memory_suite.agents.model.store.rows import NEVER, RowStore
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.policy import MemoryPolicy

Content = list[NDArray[np.float32]]
"""h_i of one memory, per layer"""
ROUNDING = 1e-6
"""largest change of a decision that rounding can cause"""
NAMED = 10
"""largest number of retained memories that a message lists"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Changes to the memory before one step."""

    drop: tuple[int, ...] = ()
    """births of the memories to remove"""
    replace: dict[int, Content] = field(default_factory=dict)
    """new contents of memories, by birth; their ages stay"""
    insert: dict[int, Content] = field(default_factory=dict)
    """contents of additional memories, by the step at which they are to have been written"""
    layer: int | None = None
    """layer to edit, from 1; None: all layers"""

    @property
    def births(self) -> tuple[int, ...]:
        """Births of the edited memories."""
        return tuple(sorted({*self.drop, *self.replace, *self.insert}))


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """The effect of an edit."""

    births: tuple[int, ...]
    """births of the edited memories"""
    is_cue: bool
    """whether all of them are of cues"""
    edited_at: int
    """step before which the memory was edited"""
    decided_at: int
    """step whose decision is compared"""
    change: float
    """total variation between the distributions of actions at the decision, 0 to 1 (the maximum over several
    choices; for a Box, between the Gaussians before clipping)"""
    choice_before: list[float]
    """parameters of the distribution of actions, as in the record"""
    choice_after: list[float]
    value_before: float
    value_after: float
    turned: bool
    """whether the most likely action is another one"""
    return_before: float | None = None
    """return of the recorded episode; None if returns were not requested"""
    return_after: float | None = None

    @property
    def value_change(self) -> float:
        """Change of the critic's value."""
        return self.value_after - self.value_before


class Probe:
    """Counterfactuals of one recorded episode."""

    def __init__(self, agent: Agent, env: gym.Env[Any, Any], record: EpisodeRecord) -> None:
        """Replay the episode, to collect its observations.

        Args:
            agent: the model or policy that played the episode.
            env: a copy of the environment in which it was played.
            record: record of the episode, with the contents of memories.

        Raises:
            ValueError: the record has no contents, or `env` does not reproduce the episode.
        """
        self.policy = agent if isinstance(agent, MemoryPolicy) else agent.policy
        self.env = env
        self.record = record
        if not record.layers:
            raise ValueError("the agent has no memory that could be changed")
        if any(layer.retention.compresses for layer in self.policy.transformer.layers):
            raise ValueError(
                "memories that stand for several others (compressive) cannot be changed one by one"
            )
        if any(layer.content_MD is None for layer in record.layers):
            raise ValueError("the record does not hold what the memories contain; record with contents=True")
        self._observations, self._rewards = self._replayed_observations()
        if not np.array_equal(self._rewards, record.reward_T):
            raise ValueError("this environment does not play the recorded episode: the rewards differ")

    # -- moments ---------------------------------------------------------------------------------

    @property
    def decision(self) -> int:
        """The last step that was rewarded; without any reward, the last step."""
        rewarded = np.flatnonzero(self.record.reward_T)
        return int(rewarded[-1]) if len(rewarded) else self.record.num_steps - 1

    @property
    def moment(self) -> int:
        """The step halfway between the last cue (without cues: the start) and the decision."""
        cues = np.flatnonzero(self.record.cue_T[: self.decision])
        after = int(cues[-1]) + 1 if len(cues) else 0
        return (after + self.decision) // 2

    def cues(self, at: int | None = None) -> tuple[int, ...]:
        """Births of the memories of cues that step `at` (None: `moment`) sees."""
        return tuple(
            birth for birth in self.retained(self.moment if at is None else at) if self._is_cue(birth)
        )

    def retained(self, step: int) -> tuple[int, ...]:
        """Births of the memories that a step sees in any layer."""
        births = [layer.at(step).birth for layer in self.record.layers]
        return tuple(sorted({int(birth) for birth in np.concatenate(births)}))

    def content(self, birth: int) -> Content:
        """Content of a memory of this episode."""
        return content_of(self.record, birth)

    # -- questions --------------------------------------------------------------------------------

    def ask(
        self,
        edits: Sequence[Edit],
        *,
        at: int | None = None,
        decision: int | None = None,
        returns: bool = True,
        watch: Callable[[int, int], None] = lambda answered, asked: None,
    ) -> list[Effect]:
        """The effect of each edit by itself.

        Args:
            edits: the edits.
            at: step before which the memory is edited; None: `moment`.
            decision: step whose decision is compared; None: `Probe.decision`.
            returns: also continue the episode, for the return.
            watch: called at the start and after each edit, with the number of finished edits and of all.

        Raises:
            ValueError: a step is outside the episode, or an edited memory is not retained at that step.
        """
        decision = self.decision if decision is None else decision
        at = min(self.moment, decision) if at is None else at
        if not 0 <= at <= decision < self.record.num_steps:
            raise ValueError(
                f"the change (step {at}) must not come after the decision (step {decision}), and both must "
                f"lie between 0 and {self.record.num_steps - 1}"
            )
        for edit in edits:
            self._check(edit, at)
        watch(0, len(edits))
        choices, values = self._decide([Edit(), *edits], at, decision)
        effects: list[Effect] = []
        for edit, choice, value in zip(edits, choices[1:], values[1:], strict=True):
            effects.append(
                Effect(
                    births=edit.births,
                    is_cue=bool(edit.births) and all(self._is_cue(birth) for birth in edit.births),
                    edited_at=at,
                    decided_at=decision,
                    change=self._distance(choices[0], choice),
                    choice_before=choices[0].tolist(),
                    choice_after=choice.tolist(),
                    value_before=float(values[0]),
                    value_after=float(value),
                    turned=bool(self._favorite(choice) != self._favorite(choices[0])),
                    return_before=float(self.record.facts["return"]) if returns else None,
                    return_after=self.play_on(edit, at) if returns else None,
                )
            )
            watch(len(effects), len(edits))
        return effects

    def sweep(
        self,
        *,
        at: int | None = None,
        decision: int | None = None,
        returns: bool = True,
        watch: Callable[[int, int], None] = lambda answered, asked: None,
    ) -> list[Effect]:
        """Effects of dropping each retained memory, sorted by change of the decision, largest first."""
        decision = self.decision if decision is None else decision
        at = min(self.moment, decision) if at is None else at
        edits = [Edit(drop=(birth,)) for birth in self.retained(at)]
        effects = self.ask(edits, at=at, decision=decision, returns=returns, watch=watch)
        return sorted(effects, key=lambda e: (e.change, abs(e.value_change)), reverse=True)

    def together(
        self, *, at: int | None = None, decision: int | None = None, returns: bool = True
    ) -> Effect | None:
        """Effect of dropping all retained cues at once; None if there are none."""
        decision = self.decision if decision is None else decision
        at = min(self.moment, decision) if at is None else at
        cues = self.cues(at)
        if not cues:
            return None
        return self.ask([Edit(drop=cues)], at=at, decision=decision, returns=returns)[0]

    def play_on(self, edit: Edit, at: int) -> float:
        """The return if the memory is edited before step `at` and the policy acts by itself from there."""
        player = EpisodePlayer(
            self.policy,
            self.env,
            seed=int(self.record.facts["seed"]),
            deterministic=bool(self.record.facts["deterministic"]),
        )
        for step in range(at):
            player.act(self.record.action_T[step])
        player.state = self.state_before(at, [edit])
        while not player.over and player.step < self._most_steps:
            _, action = player.decide()
            player.act(action)
        return player.episode_return

    @property
    def _most_steps(self) -> int | float:
        """Largest number of steps to play: a recording that was cut short is not continued."""
        facts = self.record.facts
        return np.inf if facts["terminated"] or facts["truncated"] else self.record.num_steps

    # -- inside -----------------------------------------------------------------------------------

    def state_before(self, step: int, edits: Sequence[Edit]) -> MemoryState:
        """The memory before a step, one row per edit, with the edit applied."""
        device = self.policy.device
        layers: list[Store] = []
        for number, layer in enumerate(self.record.layers, start=1):
            seen = layer.at(step)
            assert layer.content_MD is not None
            hidden = torch.as_tensor(layer.content_MD[seen.memory])
            birth = torch.as_tensor(seen.birth.astype(np.int64))
            extra = max([len(edit.insert) for edit in edits], default=0)
            hidden_BWD = torch.cat([hidden, hidden.new_zeros(extra, layer.content_MD.shape[1])]).repeat(
                len(edits), 1, 1
            )
            birth_BW = torch.cat([birth, birth.new_full((extra,), NEVER)]).repeat(len(edits), 1)
            slot_of = {int(each): slot for slot, each in enumerate(seen.birth)}
            for row, edit in enumerate(edits):
                if edit.layer not in (None, number):
                    continue
                for gone in edit.drop:
                    if gone in slot_of:
                        birth_BW[row, slot_of[gone]] = NEVER
                for changed, content in edit.replace.items():
                    if changed in slot_of:
                        hidden_BWD[row, slot_of[changed]] = torch.as_tensor(content[number - 1])
                for slot, (new, content) in enumerate(edit.insert.items(), start=len(seen.birth)):
                    hidden_BWD[row, slot] = torch.as_tensor(content[number - 1])
                    birth_BW[row, slot] = new
            tag_BW = torch.zeros_like(birth_BW)
            pooled_BW = torch.zeros_like(birth_BW, dtype=torch.bool)
            store = RowStore(hidden_BWD, birth_BW, tag_BW, pooled_BW)
            layers.append(store.map(lambda part: part.to(device)))
        clock_B = torch.full((len(edits),), step, dtype=torch.long, device=device)
        return MemoryState(clock_B, layers)

    def _decide(
        self, edits: Sequence[Edit], at: int, decision: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Choice and value at the decision, one row per edit; recorded actions are replayed."""
        policy = self.policy
        state = self.state_before(at, edits)
        episode_start_B = torch.full((len(edits),), at == 0, device=policy.device)
        with policy.watching():
            for step in range(at, decision + 1):
                tensor, _ = policy.obs_to_tensor(_repeated(self._observations[step], len(edits)))
                features = policy.encoder.preprocess(tensor)
                policy_step = policy.act(features, state, episode_start_B, deterministic=True)
                state, episode_start_B = policy_step.state, torch.zeros_like(episode_start_B)
        return choices_of(policy_step.distribution)[1], policy_step.values_B.cpu().numpy()

    def _replayed_observations(self) -> tuple[list[Any], NDArray[np.float32]]:
        """Observations and rewards of each step, from replaying the recorded actions."""
        observation, _ = self.env.reset(seed=int(self.record.facts["seed"]))
        observations, rewards = [deepcopy(observation)], []
        for action in self.record.action_T:
            observation, reward, *_ = self.env.step(action)
            observations.append(deepcopy(observation))  # environments may reuse the array
            rewards.append(float(reward))
        return observations, np.array(rewards, dtype=np.float32)

    def _check(self, edit: Edit, at: int) -> None:
        there = set(self.retained(at))
        for birth in (*edit.drop, *edit.replace):
            if birth not in there:
                named = ", ".join(map(str, sorted(there)[:NAMED])) or "none"
                rest = f", ... ({len(there)} in all)" if len(there) > NAMED else ""
                raise ValueError(
                    f"the memory of step {birth} is not retained at step {at}; retained are {named}{rest}"
                )
        for birth in edit.insert:
            if not 0 <= birth < max(at, 1):
                raise ValueError(f"a memory inserted before step {at} must be older than it, got {birth}")
        if edit.layer is not None and not 1 <= edit.layer <= len(self.record.layers):
            raise ValueError(f"layer must lie between 1 and {len(self.record.layers)}, got {edit.layer}")

    def _is_cue(self, birth: int) -> bool:
        return bool(self.record.cue_T[birth])

    def _distance(self, before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
        if self.record.facts["choice"] == PROBABILITIES:
            changes = np.abs(after - before)
            parts = np.split(changes, np.cumsum(self._choice_sizes())[:-1])
            return float(max(0.5 * part.sum() if len(part) > 1 else part.sum() for part in parts))
        # A policy's deviations do not depend on its input, so only the means differ. Along the line between
        # them these are two normal distributions with deviation 1.
        size = len(before) // 2
        distance = np.linalg.norm((after[:size] - before[:size]) / before[size:])
        return math.erf(float(distance) / (2.0 * math.sqrt(2.0)))

    def _favorite(self, choice: NDArray[np.float32]) -> tuple[int, ...]:
        """The most likely action."""
        if self.record.facts["choice"] != PROBABILITIES:
            return tuple(np.sign(choice[: len(choice) // 2]).astype(int).tolist())
        parts = np.split(choice, np.cumsum(self._choice_sizes())[:-1])
        return tuple(int(part.argmax()) if len(part) > 1 else int(part[0] > 0.5) for part in parts)

    def _choice_sizes(self) -> list[int]:
        """Number of probabilities of each choice: all for Discrete, one each for MultiBinary."""
        space: Any = self.policy.action_space
        if hasattr(space, "nvec"):
            return [int(size) for size in space.nvec.reshape(-1)]
        if isinstance(space, gym.spaces.MultiBinary):
            return [1] * int(np.prod(space.shape))
        return [int(space.n)]


def content_of(record: EpisodeRecord, birth: int) -> Content:
    """Content of a memory, per layer.

    Raises:
        ValueError: the episode has no such step, or the record has no contents.
    """
    if not 0 <= birth < record.num_steps:
        raise ValueError(f"the episode has the steps 0 to {record.num_steps - 1}, but no step {birth}")
    contents: Content = []
    for layer in record.layers:
        if layer.content_MD is None:
            raise ValueError("the record does not hold what the memories contain; record with contents=True")
        contents.append(layer.content_MD[birth])
    return contents


def exchange(
    record: EpisodeRecord, births: Sequence[int], donor: EpisodeRecord, donors: Sequence[int]
) -> Edit:
    """Replace contents of memories by those of other memories, paired from the last backwards.

    If there are fewer donors, the first of them is reused; if there are more, the first are ignored.

    Raises:
        ValueError: nothing to pair, or the memories are of another shape.
    """
    if not births or not donors:
        raise ValueError("an exchange needs memories on both sides")
    pairs = {}
    for back, birth in enumerate(reversed(births)):
        content = content_of(donor, donors[max(len(donors) - 1 - back, 0)])
        _check_shape(record, content)
        pairs[birth] = content
    return Edit(replace=pairs)


def insertion(record: EpisodeRecord, birth: int, donor: EpisodeRecord, donor_birth: int) -> Edit:
    """Insert a memory of another episode, as if written at step `birth`.

    Raises:
        ValueError: the memory is of another shape.
    """
    content = content_of(donor, donor_birth)
    _check_shape(record, content)
    return Edit(insert={birth: content})


def _check_shape(record: EpisodeRecord, content: Content) -> None:
    ours, theirs = [part.shape for part in content_of(record, 0)], [part.shape for part in content]
    if ours != theirs:
        raise ValueError(f"memories of the shapes {theirs} do not fit into those of this agent, {ours}")


def _repeated(observation: Any, count: int) -> Any:
    if isinstance(observation, dict):
        return {name: np.stack([np.asarray(part)] * count) for name, part in observation.items()}
    return np.stack([np.asarray(observation)] * count)
