"""An environment that does, in one of its copies and at a given step, what no environment may do."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ENV_ID = "MemorySuiteTest/Faulty-v0"
ENV_NAME = f"tests.faults.faulty_env:{ENV_ID}"
"""with the module, so that worker processes can import it"""

SHAPE = (3,)


class FaultyEnv(gym.Env[Any, Any]):
    """Counts its steps; the copy that is reset with `faulty_seed` misbehaves at step `fault_step`."""

    episode_classes = ("all",)
    episode_metrics = ("steps",)

    def __init__(
        self, fault: str = "none", faulty_seed: int = 1, fault_step: int = 20, integers: bool = False
    ) -> None:
        """Name the fault: one of `FAULTS`, `WORKER_FAULTS`, `CASTS`, or "none"."""
        self.observation_space = (
            spaces.Box(-1000, 1000, SHAPE, np.int32) if integers else spaces.Box(-1e3, 1e3, SHAPE, np.float32)
        )
        self.action_space = spaces.Discrete(2)
        self.fault, self.faulty_seed, self.fault_step = fault, faulty_seed, fault_step
        self.is_faulty = False
        self.total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.is_faulty = seed == self.faulty_seed
        self.t = 0
        return np.zeros(SHAPE, self.observation_space.dtype), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        self.total += 1
        observation, reward = np.full(SHAPE, self.t, self.observation_space.dtype), 1.0
        if self.is_faulty and self.total == self.fault_step:
            if self.fault in WORKER_FAULTS:
                WORKER_FAULTS[self.fault]()
            else:
                observation, reward = {**FAULTS, **CASTS}[self.fault](observation, reward)
        info = {"is_success": True, "episode_class": "all", "steps": self.t}
        return observation, reward, self.t == 7, False, info


def _raise() -> None:
    raise RuntimeError("out of cheese")


def _exit() -> None:
    sys.exit(3)


def _leave() -> None:
    os._exit(4)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(3600.0)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(3600.0)


WORKER_FAULTS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "exit": _exit,
    "leave": _leave,
    "die": _die,
    "hang": _hang,
    "hang, deaf to SIGTERM": _hang_deaf,
    "stop": _stop,
}
"""what befalls a worker process"""

FAULTS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "observation is NaN": lambda o, r: (o * np.nan, r),
    "observation is inf": lambda o, r: (o * np.inf, r),
    "observation is 1e30": lambda o, r: (o * np.float32(1e30), r),
    "observation has a wrong shape": lambda o, r: (o[:2], r),
    "observation has too many axes": lambda o, r: (o[None], r),
    "observation is a scalar": lambda o, r: (np.float32(1.0), r),
    "observation is complex": lambda o, r: (o + 1j, r),
    "observation is None": lambda o, r: (None, r),
    "observation is text": lambda o, r: ("north", r),
    "reward is NaN": lambda o, r: (o, float("nan")),
    "reward is inf": lambda o, r: (o, float("inf")),
    "reward is -inf": lambda o, r: (o, np.float32("-inf")),
    "reward is 1e30": lambda o, r: (o, 1e30),
    "reward is 1e39": lambda o, r: (o, 1e39),
    "reward is an array": lambda o, r: (o, np.ones(2)),
    "reward is None": lambda o, r: (o, None),
    "reward is text": lambda o, r: (o, "much"),
}
"""what an environment may return that is not what its spaces say"""

CASTS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "observation is float64": lambda o, r: (o.astype(np.float64), r),
    "observation is int64": lambda o, r: (o.astype(np.int64), r),
    "observation is a list": lambda o, r: (o.tolist(), r),
}
"""what is taken over without loss into a space of float32, but not into one of integers if it is of floats"""

gym.register(ENV_ID, f"{__name__}:FaultyEnv")
