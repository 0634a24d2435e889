"""Environment steps per second: ours, vectorized and plain, and Gymnasium's vector environments."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode

from memory_suite.envs.registration import REGISTRY, resolve
from memory_suite.runners.benchmarks.options import AgentSpec, BenchmarkCommand
from memory_suite.runners.benchmarks.tables import Spread, Table, interleaved

NAME = "environments"
SPEED = "steps/s"
MINIGRID = "MiniGrid-MemoryS13-v0"
"""third-party environment, for scale"""
COPIES = 16
"""environments in a batch where vectorized versions are compared with Gymnasium's vector environments"""
LARGE_BATCH = 1_024
PLAIN_STEPS, BATCH_STEPS = 2_000, 200
"""steps of one measurement; a batch takes each in all of its environments"""


def measure(spec: AgentSpec, command: BenchmarkCommand) -> list[Table]:
    """Two tables: ways to step the chosen environment; all vectorized versions against plain ones."""
    config = spec.config
    tables = [_ways(config.env, dict(config.env_args), command)]
    with ExitStack() as stack:
        measurements: dict[str, Callable[[], float]] = {}
        for name in REGISTRY:
            measurements |= {
                f"{name}, plain": _plain(stack, name, {}, command.seed),
                f"{name}, vectorized": _batch(
                    stack, name, {}, command.seed, "vector_entry_point", LARGE_BATCH
                ),
            }
        found = {
            name: Spread(tuple(rates)) for name, rates in interleaved(measurements, command.rounds).items()
        }
    rows: dict[str, dict[str, Spread | str]] = {
        name: {
            "plain steps/s": found[f"{name}, plain"],
            "vectorized steps/s": found[f"{name}, vectorized"],
            "vectorized against plain": found[f"{name}, vectorized"].against(found[f"{name}, plain"]),
        }
        for name in REGISTRY
    }
    what = (
        f"Random actions; a vectorized version of {LARGE_BATCH:,} environments against one plain environment"
    )
    return [*tables, Table("vectorized versions", what, rows)]


def _ways(name: str, arguments: Mapping[str, Any], command: BenchmarkCommand) -> Table:
    seed = command.seed
    sync = f"SyncVectorEnv of {COPIES}"
    with ExitStack() as stack:
        measurements = {
            "one plain environment": _plain(stack, name, arguments, seed),
            sync: _batch(stack, name, arguments, seed, "sync", COPIES),
            f"AsyncVectorEnv of {COPIES}": _batch(stack, name, arguments, seed, "async", COPIES),
        }
        if resolve(name) in {entry.id for entry in REGISTRY.values()}:
            measurements |= {
                f"our vectorized version of {count:,}": _batch(
                    stack, name, arguments, seed, "vector_entry_point", count
                )
                for count in (COPIES, 64, LARGE_BATCH)
            }
        measurements |= {
            f"{MINIGRID}, one": _plain(stack, MINIGRID, {}, seed),
            f"{MINIGRID}, SyncVectorEnv of {COPIES}": _batch(stack, MINIGRID, {}, seed, "sync", COPIES),
        }
        speeds = {
            way: Spread(tuple(rates)) for way, rates in interleaved(measurements, command.rounds).items()
        }
    rows: dict[str, dict[str, Spread | str]] = {
        way: {SPEED: speed, "against SyncVectorEnv": speed.against(speeds[sync])}
        for way, speed in speeds.items()
    }
    what = f"{name}: random actions, environments reset in the step that ends an episode"
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
