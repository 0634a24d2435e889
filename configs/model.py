"""The transformer and its memory: what the runs of agents and of sequence tasks have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memory_suite.agents.model.settings import AttentionKind, MemoryKind, TransformerSettings
from memory_suite.agents.ranges import check


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is remembered, and for how long; capitals are the papers' symbols."""

    kind: MemoryKind = "expire-span"
    """`--memory KIND` for short. "expire-span": each memory gets a span of its own; "transformer-xl": the
    last `size` steps; "adaptive-span": each head learns one span for all memories; "compressive": the last
    `size` steps, and means of older ones; "none": the memory-free control, the same torso and width, no
    attention to the past. Options that a kind does not have are ignored"""
    max_span: int = 1024
    """L: longest span that can be learned, in steps; give it room, several times the longest need. Like the
    next two for expire-span and adaptive-span"""
    ramp: int = 16
    """R: steps over which an expiring memory fades out; only there does the task teach spans"""
    initial_span_fraction: float = 0.1
    """p: spans start at this share of `max_span`"""
    size: int = 64
    """S: steps for which a memory is kept as it was (transformer-xl, compressive)"""
    compressed_size: int = 64
    """N: so many means of older memories are kept (compressive)"""
    compression_rate: int = 4
    """c: memories in a mean (compressive)"""
    random_shortening: bool = False
    """in training, clamp the spans of an episode (of a block, in a sequence task) to u * `max_span` with u
    uniform between 0 and 1 (expire-span, adaptive-span)"""
    position_window: int = 16
    """learned relative position keys for this many last steps; older memories carry no position; 0: none"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check("memory.max_span", self.max_span, "[1, inf)")
        check("memory.ramp", self.ramp, "[1, inf)")
        check("memory.initial_span_fraction", self.initial_span_fraction, "(0, 1)")
        check("memory.size", self.size, "[1, inf)")
        check("memory.compressed_size", self.compressed_size, "[1, inf)")
        check("memory.compression_rate", self.compression_rate, "[1, inf)")
        check("memory.position_window", self.position_window, "[0, inf)")
        if self.learns_spans and self.ramp > self.max_span:
            raise ValueError(f"memory.ramp ({self.ramp}) must not exceed memory.max_span ({self.max_span})")

    @property
    def learns_spans(self) -> bool:
        """Whether training decides how long memories last."""
        return self.kind in ("expire-span", "adaptive-span")

    @property
    def summary(self) -> str:
        """The memory in a few words."""
        match self.kind:
            case "expire-span":
                return f"Expire-Span up to {self.max_span:,} steps, ramp {self.ramp}"
            case "adaptive-span":
                return f"Adaptive-Span up to {self.max_span:,} steps, ramp {self.ramp}"
            case "transformer-xl":
                return f"Transformer-XL, the last {self.size:,} steps"
            case "compressive":
                means = f"{self.compressed_size:,} means of {self.compression_rate}"
                return f"Compressive, the last {self.size:,} steps and {means}"
            case "none":
                return "none"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The transformer around the memory."""

    width: int = 64
    """size of a hidden state"""
    num_layers: int = 2
    """layers, each with a memory of its own"""
    num_heads: int = 4
    """attention heads of a layer; must divide `width`"""
    layer_drop: float = 0.0
    """in training, the probability of skipping a layer"""
    null_memory: bool = False
    """let heads attend to nothing too, to a memory of zeros that is always there: what is read then changes
    less while what is of no use beside it is being forgotten"""
    attention: AttentionKind = "plain"
    """of blocks. "fused": one kernel by FlexAttention, which trains on CUDA only and knows no penalty.form
    "ramp" and no penalty.use_weight; "plain": without it; "auto": fused on CUDA where it can be had"""

    def check(self, group: str) -> None:
        """Refuse what cannot work; `group` is what the options are called by."""
        check(f"{group}.width", self.width, "[1, inf)")
        check(f"{group}.num_layers", self.num_layers, "[1, inf)")
        check(f"{group}.num_heads", self.num_heads, "[1, inf)")
        check(f"{group}.layer_drop", self.layer_drop, "[0, 1)")
        if self.width % self.num_heads:
            raise ValueError(f"{group}.num_heads ({self.num_heads}) must divide {group}.width ({self.width})")

    def check_attention(self, group: str, *, device: str, form: str | None, use_weight: float) -> None:
        """Refuse fused attention where it cannot train, or with a penalty that looks at every pair.

        Args:
            group: what the options are called by.
            device: to train on.
            form: of the span penalty; None: nothing is charged.
            use_weight: of the penalty.
        """
        if self.attention != "fused":
            return
        obstacle = None
        if device != "cuda":
            obstacle = f"device={device}, but needs cuda"
        elif form == "ramp":
            obstacle = "penalty.form=ramp"
        elif form is not None and use_weight:
            obstacle = f"penalty.use_weight ({use_weight:g})"
        if obstacle is not None:
            raise ValueError(f"{group}.attention=fused cannot be had with {obstacle}; choose auto or plain")


def transformer_settings(memory: MemoryConfig, model: ModelConfig) -> TransformerSettings:
    """Settings of the transformer that the options describe."""
    arguments = {field.name: getattr(memory, field.name) for field in fields(MemoryConfig)}
    arguments |= {field.name: getattr(model, field.name) for field in fields(ModelConfig)}
    del arguments["random_shortening"]  # an argument of training
    arguments["memory"] = arguments.pop("kind")
    arguments["memory_size"] = arguments.pop("size")
    return TransformerSettings(**arguments)
