"""Agents: a transformer whose memories expire, and PPO and A2C that train it."""

from __future__ import annotations

from agents.a2c import MemoryA2C
from agents.policies import ExpireSpanPolicy
from agents.ppo import MemoryPPO
from agents.span_penalty import SpanPenaltySettings

__all__ = ["ExpireSpanPolicy", "MemoryA2C", "MemoryPPO", "SpanPenaltySettings"]
