"""Reinforcement-learning agents that learn what to remember and what to forget.

Sub-packages: `agents` (policies, memories, PPO and A2C), `envs` (environments), `configs` (options and
presets) and `runners` (command-line programs). In a checkout they are links to the folders at its top.

The names in `__all__` are imported on first use, since torch takes a second to import. Importing this package
registers the environments with Gymnasium: `gymnasium.make("memory_suite:MemorySuite/CorridorLong-v0")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import memory_suite.envs  # noqa: F401  (registers the environments)

if TYPE_CHECKING:
    from memory_suite.agents.algorithms.a2c import MemoryA2C
    from memory_suite.agents.algorithms.ppo import MemoryPPO
    from memory_suite.agents.model.settings import PenaltySettings
    from memory_suite.agents.policy.policy import MemoryPolicy
    from memory_suite.envs.make import make_vec_env
    from memory_suite.envs.vec_env import GymnasiumVecEnv

__version__ = "0.1.0"
__all__ = [
    "GymnasiumVecEnv",
    "MemoryA2C",
    "MemoryPPO",
    "MemoryPolicy",
    "PenaltySettings",
    "__version__",
    "make_vec_env",
]

_MODULES = {
    "GymnasiumVecEnv": "memory_suite.envs.vec_env",
    "MemoryA2C": "memory_suite.agents.algorithms.a2c",
    "MemoryPPO": "memory_suite.agents.algorithms.ppo",
    "MemoryPolicy": "memory_suite.agents.policy.policy",
    "PenaltySettings": "memory_suite.agents.model.settings",
    "make_vec_env": "memory_suite.envs.make",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
