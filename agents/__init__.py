"""Agents: a transformer whose memories expire, and PPO and A2C that train it."""

from __future__ import annotations

from memory_suite.agents.algorithms.a2c import MemoryA2C
from memory_suite.agents.algorithms.ppo import MemoryPPO
from memory_suite.agents.algorithms.span_penalty import SpanPenaltySettings
from memory_suite.agents.policy.policy import MemoryPolicy

__all__ = ["MemoryA2C", "MemoryPPO", "MemoryPolicy", "SpanPenaltySettings"]
