"""Options of the transformer and its memory, shared by agents and sequence tasks."""

from __future__ import annotations

from dataclasses import dataclass, fields

from memory_suite.agents.model.settings import AttentionKind, MemoryKind, TransformerSettings
from memory_suite.agents.ranges import check


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is remembered and for how long; capital letters are the papers' symbols."""

    kind: MemoryKind = "expire-span"
    """short: `--memory KIND`. "expire-span": each memory has its own predicted span; "transformer-xl": the
    last `size` steps; "adaptive-span": each head learns one span for all memories; "compressive": the last
    `size` steps and means of older ones; "none": memory-free baseline, the same model without attention.
    Options of other kinds are ignored"""
    max_span: int = 1024
    """L: longest span that can be learned, in steps; choose several times the longest distance that the task
    needs (expire-span, adaptive-span)"""
    ramp: int = 16
    """R: steps over which an expiring memory fades out; the task loss has a gradient for spans only there"""
    initial_span_fraction: float = 0.1
    """p: initial span, as a fraction of `max_span`"""
    size: int = 64
    """S: number of steps for which a memory is kept unchanged (transformer-xl, compressive)"""
    compressed_size: int = 64
    """N: number of compressed memories, means of older ones (compressive)"""
    compression_rate: int = 4
    """c: number of memories in a compressed one (compressive)"""
    random_shortening: bool = False
    """in training, clamp the spans of an episode (in a sequence task, of a block) to u * `max_span` with u
    uniform between 0 and 1, as in the released code (expire-span, adaptive-span)"""
    position_window: int = 16
    """number of last steps with learned relative position keys; older memories have no position; 0: none"""

    def __post_init__(self) -> None:
        """Validate the options."""
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
        """Whether spans are learned."""
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
    """number of layers, each with its own memory"""
    num_heads: int = 4
    """number of attention heads of a layer; must divide `width`"""
    layer_drop: float = 0.0
    """probability of skipping a layer in training"""
    null_memory: bool = False
    """let heads also attend to a memory of zeros that never expires, so that the context depends less on the
    number of irrelevant memories"""
    attention: AttentionKind = "plain"
    """attention of blocks. "fused": one FlexAttention kernel, which trains on CUDA only and supports neither
    penalty.form "ramp" nor penalty.use_weight; "plain": without it; "auto": fused where it is supported"""

    def check(self, group: str) -> None:
        """Validate the options; `group` is their prefix."""
        check(f"{group}.width", self.width, "[1, inf)")
        check(f"{group}.num_layers", self.num_layers, "[1, inf)")
        check(f"{group}.num_heads", self.num_heads, "[1, inf)")
        check(f"{group}.layer_drop", self.layer_drop, "[0, 1)")
        if self.width % self.num_heads:
            raise ValueError(f"{group}.num_heads ({self.num_heads}) must divide {group}.width ({self.width})")

    def check_attention(self, group: str, *, device: str, form: str | None, use_weight: float) -> None:
        """Raise ValueError if fused attention is chosen but not supported.

        Args:
            group: prefix of the options.
            device: device of the training.
            form: form of the span penalty; None: there is no penalty.
            use_weight: weight of its usefulness term.
        """
        if self.attention != "fused":
            return
        reason = None
        if device != "cuda":
            reason = f"device={device}; it needs cuda"
        elif form == "ramp":
            reason = "penalty.form=ramp"
        elif form is not None and use_weight:
            reason = f"penalty.use_weight ({use_weight:g})"
        if reason is not None:
            raise ValueError(f"{group}.attention=fused does not support {reason}; use auto or plain")


def transformer_settings(memory: MemoryConfig, model: ModelConfig) -> TransformerSettings:
    """Settings of the transformer that the options describe."""
    arguments = {field.name: getattr(memory, field.name) for field in fields(MemoryConfig)}
    arguments |= {field.name: getattr(model, field.name) for field in fields(ModelConfig)}
    del arguments["random_shortening"]  # an argument of training
    arguments["memory"] = arguments.pop("kind")
    arguments["memory_size"] = arguments.pop("size")
    return TransformerSettings(**arguments)
