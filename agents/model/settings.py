"""Settings of the transformer, and the retention rule they select."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from memory_suite.agents.model.retention.adaptive_span import AdaptiveSpan
from memory_suite.agents.model.retention.base import FixedSpan, Retention
from memory_suite.agents.model.retention.compressive import Compressive
from memory_suite.agents.model.retention.expire_span import ExpireSpan

MemoryKind = Literal["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"]


AttentionKind = Literal["auto", "plain", "fused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSettings:
    """Size and memory of a `MemoryTransformer`; ranges are checked by the modules that use them."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    feedforward_multiplier: int = 4
    memory: MemoryKind = "expire-span"
    """"none": the memory-free baseline, the same model without attention"""
    max_span: int = 1024
    """L (expire-span, adaptive-span)"""
    ramp: int = 16
    """R (expire-span, adaptive-span)"""
    initial_span_fraction: float = 0.1
    """p (expire-span, adaptive-span)"""
    span_divisor: float = 1.0
    """d (expire-span)"""
    memory_size: int = 64
    """S, number of steps for which a memory is kept (transformer-xl, compressive)"""
    compressed_size: int = 64
    """N, number of compressed memories (compressive)"""
    compression_rate: int = 4
    """c, number of memories in a compressed one (compressive)"""
    position_window: int = 16
    """P: number of last steps that have learned relative position keys (0: none)"""
    query_key_gain: float = 1.0
    """factor of the initial query and key weights; a larger one makes the initial attention sharper"""
    null_memory: bool = False
    """whether heads can also attend to a memory of zeros, which never expires. The context then depends less
    on the number of irrelevant memories"""
    layer_drop: float = 0.0
    """probability that a block skips a layer in training"""
    attention: AttentionKind = "plain"
    """attention of blocks. "fused": FlexAttention; "auto": fused on CUDA where it supports the settings"""

    @property
    def remembers(self) -> bool:
        """Whether there is a memory at all."""
        return self.memory != "none"


def make_retention(settings: TransformerSettings) -> Retention:
    """Build the retention rule of a layer; raises ValueError for an unknown kind or an invalid setting."""
    match settings.memory:
        case "expire-span":
            return ExpireSpan(
                settings.width,
                max_span=settings.max_span,
                ramp=settings.ramp,
                initial_span_fraction=settings.initial_span_fraction,
                span_divisor=settings.span_divisor,
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
