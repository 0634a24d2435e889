"""The score of retention: by hand, and against a recount of the record of an episode."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from memory_suite import MemoryPPO
from memory_suite.agents.diagnostics.cue_retention import CueRetention, to_host
from memory_suite.agents.diagnostics.cue_tracker import info_numbers
from memory_suite.agents.episodes.recorder import record_episode
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.model.transformer import MemoryTransformer
from memory_suite.envs.vec_env import GymnasiumVecEnv
from memory_suite.runners.training.evaluation import evaluate
from tests.agents.test_recorder import lively_model


class Errands(gym.Env[np.ndarray, Any]):
    """Cues of several numbers, each used once or never, at random times; `length` steps."""

    def __init__(self, length: int = 40, numbers: int = 3, tells: bool = True) -> None:
        self.length, self.numbers, self.tells = length, numbers, tells
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.cue = self.np_random.integers(0, self.numbers + 1, self.length + 1)
        self.cue[self.np_random.random(self.length + 1) < 0.93] = 0
        self.done = self.np_random.integers(0, self.numbers + 1, self.length + 1) * self.tells
        self.done[self.np_random.random(self.length + 1) < 0.9] = 0
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self._observe(), 0.0, self.t == self.length, False, self._info()

    def _observe(self) -> np.ndarray:
        return self.np_random.uniform(-1, 1, 4).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        return {"cue": int(self.cue[self.t]), "cue_done": int(self.done[self.t])}


def recount(model: MemoryPPO, env: Errands, seed: int) -> tuple[list[bool], list[bool], list[int]]:
    """Held or not per needed pair, lost or not per cue, slack: from the record, as the docstring says it."""
    record = record_episode(model, env, seed=seed)
    env.reset(seed=seed)
    cues, done = env.cue, env.done
    held_pairs, lost, slack = [], [], []
    ramp, last_step = record.ramp, record.num_steps - 1
    for number in range(1, env.numbers + 1):
        first: int | None = None
        for t in range(record.num_steps):
            if first is not None:
                births = [
                    (layer, memory)
                    for layer in record.layers
                    for memory in layer.at(t).memory
                    if cues[layer.birth_M[memory]] == number
                ]
                held_pairs.append(bool(births))
                if done[t] == number or t == last_step:
                    lost.append(not births)
                    if births:
                        slack.append(
                            max(
                                sum(
                                    1 + (layer.span_M[m] - (later - layer.birth_M[m])) / ramp > 1e-6
                                    for later in range(t + 1, t + 200)
                                )
                                for layer, m in births
                            )
                        )
                    first = None
            if cues[t] == number and first is None:
                first = t
    return held_pairs, lost, slack


@pytest.mark.parametrize(
    ("numbers", "tells", "max_span"), [(1, True, 10), (1, False, 14), (3, True, 14), (3, False, 14)]
)
def test_scores_equal_a_recount_from_the_record(numbers: int, tells: bool, max_span: int) -> None:
    env = Errands(numbers=numbers, tells=tells)
    model = lively_model(env, seed=numbers, max_span=max_span)
    held, lost, slack = [], [], []
    for seed in range(5, 11):
        for whole, part in zip((held, lost, slack), recount(model, env, seed), strict=True):
            whole += part
    vector = gym.vector.SyncVectorEnv(
        [lambda: Errands(numbers=numbers, tells=tells)] * 6,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )
    result = evaluate(model, GymnasiumVecEnv(vector), episodes=6, seed=5)
    assert 0.0 < np.mean(held) < 1.0 and np.mean(lost) > 0.0 and slack
    assert result.cue_recall == pytest.approx(np.mean(held))
    assert result.premature_rate == pytest.approx(np.mean(lost))
    assert result.slack_mean == pytest.approx(np.mean(slack))


def by_hand(span: float, ramp: int, steps: int, done_at: int | None) -> CueRetention:
    """A cue at step 0, and nothing else that counts."""
    settings = TransformerSettings(width=4, num_layers=1, num_heads=1, max_span=100, ramp=ramp)
    model = MemoryTransformer(settings).eval()
    model.layers[0].retention.predictor.bias.data.fill_(np.log(span / (100 - span)))
    score, state = CueRetention(1), model.initial_state(1)
    for t in range(steps):
        first = np.array([t == 0])
        score.before_step(model, state, first)
        tag = np.array([int(t == 0)])
        output = model.step(torch.zeros(1, 4), state, torch.as_tensor(first), cue_B=torch.as_tensor(tag))
        state = output.state
        done = np.array([int(t == done_at)])
        pending = score.after_step(model, state, output.reports, tag, done, np.array([t == steps - 1]))
        score.add(*to_host([pending]))
    return score


def test_by_hand() -> None:
    """Span 10.5 and ramp 4: m > 0 up to age 14, so the cue of step 0 is seen by the steps 1 to 14."""
    kept = by_hand(10.5, 4, steps=11, done_at=None)
    assert (kept.recall(), kept.premature_rate(), kept.slack_mean()) == (1.0, 0.0, 4.0)
    at_the_last_moment = by_hand(10.5, 4, steps=15, done_at=None)
    assert (at_the_last_moment.premature_rate(), at_the_last_moment.slack_mean()) == (0.0, 0.0)
    lost = by_hand(10.5, 4, steps=16, done_at=None)
    assert (lost.recall(), lost.premature_rate(), lost.slack_mean()) == (14 / 15, 1.0, None)
    done = by_hand(10.5, 4, steps=30, done_at=6)
    assert (done.recall(), done.premature_rate(), done.slack_mean()) == (1.0, 0.0, 8.0)
    never_needed = by_hand(10.5, 4, steps=1, done_at=None)
    assert (never_needed.recall(), never_needed.premature_rate()) == (None, None)


def test_the_state_can_be_saved() -> None:
    score, other = by_hand(10.5, 4, steps=16, done_at=6), CueRetention(1)
    other.load_state_dict(score.state_dict())
    assert other.state_dict().keys() == score.state_dict().keys()
    assert (other.recall(), other.premature_rate(), other.slack_mean()) == (1.0, 0.0, 8.0)


def test_infos_without_cue_done_have_number_0() -> None:
    assert info_numbers([{}, {"cue_done": 2}, {"cue_done": True}], "cue_done").tolist() == [0, 2, 1]


def test_each_environment_has_its_own_span_limit() -> None:
    """A cue in three rows at step 0, done at step 2 in one of them. Limit 6 and ramp 4: seen up to age 9."""
    settings = TransformerSettings(width=4, num_layers=1, num_heads=1, max_span=100, ramp=4)
    model = MemoryTransformer(settings).eval()
    span_limit_B1 = torch.tensor([[3.0], [8.0], [6.0]])
    for row, slack in enumerate((4, 9, 7)):
        score, state = CueRetention(3), model.initial_state(3)
        for t in range(3):
            first, tag = np.full(3, t == 0), np.full(3, int(t == 0))
            score.before_step(model, state, first, span_limit_B1)
            output = model.step(
                torch.zeros(3, 4), state, torch.as_tensor(first), span_limit_B1, cue_B=torch.as_tensor(tag)
            )
            state, done = output.state, (np.arange(3) == row) * int(t == 2)
            pending = score.after_step(
                model, state, output.reports, tag, done, np.zeros(3, bool), span_limit_B1=span_limit_B1
            )
            score.add(*to_host([pending]))
        assert (score.premature_rate(), score.slack_mean()) == (0.0, slack)
