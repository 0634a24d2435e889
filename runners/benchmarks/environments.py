"""Environment steps per second: our batched twins, plain environments, Gymnasium's vector environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from memory_suite.envs.registration import REGISTRY, resolve
from memory_suite.runners.benchmarks.options import BenchmarkCommand, Subject
from memory_suite.runners.benchmarks.tables import Spread, Table, in_turns

NAME = "environments"
SPEED = "steps/s"
MINIGRID = "MiniGrid-MemoryS13-v0"
"""an environment that others wrote, for scale"""
COPIES = 16
"""where twins and Gymnasium's vector environments have equally many"""
LARGE_BATCH = 1_024
PLAIN_STEPS, BATCH_STEPS = 2_000, 200
"""of one measurement; of a batch, each in all of its environments"""


def measure(subject: Subject, command: BenchmarkCommand) -> list[Table]:
    """Two tables: ways to step the subject's environment, and all of our twins against plain environments."""
    config = subject.config
    tables = [_ways(config.env, dict(config.env_args), command)]
    with ExitStack() as stack:
        rivals: dict[str, Callable[[], float]] = {}
        for name in REGISTRY:
            rivals |= {
                f"{name}, plain": _plain(stack, name, {}, command.seed),
                f"{name}, twin": _batch(stack, name, {}, command.seed, "vector_entry_point", LARGE_BATCH),
            }
        found = {name: Spread(tuple(rates)) for name, rates in in_turns(rivals, command.rounds).items()}
    rows: dict[str, dict[str, Spread | str]] = {
        name: {
            "plain steps/s": found[f"{name}, plain"],
            "twin steps/s": found[f"{name}, twin"],
            "twin against plain": found[f"{name}, twin"].against(found[f"{name}, plain"]),
        }
        for name in REGISTRY
    }
    what = f"Random actions; a batched twin of {LARGE_BATCH:,} environments against one plain environment"
    return [*tables, Table("twins", what, rows)]


def _ways(name: str, arguments: Mapping[str, Any], command: BenchmarkCommand) -> Table:
    seed = command.seed
    sync = f"SyncVectorEnv of {COPIES}"
    with ExitStack() as stack:
        rivals = {
            "one plain environment": _plain(stack, name, arguments, seed),
            sync: _batch(stack, name, arguments, seed, "sync", COPIES),
            f"AsyncVectorEnv of {COPIES}": _batch(stack, name, arguments, seed, "async", COPIES),
        }
        if resolve(name) in {entry.id for entry in REGISTRY.values()}:
            rivals |= {
                f"our batched twin of {count:,}": _batch(
                    stack, name, arguments, seed, "vector_entry_point", count
                )
                for count in (COPIES, 64, LARGE_BATCH)
            }
        rivals |= {
            f"{MINIGRID}, one": _plain(stack, MINIGRID, {}, seed),
            f"{MINIGRID}, SyncVectorEnv of {COPIES}": _batch(stack, MINIGRID, {}, seed, "sync", COPIES),
        }
        speeds = {way: Spread(tuple(rates)) for way, rates in in_turns(rivals, command.rounds).items()}
    rows: dict[str, dict[str, Spread | str]] = {
        way: {SPEED: speed, "against SyncVectorEnv": speed.against(speeds[sync])}
        for way, speed in speeds.items()
    }
    what = f"{name}: random actions, episodes begin anew in the same step"
    return Table(NAME, what, rows)


def _plain(stack: ExitStack, name: str, arguments: Mapping[str, Any], seed: int) -> Callable[[], float]:
    """Measures one plain environment, without Gymnasium's wrappers."""
    env: Any = gym.make(resolve(name), disable_env_checker=True, **arguments).unwrapped
    stack.enter_context(closing(env))
    env.reset(seed=seed)
    env.action_space.seed(seed)

    def rate() -> float:
        actions = [env.action_space.sample() for _ in range(PLAIN_STEPS)]
        began = time.perf_counter()
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return PLAIN_STEPS / (time.perf_counter() - began)

    return rate


def _batch(
    stack: ExitStack, name: str, arguments: Mapping[str, Any], seed: int, mode: str, count: int
) -> Callable[[], float]:
    """Measures a vector environment; steps count in each of its environments."""
    options: dict[str, Any] = dict(arguments)
    if mode != "vector_entry_point":
        options["vector_kwargs"] = {"autoreset_mode": AutoresetMode.SAME_STEP}
    env = gym.make_vec(resolve(name), count, vectorization_mode=mode, **options)
    stack.enter_context(closing(env))
    env.reset(seed=seed)
    env.action_space.seed(seed)

    def rate() -> float:
        actions = [env.action_space.sample() for _ in range(BATCH_STEPS)]
        began = time.perf_counter()
        for action in actions:
            env.step(action)
        return BATCH_STEPS * count / (time.perf_counter() - began)

    return rate
