"""The retention rule that settings select."""

from __future__ import annotations

from typing import get_args

from memory_suite.agents.model.retention.adaptive_span import AdaptiveSpan
from memory_suite.agents.model.retention.base import FixedSpan, Retention
from memory_suite.agents.model.retention.compressive import Compressive
from memory_suite.agents.model.retention.expire_span import ExpireSpan
from memory_suite.agents.model.settings import MemoryKind, TransformerSettings


def make_retention(settings: TransformerSettings) -> Retention:
    """Build the retention rule of a layer; raises ValueError for an unknown kind or an invalid setting."""
    match settings.memory:
        case "expire-span":
            return ExpireSpan(
                settings.width,
                max_span=settings.max_span,
                ramp=settings.ramp,
                initial_span_fraction=settings.initial_span_fraction,
            )
        case "adaptive-span":
            return AdaptiveSpan(
                settings.num_heads,
                max_span=settings.max_span,
                ramp=settings.ramp,
                initial_span_fraction=settings.initial_span_fraction,
            )
        case "transformer-xl":
            return FixedSpan(size=settings.memory_size)
        case "compressive":
            return Compressive(
                size=settings.memory_size,
                compressed_size=settings.compressed_size,
                compression_rate=settings.compression_rate,
            )
    raise ValueError(f"memory must be one of {', '.join(get_args(MemoryKind))}, got {settings.memory!r}")
