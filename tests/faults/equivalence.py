"""Two ways to the same numbers, over more shapes, steps and seeds than the other tests have time for."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from memory_suite import MemoryPPO
from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.model.transformer import MemoryTransformer
from memory_suite.envs.make import make_vec_env
from tests.agents import reference_transformer
from tests.agents.reference_transformer import reference
from tests.agents.small_envs import AnySpace
from tests.agents.test_algorithms import Recorder
from tests.agents.test_transformer import KINDS, by_blocks, by_steps, episode_starts, lively
from tests.envs.same import assert_same
from tests.envs.test_contract import batched, num_actions, plain, skilled
from tests.faults.harness import Figure

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
RATIO_TOLERANCE = 1e-5
ADVANTAGE_TOLERANCE = 2e-5
"""of float32 sums over a rollout, against float64"""


# -- environments ------------------------------------------------------------------------------------


def batched_against_reference(name: str, steps: int, seed: int, num_envs: int = 16) -> Figure:
    """The batched twin and copies of the reference, with players from hopeless to perfect.

    Returns:
        Good: steps of environments that were equal in all they say, up to the first that was not.
    """
    batch = batched(name, num_envs)
    copies = SyncVectorEnv([partial(plain, name)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    rng = np.random.default_rng(seed)
    skill = np.linspace(0.0, 1.0, num_envs)
    mine, theirs = batch.reset(seed=seed), copies.reset(seed=seed)
    total = -(-steps // num_envs)
    equal, episodes, remarks = 0, 0, ""
    try:
        assert_same(mine, theirs)
        for _ in range(total):
            actions = skilled(mine[-1]["oracle_action"], skill, num_actions(batch), rng)
            mine, theirs = batch.step(actions), copies.step(actions)
            assert_same(mine, theirs)
            equal += num_envs
            episodes += int((mine[2] | mine[3]).sum())
    except AssertionError as error:
        remarks = str(error)
    return Figure(
        what=f"batched and reference environments, {name}: equal steps",
        good=equal,
        of=total * num_envs,
        remarks=remarks or f"{episodes} episodes",
    )


# -- memory ------------------------------------------------------------------------------------------


def random_settings(generator: random.Random) -> TransformerSettings:
    """Of every kind, with memories shorter and longer than blocks, windows, groups and each other."""
    heads = generator.choice([1, 2, 3, 4])
    return TransformerSettings(
        width=heads * generator.choice([4, 6, 8]),
        num_layers=generator.randint(1, 3),
        num_heads=heads,
        memory=generator.choice(KINDS),
        max_span=generator.choice([1, 3, 8, 30, 200]),
        ramp=generator.choice([1, 2, 5, 20]),
        initial_span_fraction=generator.choice([0.05, 0.3, 0.8]),
        memory_size=generator.choice([1, 2, 5, 30]),
        compressed_size=generator.choice([1, 3, 9]),
        compression_rate=generator.choice([1, 2, 3, 7]),
        position_window=generator.choice([0, 1, 4, 40]),
        null_memory=generator.choice([False, True]),
    )


def memory_against_reference(shapes: int, seed: int) -> Iterator[Figure]:
    """What is deleted and compacted, step by step and in blocks, against a dense loop over every memory.

    The reference is in float64; the numbers of model and input fit float32, so that both types have the same.
    """
    generator = random.Random(seed)
    good = dict.fromkeys(TOLERANCE, 0)
    worst = dict.fromkeys(TOLERANCE, 0.0)
    undecided = 0
    for number in range(shapes):
        settings = random_settings(generator)
        batch, steps = generator.randint(1, 3), generator.randint(2, 24)
        model = lively(settings, seed + number, spread=generator.choice([0.5, 4.0])).float().double()
        noise = torch.Generator().manual_seed(seed + number)
        x = torch.randn(batch, steps, settings.width, generator=noise).double()
        first = episode_starts(seed + number, batch, steps, generator.choice([0.0, 0.1, 0.5]))
        cut = generator.randint(1, steps)
        with torch.no_grad():
            expected = _dense(model, x, first)
            for dtype, tolerance in TOLERANCE.items():
                mine, inputs = copy.deepcopy(model).to(dtype), x.to(dtype)
                stepped, _ = by_steps(mine, inputs, first, mine.initial_state(batch))
                blocked = by_blocks(mine, inputs, first, [size for size in (cut, steps - cut) if size])
                off = max(float((y - expected).abs().max()) for y in (stepped, blocked))
                if off > tolerance and dtype == torch.float32 and _rounding_decides(model, x, first):
                    undecided += 1
                    continue
                worst[dtype] = max(worst[dtype], off)
                good[dtype] += off <= tolerance
    for dtype, tolerance in TOLERANCE.items():
        left_out = undecided if dtype == torch.float32 else 0
        remarks = f"largest difference {worst[dtype]:.1e}"
        if left_out:
            remarks += f"; {left_out} not counted, where rounding decides what is seen"
        yield Figure(
            what=f"deleted and compacted memory within {tolerance:g} of the dense reference, {_name(dtype)}",
            good=good[dtype],
            of=shapes - left_out,
            remarks=remarks,
        )


def _dense(model: MemoryTransformer, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    rows = zip(x, first.tolist(), strict=True)
    return torch.stack([reference(model, x_TD, first_T).y_TD for x_TD, first_T in rows])


def _rounding_decides(model: MemoryTransformer, x: torch.Tensor, first: torch.Tensor) -> bool:
    """Whether the reference jumps when the smallest weight that counts is halved or doubled.

    A memory that is alone in sight is read in full, however small its weight; just above 1e-6 a rounding
    error of float32 is the difference between that and nothing.
    """
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        for factor in (0.5, 2.0):
            patch.setattr(reference_transformer, "SMALLEST_MASK", factor * SMALLEST_MASK)
            outputs.append(_dense(model, x, first))
    return float((outputs[0] - outputs[1]).abs().max()) > TOLERANCE[torch.float32]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def leaks(cases: int, seed: int, cases_per_model: int = 20) -> Figure:
    """Change one observation; what the policy says before it and in later episodes may not change by one bit.

    Returns:
        Good: cases, of acting and learning, in which that held and the changed step itself did change.
    """
    generator = random.Random(seed)
    tensors = torch.Generator().manual_seed(seed)
    good, steps, rows = 0, 14, 2
    for number in range(cases):
        if number % cases_per_model == 0:
            policy = _policy(random_settings(generator), generator.randrange(2**31))
        reset = generator.randint(2, steps - 1)
        changed = generator.randrange(reset)
        seen = torch.randn(rows, steps, 3, generator=tensors)
        other = seen.clone()
        other[:, changed] = torch.randn(rows, 3, generator=tensors)
        first = torch.zeros(rows, steps, dtype=torch.bool)
        first[:, [0, reset]] = True
        good += all(
            torch.equal(mine[:, :changed], theirs[:, :changed])
            and not torch.equal(mine[:, changed], theirs[:, changed])
            and torch.equal(mine[:, reset:], theirs[:, reset:])
            for mine, theirs in zip(_said(policy, seen, first), _said(policy, other, first), strict=True)
        )
    return Figure(
        what="an observation that changes nothing before it and nothing after the next reset, exactly",
        good=good,
        of=cases,
    )


def _policy(settings: TransformerSettings, seed: int) -> Any:
    space = spaces.Box(-2.0, 2.0, (3,), np.float32)
    env = sb3_make_vec_env(lambda: AnySpace(space, spaces.Discrete(3)), n_envs=2)
    names = ("width", "num_layers", "num_heads", "memory", "max_span", "ramp", "initial_span_fraction")
    names += ("memory_size", "compressed_size", "compression_rate", "position_window")
    arguments = {name: getattr(settings, name) for name in names}
    model = MemoryPPO(
        "MemoryPolicy", env, n_steps=4, batch_size=8, seed=seed, device="cpu", policy_kwargs=arguments
    )
    model.policy.set_training_mode(False)
    for head in (model.policy.action_net, model.policy.value_net):
        torch.nn.init.normal_(head.weight)
    return model.policy


def _said(policy: Any, seen_BTF: torch.Tensor, first_BT: torch.Tensor) -> Iterator[torch.Tensor]:
    """Values as acting and as learning computes them, and log-probabilities of the first action."""
    rows, steps = first_BT.shape
    features = policy.encoder.preprocess(seen_BTF.flatten(0, 1))
    features = {name: part.unflatten(0, (rows, steps)) for name, part in features.items()}
    actions = torch.zeros(rows, dtype=torch.long)
    state = policy.initial_state(rows)
    values, log_probs = [], []
    for t in range(steps):
        decision = policy.act({name: part[:, t] for name, part in features.items()}, state, first_BT[:, t])
        state = decision.state
        values.append(decision.values_B)
        log_probs.append(decision.distribution.log_prob(actions))
    yield torch.stack(values, 1)
    yield torch.stack(log_probs, 1)
    with torch.no_grad():
        block = policy.evaluate_block(
            features, actions[:, None].expand(rows, steps), policy.initial_state(rows), first_BT
        )
    yield block.values_BT
    yield block.log_prob_BT


# -- learning ----------------------------------------------------------------------------------------


def acting_against_learning(steps: int, seed: int, num_envs: int = 32) -> Figure:
    """Train; at every first minibatch, which is a whole rollout, log-probabilities are those of the rollout.

    Returns:
        Good: steps of rollouts in which no ratio was further from 1 than the tolerance.
    """
    rollout_steps = 16
    env = make_vec_env("corridor-short", num_envs, seed=seed, env_kwargs={"max_length": 8})
    model = MemoryPPO(
        "MemoryPolicy",
        env,
        n_steps=rollout_steps,
        batch_size=num_envs * rollout_steps,
        n_epochs=2,
        seed=seed,
        device="cpu",
        random_shortening=True,
        policy_kwargs={"width": 16, "num_heads": 2, "max_span": 40, "ramp": 4, "position_window": 3},
    )
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(steps)
    deviations = [row["train/first_ratio_deviation"] for row in recorder.rows]
    each = num_envs * rollout_steps
    return Figure(
        what=f"log-probabilities of the rollout and recomputed, ratio within {RATIO_TOLERANCE:g} of 1: steps",
        good=each * sum(deviation <= RATIO_TOLERANCE for deviation in deviations),
        of=each * len(deviations),
        remarks=f"largest deviation {max(deviations):.1e}",
    )


NUM_OBSERVATIONS = 9
PATTERN_STEPS = 16
Moment = tuple[float, bool, bool, int]
"""reward, whether the episode ended, whether it was cut, and the observation after it"""


class Script(gym.Env[np.int64, np.int64]):
    """Draws rewards and ends, seldom and often by turns, and keeps them."""

    observation_space = spaces.Discrete(NUM_OBSERVATIONS)
    action_space = spaces.Discrete(2)

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.moments: list[Moment] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.int64, dict[str, Any]]:
        return self.rng.integers(NUM_OBSERVATIONS), {}

    def step(self, action: np.int64) -> tuple[np.int64, float, bool, bool, dict[str, Any]]:
        if len(self.moments) % PATTERN_STEPS == 0:
            self.rates = self.rng.choice([0.0, 0.1, 0.4, 1.0], 2)
        terminated, truncated = (self.rng.random(2) < self.rates).tolist()
        observation, reward = self.rng.integers(NUM_OBSERVATIONS), float(self.rng.normal())
        self.moments.append((reward, terminated, truncated, int(observation)))
        return observation, reward, terminated, truncated, {}


def advantages_against_double_loop(patterns: int, seed: int, num_envs: int = 8) -> Figure:
    """Advantages of real rollouts against the definition, whatever mixture of ends, limits and both comes.

    An end is worth nothing afterwards; a limit is worth the value of the last observation; both are an end.
    """
    gamma, gae_lambda, steps = 0.9, 0.8, PATTERN_STEPS
    scripts = [Script(seed + index) for index in range(num_envs)]
    model = MemoryPPO(
        "MemoryPolicy",
        DummyVecEnv([partial(_same, script) for script in scripts]),
        n_steps=steps,
        batch_size=num_envs * steps,
        n_epochs=1,
        gamma=gamma,
        gae_lambda=gae_lambda,
        seed=seed,
        device="cpu",
        policy_kwargs={"width": 8, "num_heads": 1, "num_layers": 1, "memory": "none"},
    )
    torch.nn.init.normal_(model.policy.value_net.weight)
    model._rescale_values = lambda: None  # type: ignore[method-assign]  # values are looked up after a rollout
    keeper = _Keeper()
    model.learn(patterns * steps, callback=keeper)
    good, worst = 0, 0.0
    for number, (advantages_BT, values_BT, value_of) in enumerate(keeper.rollouts):
        for row, script in enumerate(scripts):
            moments = script.moments[number * steps : (number + 1) * steps]
            expected = _double_loop(moments, values_BT[row], value_of, gamma, gae_lambda)
            off = float(np.abs(np.array(advantages_BT[row]) - expected).max())
            worst = max(worst, off)
            good += off <= ADVANTAGE_TOLERANCE
    ends = [(terminated, truncated) for script in scripts for _, terminated, truncated, _ in script.moments]
    return Figure(
        what=f"advantages within {ADVANTAGE_TOLERANCE:g} of a double loop: patterns of ends and limits",
        good=good,
        of=num_envs * len(keeper.rollouts),
        remarks=f"largest difference {worst:.1e}; {ends.count((True, False))} ends, "
        f"{ends.count((False, True))} limits, {ends.count((True, True))} both",
    )


def _double_loop(
    moments: list[Moment], values: list[float], value_of: list[float], gamma: float, gae_lambda: float
) -> list[float]:
    """A_t = sum_k (gamma * lambda)^k delta_(t+k) up to the last step of the episode or the rollout."""
    advantages = []
    for t in range(len(moments)):
        total = 0.0
        for k in range(t, len(moments)):
            reward, terminated, truncated, observation = moments[k]
            after = 0.0 if terminated else value_of[observation]
            total += (gamma * gae_lambda) ** (k - t) * (reward + gamma * after - values[k])
            if terminated or truncated:
                break
        advantages.append(total)
    return advantages


class _Keeper(BaseCallback):
    """Advantages and values of every rollout, and then the value of every observation by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[tuple[list[list[float]], list[list[float]], list[float]]] = []

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, MemoryPPO)
        rollout, policy = self.model.rollout_buffer, self.model.policy
        features = policy.encoder.preprocess(policy.obs_to_tensor(np.arange(NUM_OBSERVATIONS))[0])
        state, nobody = policy.initial_state(NUM_OBSERVATIONS), torch.zeros(NUM_OBSERVATIONS).bool()
        value_of = policy.predict_values(features, state, nobody)
        self.rollouts.append((rollout.advantages_BT.tolist(), rollout.values_BT.tolist(), value_of.tolist()))

    def _on_step(self) -> bool:
        return True


def _same(script: Script) -> Script:
    return script
