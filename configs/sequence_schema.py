"""Options of training on a sequence task; see `configs.agent_schema` for how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from memory_suite.agents.model.settings import PenaltyForm, PenaltySettings
from memory_suite.agents.ranges import check, check_optional
from memory_suite.configs import command_line, run_config
from memory_suite.configs.command_line import Scalar
from memory_suite.configs.model import MemoryConfig, ModelConfig
from memory_suite.configs.run_config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceModelConfig(ModelConfig):
    """The transformer around the memory."""

    dropout: float = 0.0
    """probability of dropping an entry of the embedding and of the output in training"""

    def __post_init__(self) -> None:
        """Validate the options."""
        self.check("model")
        check("model.dropout", self.dropout, "[0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Adam and its learning rate."""

    learning_rate: float = 1e-3
    """learning rate after the warm-up"""
    warmup_updates: int = 100
    """number of updates over which the learning rate rises from 0"""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """how the learning rate falls to 0 at `total_updates` after the warm-up"""
    beta2: float = 0.98
    """decay of Adam's second moment"""
    weight_decay: float = 0.0
    """decoupled weight decay of matrices (AdamW)"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""

    def __post_init__(self) -> None:
        """Validate the options."""
        check("optimizer.learning_rate", self.learning_rate, "(0, inf)")
        check("optimizer.warmup_updates", self.warmup_updates, "[0, inf)")
        check("optimizer.beta2", self.beta2, "(0, 1)")
        check("optimizer.weight_decay", self.weight_decay, "[0, inf)")
        check("optimizer.max_grad_norm", self.max_grad_norm, "(0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SequencePenaltyConfig(PenaltySettings):
    """Cost of memories: the span penalty (equation 6) and its weight alpha, where spans are learned."""

    weight: float = 1e-6
    """alpha; 0: no penalty"""
    form: PenaltyForm = "ramp"
    """cost of a memory. "ramp": as in the released code, for fading memories only; "all": its span, as in
    equation 6; "log": log(1 + span)"""
    begin_updates: int = 0
    """number of updates before the penalty begins: from the first update on it can teach forgetting before
    the task has been learned"""

    def __post_init__(self) -> None:
        """Validate the options."""
        PenaltySettings.__post_init__(self)  # super() fails in a dataclass with slots
        check("penalty.begin_updates", self.begin_updates, "[0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutConfig:
    """Evaluation on held-out data during and after training."""

    every: int = 200
    """number of updates between two evaluations on the valid split; the best checkpoint is kept"""
    tokens: int = 131_072
    """number of first tokens of the valid split, all rows together, rounded up to whole blocks"""
    final_tokens: int | None = 1_048_576
    """number of tokens on which the best checkpoint is evaluated after training; none: the whole split"""
    stop_accuracy: float | None = None
    """training ends early once the accuracy reaches this fraction of the targets; none: never"""

    def __post_init__(self) -> None:
        """Validate the options."""
        check("held_out.every", self.every, "[1, inf)")
        check("held_out.tokens", self.tokens, "[1, inf)")
        check_optional("held_out.final_tokens", self.final_tokens, "[1, inf)")
        check_optional("held_out.stop_accuracy", self.stop_accuracy, "(0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceConfig(RunConfig):
    """Train the memory transformer on a stream of tokens: text, object collision, copy, instruction.

    Defaults come from the preset named like --task; --config takes another YAML file; what is given here
    wins. Options may be written with hyphens or underscores, as --name value or --name=value.
    """

    PRESETS: ClassVar[Path] = Path(__file__).parent / "presets" / "sequences"
    PRESET_OPTION: ClassVar[str] = "task"
    RESUME_MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        *RunConfig.RESUME_MAY_CHANGE,
        "model.attention",
        "held_out.stop_accuracy",
        "held_out.final_tokens",
    )

    task: Literal["text", "collision", "copy", "instruction"] = "text"
    """task that generates the stream"""
    task_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="task-arg")] = (
        field(default_factory=dict)
    )
    """argument of the task, repeatable; in YAML a mapping called task_args"""
    eval_task_args: Annotated[
        Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="eval-task-arg")
    ] = field(default_factory=dict)
    """argument of the task on held-out data only, repeatable; in YAML a mapping"""
    data: Path | None = None
    """text file; none: a default one, downloaded on first use"""
    init: Path | None = None
    """run folder whose latest weights training begins with; none: random weights"""
    num_rows: int = 16
    """number of rows of the batch, each a stream with its own memory"""
    block_size: int = 256
    """tokens of a row between two updates; gradients are cut there, memories are carried on"""
    accumulation: int = 1
    """number of blocks whose gradients are summed in one update"""
    total_updates: int = 5_000
    """number of updates"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """precision of matrix products outside attention; "bfloat16" is for GPUs"""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    penalty: SequencePenaltyConfig = field(default_factory=SequencePenaltyConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)

    def __post_init__(self) -> None:
        """Validate the options."""
        RunConfig.__post_init__(self)
        for option, arguments in (("task_args", self.task_args), ("eval_task_args", self.eval_task_args)):
            for key in arguments:
                if not key.isidentifier():
                    raise ValueError(f"{option}.{key} must be named like a Python argument")
        check("num_rows", self.num_rows, "[1, inf)")
        check("block_size", self.block_size, "[1, inf)")
        check("accumulation", self.accumulation, "[1, inf)")
        check("total_updates", self.total_updates, "[1, inf)")
        charged = self.memory.learns_spans and self.penalty.weight > 0.0
        self.model.check_attention(
            "model",
            device=self.device,
            form=self.penalty.form if charged else None,
            use_weight=self.penalty.use_weight,
        )
        if self.data is not None and self.task != "text":
            raise ValueError(f"data is for the task text; {self.task} is generated")

    @property
    def label(self) -> str:
        """Name of a new run folder, before the time."""
        return f"{self.task}-{self.memory.kind}-seed{self.seed}"

    def arguments(self, split: str) -> dict[str, Scalar]:
        """The task's arguments on a split."""
        return dict(self.task_args) if split == "train" else {**self.task_args, **self.eval_task_args}

    @property
    def tokens_per_update(self) -> int:
        """Tokens of an update, all rows together."""
        return self.num_rows * self.block_size * self.accumulation


def load(argv: Sequence[str] | None = None) -> SequenceConfig:
    """`run_config.load` for sequence tasks."""
    return run_config.load(SequenceConfig, argv)


def from_yaml(path: Path) -> SequenceConfig:
    """`run_config.from_yaml` for sequence tasks."""
    return run_config.from_yaml(SequenceConfig, path)
