"""Measure speed, always as a ratio against something else in the same run.

    python runners/benchmark.py
    python runners/benchmark.py sequence
    python runners/benchmark.py spans

Parts: `envs` (batched environments against plain ones), `training` (against sb3-contrib's
RecurrentPPO, an extra: `.[bench]`), `update` (against the machine's own rate of matrix
multiplication), `acting` (cost of a step as an episode grows). Rivals alternate, so that a busy
machine slows both; medians and spreads are printed. `sequence` and `spans` are commands of their own, with
options of their own: the efficiency of memories on sequence tasks (`runners/sequences/efficiency.py`), and
what a longer maximum span costs (`runners/sequences/span_scaling.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.logger import Logger

from agents.memory_state import NEVER
from agents.on_policy import MemoryOnPolicyAlgorithm
from configs import command_line
from configs.command_line import or_exit
from configs.schema import TrainConfig, from_yaml, load
from envs.names import resolve
from envs.vec_env import make_vec_env
from runners.agent_factory import (
    check_same_run,
    choose_device,
    make_agent,
    make_training_env,
    restore_agent,
)
from runners.progress import ProgressDisplay
from runners.run_folder import Checkpoint, RunFolder, write_json_atomically
from runners.sequences import efficiency, span_scaling

Part = Literal["envs", "training", "update", "acting"]
MATRIX_SIZE = 1_024
"""of the product that the machine's rate is taken from"""
MATURE_ROLLOUTS = 4
"""before an update is measured: by then episodes are as old as random walking lets them become"""
BENCHMARKED_ENVS = ("corridor-long", "portal-short", "portal-long", "instruction-short", "instruction-long")
PARTS: tuple[Part, ...] = ("envs", "training", "update", "acting")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkCommand:
    """Measure speed, always as a ratio against something else in the same run."""

    part: Literal["all", "envs", "training", "update", "acting"] = "all"
    """which part; all of them by default"""
    env: str = "corridor-long"
    """whose preset is measured"""
    run: Path | None = None
    """run folder whose trained agent is measured instead, with its configuration; none: a fresh one with the
    spans of a trained one"""
    rounds: int = 5
    """measurements of each rival, alternating"""
    seed: int = 0
    """seeds agents, environments and random actions"""
    threads: int = 1
    """torch's threads"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the policies compute"""
    json: Path | None = None
    """also write the numbers to this file"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        command_line.check_at_least_1(self, "rounds", "threads")
        command_line.check_seed(self.seed)
        command_line.check_output(self.json)


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    words = sys.argv[1:] if argv is None else argv
    others = {"sequence": efficiency.main, "spans": span_scaling.main}
    if words and words[0] in others:
        return others[words[0]](list(words[1:]))
    command = command_line.parse(BenchmarkCommand, words)
    torch.set_num_threads(command.threads)
    subject = or_exit(lambda: Subject.of(command))
    display = ProgressDisplay(0)
    device = subject.config.device
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {command.threads} torch thread(s), {device}"
    display.announce({"machine": machine, "torch": torch.__version__, "load": f"{os.getloadavg()[0]:.1f}"})
    measure: dict[Part, Callable[[Subject, int], dict[str, Any]]] = {
        "envs": measure_envs,
        "training": measure_training,
        "update": measure_update,
        "acting": measure_acting,
    }
    results: dict[str, Any] = {"machine": machine}
    for part in PARTS:
        if command.part in ("all", part):
            results[part] = measure[part](subject, command.rounds)
            display.summary_table({f"{part}: {name}": value for name, value in results[part].items()})
    if command.json is not None:
        write_json_atomically(command.json, results)
    return 0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured."""

    config: TrainConfig
    trained: Checkpoint | None

    @classmethod
    def of(cls, command: BenchmarkCommand) -> Subject:
        """What the command asks for; ValueError says what is wrong with it."""
        choose_device(command.device)
        if command.run is None:
            config, trained = load(["--env", command.env]), None
        else:
            folder = RunFolder.open(command.run)
            config, trained = from_yaml(folder.config_file), folder.best_checkpoint()
            for note in trained.notes:
                sys.stderr.write(f"{note}\n")
            check_same_run(trained, config)
        return cls(
            replace(config, seed=command.seed, threads=command.threads, device=command.device), trained
        )

    def agent(self) -> MemoryOnPolicyAlgorithm:
        """An agent that forgets as a trained one does, on environments of its own."""
        env = make_training_env(self.config)
        if self.trained is not None:
            return restore_agent(self.trained, env, self.config.device)[0]
        agent = make_agent(self.config, env)
        shorten_spans(agent)
        return agent


def measure_envs(subject: Subject, rounds: int) -> dict[str, Any]:
    """Steps per second with random actions: every kind's batched twin against its plain environment."""
    config = subject.config
    result: dict[str, Any] = {}
    for name in (config.env, *(other for other in BENCHMARKED_ENVS if other != config.env)):
        arguments: dict[str, Any] = dict(config.env_args) if name == config.env else {}
        result |= {f"{name}, {what}": value for what, value in _measure_env(name, arguments, rounds).items()}
    return result


def _measure_env(name: str, arguments: dict[str, Any], rounds: int) -> dict[str, Any]:
    env_id = resolve(name)
    batches: dict[int, Any] = {
        num_envs: gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **arguments)
        for num_envs in (16, 64, 1_024)
    }
    plain: Any = gym.make(env_id, disable_env_checker=True, **arguments).unwrapped
    rng = np.random.default_rng(0)
    rates: dict[int, list[float]] = {num_envs: [] for num_envs in (*batches, 1)}
    for env in (*batches.values(), plain):
        env.reset(seed=0)
    for _ in range(rounds):
        for num_envs, batch in batches.items():
            rates[num_envs].append(
                _rate(batch.step, rng.integers(batch.single_action_space.n, size=(200, num_envs)))
            )

        def step(action: np.ndarray) -> None:
            _, _, terminated, truncated, _ = plain.step(action[0])
            if terminated or truncated:
                plain.reset()

        rates[1].append(_rate(step, rng.integers(plain.action_space.n, size=(2_000, 1))))
    ratios = [fast / slow for fast, slow in zip(rates[1_024], rates[1], strict=True)]
    return {
        **{
            f"batched twin, {num_envs:,} environments": _spread(rates[num_envs], "steps/s")
            for num_envs in batches
        },
        "one plain environment": _spread(rates[1], "steps/s"),
        "1,024 in the twin against one": _spread(ratios, "x"),
    }


def _rate(step: Callable[[np.ndarray], object], actions: np.ndarray) -> float:
    """Environment steps per second."""
    began = time.perf_counter()
    for row in actions:
        step(row)
    return actions.size / (time.perf_counter() - began)


def measure_training(subject: Subject, rounds: int) -> dict[str, Any]:
    """Training steps per second of our agent and of RecurrentPPO, in turns.

    Same environments, rollout, epochs and minibatches; an LSTM as wide as our model. Ours is measured
    twice: as it begins (nothing has been forgotten yet) and with spans as short as after training.
    """
    from sb3_contrib import RecurrentPPO

    config = subject.config
    ppo, policy = config.ppo, config.policy
    ours = make_agent(config, make_training_env(config))
    forgetful = subject.agent()
    lstm = RecurrentPPO(
        "MlpLstmPolicy",
        make_training_env(config),
        n_steps=ppo.n_steps,
        batch_size=ppo.batch_size,
        n_epochs=ppo.n_epochs,
        policy_kwargs={"lstm_hidden_size": policy.width, "net_arch": []},
        device=choose_device(config.device),
        seed=config.seed,
    )
    rivals: dict[str, Any] = {
        "ours, nothing forgotten yet": ours,
        "ours, forgetting": forgetful,
        "RecurrentPPO": lstm,
    }
    steps = config.num_envs * ppo.n_steps
    for rival in rivals.values():
        rival.set_logger(Logger(None, []))
        rival.learn(2 * steps)
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, rival in rivals.items():
            began = time.perf_counter()
            rival.learn(steps, reset_num_timesteps=False)
            rates[name].append(steps / (time.perf_counter() - began))
    result: dict[str, Any] = {name: _spread(values, "steps/s") for name, values in rates.items()}
    for name in ("ours, nothing forgotten yet", "ours, forgetting"):
        ratios = [mine / theirs for mine, theirs in zip(rates[name], rates["RecurrentPPO"], strict=True)]
        result[f"{name}, against RecurrentPPO"] = _spread(ratios, "x")
    return result


def measure_update(subject: Subject, rounds: int) -> dict[str, Any]:
    """Share of the machine's matrix-multiply rate that an update reaches, counting the model's operations."""
    config = subject.config
    rivals = {
        "nothing forgotten yet": make_agent(config, make_training_env(config)),
        "forgetting": subject.agent(),
    }
    operations: dict[str, float] = {}
    for name, agent in rivals.items():
        agent.set_logger(Logger(None, []))
        agent.learn(MATURE_ROLLOUTS * config.rollout_steps)
        operations[name] = _update_operations(config, agent)
    left, right = torch.randn(2, MATRIX_SIZE, MATRIX_SIZE, device=agent.device)
    rates: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(5):
            product = torch.mm(left, right)
        product[0, 0].item()  # waits for a GPU
        rates.append(5 * 2 * MATRIX_SIZE**3 / (time.perf_counter() - began))
        for name, agent in rivals.items():
            began = time.perf_counter()
            agent.train()
            shares[name].append(operations[name] / (time.perf_counter() - began) / rates[-1])
    return {
        "matrix multiplication": _spread([rate / 1e9 for rate in rates], "Gflop/s"),
        **{f"share reached by the update, {name}": _spread(share, "") for name, share in shares.items()},
    }


def _update_operations(config: TrainConfig, agent: MemoryOnPolicyAlgorithm) -> float:
    """Floating point operations of the model's matrix products in one update, forward and backward.

    Of the model as the paper writes it, however it is computed here: every memory, also a stored one, has
    its key and value projected once for each minibatch it is in, and heads are `width / num_heads` wide. Only
    pairs of a step and a memory that it may see count, not what is computed and masked.
    """
    policy, ppo = config.policy, config.ppo
    state = agent.rollout.state
    assert state is not None
    tokens = config.num_envs * ppo.n_steps
    width = policy.width
    total = 0.0
    features = len(agent.policy.encoder.mean_F)
    for layer in state.layers:
        stored = int((layer.birth_BW != NEVER).sum())
        pairs = stored * ppo.n_steps + tokens * (ppo.n_steps - 1) / 2
        projections = tokens * (4 * width**2 + 2 * policy.feedforward_multiplier * width**2)
        projections += stored * 2 * width**2
        total += 2 * (projections + pairs * 2 * width)
    total += 2 * tokens * features * width
    # Backward takes twice as many as forward.
    return 3 * total * ppo.n_epochs


def measure_acting(subject: Subject, rounds: int) -> dict[str, Any]:
    """Time and bytes per step as one episode of a forgetful agent grows."""
    config, agent = subject.config, subject.agent()
    num_envs = 16
    env = make_vec_env(config.env, num_envs, config.seed, {"length": 1_000_000})
    policy, observation = agent.policy, env.reset()
    state = policy.initial_state(num_envs)
    nobody = torch.zeros(num_envs, dtype=torch.bool, device=policy.device)
    result: dict[str, Any] = {}
    taken = 0

    def act() -> float:
        """Take a step; gives the seconds of the agent's part."""
        nonlocal observation, state
        began = time.perf_counter()
        features = policy.encoder.preprocess(policy.obs_to_tensor(observation)[0])
        decision = policy.act(features, state, nobody)
        state, actions = decision.state, policy.to_env(decision.actions)
        seconds = time.perf_counter() - began
        observation = env.step(actions)[0]
        return seconds

    for until in (1_000, 4_000, 16_000):
        while taken < until - 200:
            act()
            taken += 1
        times = []
        for _ in range(rounds):
            times.append(sum(act() for _ in range(200 // rounds)) / (200 // rounds) * 1e6)
            taken += 200 // rounds
        held = state.bytes_held / num_envs / 1024
        result[f"after {until:,} steps"] = f"{_spread(times, 'us')}, {held:.1f} KiB held per environment"
    return result


def shorten_spans(agent: MemoryOnPolicyAlgorithm) -> None:
    """Give every memory the span that a trained agent gives the useless ones: less than the ramp."""
    with torch.no_grad():
        for name, parameter in agent.policy.named_parameters():
            if name.endswith("retention.predictor.bias"):
                parameter.fill_(-12.0)


def _spread(values: list[float], unit: str) -> str:
    """Median and range."""
    low, middle, high = np.quantile(values, [0.0, 0.5, 1.0])
    digits = 0 if middle >= 100 else 2
    return f"{middle:,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    sys.exit(command_line.run(main))
