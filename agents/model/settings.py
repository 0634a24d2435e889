"""Settings of the transformer and of its span penalty. Importing them does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from memory_suite.agents.ranges import check

MemoryKind = Literal["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"]
AttentionKind = Literal["auto", "plain", "fused"]
PenaltyForm = Literal["log", "all", "ramp"]
Method = Literal["counterfactual", "paper", "none"]
"""How agents learn what to forget (`agents.algorithms.forgetting`)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerSettings:
    """Size and memory of a `MemoryTransformer`; ranges are checked by the modules that use them."""

    width: int = 64
    num_layers: int = 2
    num_heads: int = 4
    memory: MemoryKind = "expire-span"
    """"none": the memory-free baseline, the same model without attention"""
    max_span: int = 1024
    """L (expire-span, adaptive-span)"""
    ramp: int = 16
    """R (expire-span, adaptive-span)"""
    initial_span_fraction: float = 0.1
    """p (expire-span, adaptive-span)"""
    memory_size: int = 64
    """S, number of steps for which a memory is kept (transformer-xl, compressive)"""
    compressed_size: int = 64
    """N, number of compressed memories (compressive)"""
    compression_rate: int = 4
    """c, number of memories in a compressed one (compressive)"""
    position_window: int = 16
    """P: number of last steps that have learned relative position keys (0: none)"""
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


class PenaltySpec(NamedTuple):
    """A span penalty to compute."""

    form: PenaltyForm
    """see `PenaltySettings.form`"""
    use_weight: float | None = None
    """Weight of the usefulness term. None: spans learn from the task loss through the ramp, as in the paper.
    Otherwise the task loss is cut off from spans, and each memory pays `use_weight * KL * log(target / span)`
    while its span is below the target (`retention.penalty.span_shortfall`), where KL is the effect of its
    ablation (`attention.leave_one_out`). 0: the term is off for now"""
    use_margin: float = 2.0
    """target span of a memory that is useful at some age, as a multiple of this age"""

    @property
    def needs_ablation(self) -> bool:
        """Whether memories must be ablated to compute the penalty."""
        return bool(self.use_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class PenaltySettings:
    """Cost of memories: the span penalty (equation 6) and its weight alpha, where spans are learned."""

    weight: float = 1e-4
    """alpha; 0: no penalty"""
    form: PenaltyForm = "log"
    """cost of a memory. "log": log(1 + span); "all": its span, as in equation 6; "ramp": as in the released
    code, for fading memories only. With adaptive-span: the mean span of the heads, or the mean of
    log(1 + span) if `use_weight` is above 0"""
    use_weight: float = 0.0
    """weight of the usefulness of memories relative to their cost. A memory whose span is too short pays this
    times log(target / span) per nat (KL) by which the output changes without it; nothing else lengthens
    spans. 0: usefulness does not count, and spans learn from the task loss on their ramp, as in the paper"""
    use_margin: float = 2.0
    """target span of a useful memory, as a multiple of the age at which it is useful. A larger margin serves
    episodes longer than any in training, but also keeps memories longer that are useful only briefly"""

    def __post_init__(self) -> None:
        """Validate the settings."""
        check("penalty.weight", self.weight, "[0, inf)")
        check("penalty.use_weight", self.use_weight, "[0, inf)")
        check("penalty.use_margin", self.use_margin, "[1, inf)")

    def spec(self, weight: float) -> PenaltySpec | None:
        """The penalty to compute while alpha is `weight`; None: there is none."""
        if self.use_weight:
            return PenaltySpec(self.form, self.use_weight if weight > 0.0 else 0.0, self.use_margin)
        return PenaltySpec(self.form) if weight != 0.0 else None
