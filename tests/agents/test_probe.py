"""Exact counterfactuals: against the same episode played with its live memory edited by hand."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite import MemoryPPO
from memory_suite.agents.episodes.probe import Edit, Effect, Probe, content_of, exchange, insertion
from memory_suite.agents.episodes.recorder import EpisodePlayer, choices_of, record_episode
from memory_suite.agents.model.store.rows import NEVER
from tests.agents.small_envs import AnySpace
from tests.agents.test_recorder import lively_model


def corridor() -> gym.Env[Any, Any]:
    return gym.make("MemorySuite/CorridorShort-v0", length=12)


@pytest.fixture(scope="module")
def model() -> MemoryPPO:
    made = lively_model(corridor(), seed=0)
    torch.nn.init.orthogonal_(made.policy.action_net.weight, 2.0)  # a policy that is not uniform
    torch.nn.init.normal_(made.policy.value_net.weight)
    for layer in made.policy.transformer.layers:
        torch.nn.init.orthogonal_(layer.attention_out.weight, 4.0)  # and that hangs on what it remembers
    return made


@pytest.fixture(scope="module")
def probe(model: MemoryPPO) -> Probe:
    record = record_episode(model, corridor(), seed=3, max_steps=40)
    assert record.num_steps >= 30
    return Probe(model, corridor(), record)


def by_hand(model: MemoryPPO, probe: Probe, at: int, decision: int, change: Any) -> tuple[Any, float]:
    """Play the recorded actions with a live memory, let `change` edit it, look at the decision."""
    player = EpisodePlayer(model, corridor(), seed=3)
    for step in range(decision + 1):
        if step == at:
            change(player.state)
        answer, _ = player.decide()
        if step < decision:
            player.act(probe.record.action_T[step])
    return choices_of(answer.distribution)[1][0], answer.values_B.item()


def check(effect: Effect, expected: tuple[Any, float], before: Any) -> None:
    choice, value = expected
    np.testing.assert_allclose(effect.choice_after, choice, atol=1e-5)
    assert effect.value_after == pytest.approx(value, abs=1e-3)
    assert effect.change == pytest.approx(0.5 * np.abs(choice - before).sum(), abs=1e-5)
    assert effect.turned == (choice.argmax() != before.argmax())


def test_without_a_change_the_episode_is_the_recorded_one(probe: Probe) -> None:
    record = probe.record
    for at in (0, 1, 7, 20):
        for decision in (at, 25, record.num_steps - 1):
            effect = probe.ask([Edit()], at=at, decision=decision)[0]
            np.testing.assert_allclose(effect.choice_before, record.choice_TA[decision], atol=1e-5)
            assert effect.value_before == pytest.approx(float(record.value_T[decision]), abs=1e-3)
            assert (effect.change, effect.turned) == (0.0, False)
            assert effect.return_before == effect.return_after == record.facts["return"]


def test_dropping_is_what_happens_by_hand(probe: Probe, model: MemoryPPO) -> None:
    changes = []
    for at, decision in ((10, 10), (10, 16), (20, 24)):
        before = probe.record.choice_TA[decision]
        for birth in probe.retained(at):

            def drop(state: Any, birth: int = birth) -> None:
                for layer in state.layers:
                    layer.birth_BT[layer.birth_BT == birth] = NEVER

            effect = probe.ask([Edit(drop=(birth,))], at=at, decision=decision, returns=False)[0]
            check(effect, by_hand(model, probe, at, decision, drop), before)
            assert effect.births == (birth,) and effect.is_cue == bool(probe.record.cue_T[birth])
            changes.append(effect.change)
    assert max(changes) > 3e-3 and len(changes) > 20


def test_one_layer_alone_can_be_changed(probe: Probe, model: MemoryPPO) -> None:
    birth = int(probe.record.layers[1].at(20).birth[0])

    def drop(state: Any) -> None:
        state.layers[1].birth_BT[state.layers[1].birth_BT == birth] = NEVER

    effect = probe.ask([Edit(drop=(birth,), layer=2)], at=20, decision=22, returns=False)[0]
    check(effect, by_hand(model, probe, 20, 22, drop), probe.record.choice_TA[22])


def test_exchanging_is_what_happens_by_hand(probe: Probe, model: MemoryPPO) -> None:
    donor = record_episode(model, corridor(), seed=8, max_steps=10)
    births = [probe.retained(20)[0], probe.retained(20)[-1]]
    edit = exchange(probe.record, births, donor, [4, 9])

    def replace(state: Any) -> None:
        for birth, donor_birth in zip(births, (4, 9), strict=True):
            contents = content_of(donor, donor_birth)
            for layer, content in zip(state.layers, contents, strict=True):
                layer.h_BTD[layer.birth_BT == birth] = torch.as_tensor(content)

    effect = probe.ask([edit], at=20, decision=23, returns=False)[0]
    check(effect, by_hand(model, probe, 20, 23, replace), probe.record.choice_TA[23])
    assert effect.change > 1e-4
    same = Edit(replace={births[0]: probe.content(births[0])})
    assert probe.ask([same], at=20, decision=23, returns=False)[0].change < 1e-6


def test_what_was_dropped_can_be_inserted_again(probe: Probe) -> None:
    compared = 0
    for birth in probe.retained(15):
        there = [int(birth in layer.at(15).birth) for layer in probe.record.layers]
        back = insertion(probe.record, birth, probe.record, birth).insert
        gone, restored = probe.ask(
            [Edit(drop=(birth,)), Edit(drop=(birth,), insert=back)], at=15, decision=15, returns=False
        )
        if sum(there) == 2:
            assert restored.change < 1e-5
            compared += gone.change > 1e-5
    assert compared


def test_pairs_are_made_from_the_last_backwards(probe: Probe) -> None:
    donor = probe.record
    few = exchange(donor, [1, 2, 3], donor, [7, 9]).replace
    assert all((few[b][0] == content_of(donor, d)[0]).all() for b, d in ((3, 9), (2, 7), (1, 7)))
    many = exchange(donor, [5], donor, [7, 8, 9]).replace
    assert (many[5][0] == content_of(donor, 9)[0]).all()


def test_a_sweep_asks_about_every_retained_memory_and_ranks_them(probe: Probe) -> None:
    effects = probe.sweep(at=18, decision=24)
    assert {effect.births for effect in effects} == {(birth,) for birth in probe.retained(18)}
    changes = [effect.change for effect in effects]
    assert changes == sorted(changes, reverse=True)
    alone = probe.ask([Edit(drop=effects[0].births)], at=18, decision=24)[0]
    assert alone.change == pytest.approx(effects[0].change, abs=1e-6)
    assert alone.return_after == effects[0].return_after


def test_moments_follow_from_cues_and_rewards(probe: Probe) -> None:
    record = probe.record
    assert probe.decision == record.num_steps - 1, "no reward: the last step"
    last_cue = int(np.flatnonzero(record.cue_T[: probe.decision])[-1])
    assert last_cue < probe.moment <= probe.decision
    reward = record.reward_T.copy()
    record.reward_T[20] = 1.0
    assert probe.decision == 20
    record.reward_T[:] = reward
    together = probe.together(at=2, returns=False)
    assert together is not None and together.births == probe.cues(2)
    assert set(together.births) == {b for b in probe.retained(2) if record.cue_T[b]}


def test_returns_are_those_of_playing_on(probe: Probe, model: MemoryPPO) -> None:
    edit = Edit(drop=probe.retained(12))
    player = EpisodePlayer(model, corridor(), seed=3)
    for step in range(probe.record.num_steps):
        if step == 12:
            for layer in player.state.layers:
                layer.birth_BT[:] = NEVER
        _, action = player.decide()
        player.act(probe.record.action_T[step] if step < 12 else action)
        if player.over:
            break
    assert probe.play_on(edit, 12) == player.episode_return


@pytest.mark.parametrize(
    "action_space",
    [spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.Box(-1.0, 1.0, (2,), np.float32)],
)
def test_any_action_space_can_be_asked(action_space: spaces.Space[Any]) -> None:
    def env() -> AnySpace:
        return AnySpace(spaces.Box(-1.0, 1.0, (3,), np.float32), action_space)

    made = lively_model(env(), seed=1)
    torch.nn.init.normal_(made.policy.action_net.weight)
    asked = Probe(made, env(), record_episode(made, env(), seed=1))
    effects = asked.sweep(at=5, decision=5)
    assert len(effects) >= 3 and effects[0].change > 0.0
    before, after = np.array(effects[0].choice_before), np.array(effects[0].choice_after)
    if isinstance(action_space, spaces.Box):
        assert before[2:] == pytest.approx(after[2:])
        draws = np.random.default_rng(0).normal(before[:2], before[2:], size=(200_000, 2))
        log_ratio = 0.5 * (((draws - before[:2]) / before[2:]) ** 2 - ((draws - after[:2]) / after[2:]) ** 2)
        sampled = np.maximum(0.0, 1.0 - np.exp(log_ratio.sum(1))).mean()
        assert effects[0].change == pytest.approx(sampled, abs=5e-3) and 0.01 < sampled < 1.0
    elif isinstance(action_space, spaces.MultiBinary):
        assert effects[0].change == pytest.approx(np.abs(after - before).max(), rel=1e-4)


def test_mistakes_are_refused(probe: Probe, model: MemoryPPO) -> None:
    with pytest.raises(ValueError, match="not retained at step 5"):
        probe.ask([Edit(drop=(9,))], at=5)
    there = probe.retained(20)
    assert len(there) > 10
    listed = f"{', '.join(map(str, there[:10]))}, ... ({len(there)} in all)"
    with pytest.raises(ValueError, match=re.escape(f"retained are {listed}") + "$"):
        probe.ask([Edit(drop=(29,))], at=20)
    with pytest.raises(ValueError, match="must not come after"):
        probe.ask([Edit()], at=9, decision=5)
    with pytest.raises(ValueError, match="older than it"):
        probe.ask([Edit(insert={9: probe.content(1)})], at=5)
    with pytest.raises(ValueError, match="between 1 and 2"):
        probe.ask([Edit(layer=3)], at=5)
    with pytest.raises(ValueError, match="no step 99"):
        content_of(probe.record, 99)
    with pytest.raises(ValueError, match="contents=True"):
        Probe(model, corridor(), record_episode(model, corridor(), seed=3, contents=False, max_steps=3))
    with pytest.raises(ValueError, match="both sides"):
        exchange(probe.record, [], probe.record, [1])
    other = lively_model(corridor(), width=32)
    with pytest.raises(ValueError, match="do not fit"):
        exchange(probe.record, [1], record_episode(other, corridor(), seed=0, max_steps=3), [1])
