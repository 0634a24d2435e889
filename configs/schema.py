"""Every knob of a training run, in one place.

A YAML file overrides these defaults and the command line overrides the YAML; both go through the one
parser (`configs.command_line`). A number out of its range or an impossible combination is refused
where the dataclass is built, with a message that names the option.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from configs import command_line
from configs.command_line import Scalar

PRESETS = Path(__file__).parent
"""Folder of the presets that `--env` picks by name."""

Schedule = Literal["constant", "linear"]
MemoryKind = Literal["expire-span", "transformer-xl", "adaptive-span", "compressive", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What the policy remembers, and for how long; capitals are the papers' symbols."""

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
    span_divisor: float = 1.0
    """d: divides what the span predictor sees, so that spans do not jump when `max_span` is very large
    (expire-span)"""
    size: int = 64
    """S: steps for which a memory is kept as it was (transformer-xl, compressive)"""
    compressed_size: int = 64
    """N: so many means of older memories are kept (compressive)"""
    compression_rate: int = 4
    """c: memories in a mean (compressive)"""
    random_shortening: bool = False
    """in training, clamp the spans of an episode to u * `max_span` with u uniform between 0 and 1. Like the
    next three for expire-span and adaptive-span"""
    time_dilation_max: float = 1.0
    """in training, the clock of an episode may run up to so many times faster (1: never): surviving 200 of
    its steps then teaches surviving more"""
    time_dilation_probability: float = 0.5
    """share of training episodes whose clock runs fast"""
    time_dilation_growth: float = 1.03
    """factor per update on the fastest clock, while every class of episodes meets `penalty.target_success`"""
    position_window: int = 16
    """learned relative position keys for this many last steps; older memories carry no position; 0: none"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("memory.max_span", self.max_span, "[1, inf)")
        _check("memory.ramp", self.ramp, "[1, inf)")
        _check("memory.initial_span_fraction", self.initial_span_fraction, "(0, 1)")
        _check("memory.size", self.size, "[1, inf)")
        _check("memory.compressed_size", self.compressed_size, "[1, inf)")
        _check("memory.compression_rate", self.compression_rate, "[1, inf)")
        _check("memory.span_divisor", self.span_divisor, "(0, inf)")
        _check("memory.time_dilation_max", self.time_dilation_max, "[1, inf)")
        _check("memory.time_dilation_probability", self.time_dilation_probability, "[0, 1]")
        _check("memory.time_dilation_growth", self.time_dilation_growth, "[1, inf)")
        _check("memory.position_window", self.position_window, "[0, inf)")
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
class PolicyConfig:
    """The transformer around the memory."""

    width: int = 64
    """size of a hidden state"""
    num_layers: int = 2
    """layers, each with a memory of its own"""
    num_heads: int = 4
    """attention heads of a layer; must divide `width`"""
    feedforward_multiplier: int = 4
    """the feedforward part of a layer is so many times as wide as `width`"""
    layer_drop: float = 0.0
    """in training, the probability of skipping a layer"""
    query_key_gain: float = 1.0
    """factor on the initial query and key weights; above 1 attention starts out less uniform"""
    normalize_observations: bool = True
    """divide features by their running statistics, which makes rare ones (the cue above all) large"""
    normalize_warmup_rollouts: int = 10
    """those statistics are fixed after so many rollouts; 0: they follow the whole training"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("policy.width", self.width, "[1, inf)")
        _check("policy.num_layers", self.num_layers, "[1, inf)")
        _check("policy.num_heads", self.num_heads, "[1, inf)")
        _check("policy.feedforward_multiplier", self.feedforward_multiplier, "[1, inf)")
        _check("policy.layer_drop", self.layer_drop, "[0, 1)")
        _check("policy.query_key_gain", self.query_key_gain, "(0, inf)")
        _check("policy.normalize_warmup_rollouts", self.normalize_warmup_rollouts, "[0, inf)")
        if self.width % self.num_heads:
            raise ValueError(f"policy.num_heads ({self.num_heads}) must divide policy.width ({self.width})")


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig:
    """Proximal policy optimization; names and meanings as in stable-baselines3."""

    learning_rate: float = 7e-4
    """step size of Adam"""
    learning_rate_schedule: Schedule = "linear"
    """"linear": falls to 0 at `total_steps`; "constant": stays"""
    n_steps: int = 64
    """steps of each environment between two updates; gradients are cut there, memories are not"""
    batch_size: int = 1024
    """minibatch, in steps of environments: a multiple of `n_steps` that divides `n_steps` * `num_envs`"""
    n_epochs: int = 3
    """passes over each rollout"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """bias against variance of the advantage estimate (1: Monte Carlo)"""
    clip_range: float = 0.2
    """how far the probability ratio may move before its gradient is cut"""
    clip_range_vf: float | None = None
    """the same for the value function; none: not clipped"""
    normalize_advantage: bool = True
    """normalize the advantages of each minibatch"""
    advantage_std_floor: float = 0.0
    """but divide them by no less than this: without reward they are noise of the critic, and should not drown
    the entropy bonus"""
    ent_coef: float = 0.005
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    target_kl: float | None = None
    """end an update early once the policy has moved 1.5 times this far; none: never"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_learning("ppo", self)
        _check("ppo.batch_size", self.batch_size, "[1, inf)")
        _check("ppo.n_epochs", self.n_epochs, "[1, inf)")
        _check("ppo.advantage_std_floor", self.advantage_std_floor, "[0, inf)")
        _check("ppo.clip_range", self.clip_range, "(0, inf)")
        _check_optional("ppo.clip_range_vf", self.clip_range_vf, "(0, inf)")
        _check_optional("ppo.target_kl", self.target_kl, "(0, inf)")
        if self.batch_size % self.n_steps:
            raise ValueError(
                f"ppo.batch_size ({self.batch_size}) must be a multiple of ppo.n_steps ({self.n_steps}): "
                "a minibatch holds the whole rollouts of some environments"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class A2CConfig:
    """Advantage actor-critic; names and meanings as in stable-baselines3."""

    learning_rate: float = 7e-4
    """step size of the optimizer"""
    learning_rate_schedule: Schedule = "linear"
    """"linear": falls to 0 at `total_steps`; "constant": stays"""
    n_steps: int = 16
    """steps of each environment between two updates; gradients are cut there, memories are not"""
    gamma: float = 0.99
    """discount factor"""
    gae_lambda: float = 0.95
    """bias against variance of the advantage estimate (1: Monte Carlo)"""
    ent_coef: float = 0.005
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    rms_prop_eps: float = 1e-5
    """epsilon of RMSProp"""
    use_rms_prop: bool = True
    """RMSProp as in the A3C paper; false: Adam"""
    normalize_advantage: bool = False
    """normalize the advantages of each rollout"""
    advantage_std_floor: float = 0.0
    """but divide them by no less than this; see `ppo.advantage_std_floor`"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_learning("a2c", self)
        _check("a2c.rms_prop_eps", self.rms_prop_eps, "(0, inf)")
        _check("a2c.advantage_std_floor", self.advantage_std_floor, "[0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class PenaltyConfig:
    """What remembering costs: the weight alpha of the span penalty (equation 6), where spans are learned."""

    kind: Literal["constraint", "fixed", "none"] = "constraint"
    """"constraint": charge only while the worst class of episodes still succeeds; "fixed": always `weight`"""
    form: Literal["capped", "all", "ramp"] = "capped"
    """"all": equation 6 on every memory; "capped": the same with a cap on what one memory costs; "ramp": as
    the released code, on fading memories only. An adaptive-span always pays the mean span of its heads"""
    cap_steps: float = 64.0
    """what one memory can cost at most, in steps, in the form "capped" """
    use_steps: float = 0.0
    """steps taken off the cost of a memory older than the ramp, per unit of attention it receives and
    e-folding of its span, so that what is used is kept for longer than training needs it; 0: off. Counts
    from step `memory.ramp` of a rollout on, so not at all in shorter rollouts"""
    weight: float = 1e-5
    """alpha itself if fixed; where it starts under the constraint"""
    max_weight: float = 1e-3
    """the constraint never raises alpha above this"""
    growth: float = 1.02
    """factor per update by which the constraint may raise alpha"""
    shrinkage: float = 0.9
    """factor per update by which it falls again while the worst class fails too often"""
    target_success: float = 0.97
    """nothing is charged before the worst class of episodes succeeds this often; when it no longer does,
    remembering is subsidized"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("penalty.weight", self.weight, "[0, inf)")
        _check("penalty.cap_steps", self.cap_steps, "(0, inf)")
        _check("penalty.use_steps", self.use_steps, "[0, inf)")
        _check("penalty.max_weight", self.max_weight, "[0, inf)")
        _check("penalty.growth", self.growth, "[1, inf)")
        _check("penalty.shrinkage", self.shrinkage, "(0, 1]")
        _check("penalty.target_success", self.target_success, "[0, 1)")
        if self.kind == "constraint" and self.weight > self.max_weight:
            raise ValueError(
                f"penalty.weight ({self.weight}) must not exceed penalty.max_weight ({self.max_weight})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StopConfig:
    """When the task counts as solved and training stops early."""

    success: float | None = 0.99
    """the worst class of recent episodes must succeed this often; none: train all `total_steps`"""
    window_episodes: int = 100
    """how many recent episodes of each class count"""
    min_episodes: int = 30
    """every class must have at least so many of them"""
    retained: float | None = None
    """and no layer may retain more memories than this on average (where spans are learned: no training makes
    other memories smaller); none: not required"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check_optional("stop.success", self.success, "(0, 1]")
        _check("stop.window_episodes", self.window_episodes, "[1, inf)")
        _check("stop.min_episodes", self.min_episodes, "[1, inf)")
        _check_optional("stop.retained", self.retained, "[0, inf)")
        if self.min_episodes > self.window_episodes:
            raise ValueError(
                f"stop.min_episodes ({self.min_episodes}) must not exceed "
                f"stop.window_episodes ({self.window_episodes})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class CurriculumConfig:
    """Begin with an easy task, and make it harder whenever it is solved."""

    argument: str | None = None
    """argument of the environment, a whole number in `env_args`, that grows until it is what it is there; the
    evaluation has its full value from the beginning. none: no curriculum"""
    start: int = 1
    """its first value"""
    factor: float = 2.0
    """its growth each time"""
    success: float = 0.95
    """it grows when the worst class of recent episodes succeeds this often"""
    retained: float | None = None
    """and no layer retains more memories than this on average, so that a longer task does not find everything
    still remembered; none: not required"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("curriculum.start", self.start, "[1, inf)")
        _check("curriculum.factor", self.factor, "(1, inf)")
        _check("curriculum.success", self.success, "(0, 1]")
        _check_optional("curriculum.retained", self.retained, "[0, inf)")

    def after(self, value: int, goal: int) -> int:
        """The value after `value`, at most `goal`."""
        return min(goal, max(value + 1, round(value * self.factor)))


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """The episodes played after training, which training has not seen."""

    episodes: int = 1000
    """how many"""
    seed: int = 12345
    """seeds the environments and the sampled actions"""
    deterministic: bool = False
    """take the most likely action instead of sampling"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("evaluation.episodes", self.episodes, "[1, inf)")
        command_line.check_seed(self.seed, "evaluation.seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Train an agent that learns what to remember and what to forget.

    Defaults come from the preset named like --env, if there is one; --config takes another YAML file;
    what is given here wins. Options may be written with hyphens or underscores, as --name value or
    --name=value.
    """

    env: str = "corridor-long"
    """short name of a memory environment, or any Gymnasium id"""
    env_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="env-arg")] = field(
        default_factory=dict
    )
    """argument of the environment, repeatable; in YAML a mapping called env_args"""
    eval_env_args: Annotated[
        Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="eval-env-arg")
    ] = field(default_factory=dict)
    """argument that the environment has in evaluation only, repeatable; in YAML a mapping"""
    algo: Literal["ppo", "a2c"] = "ppo"
    """learning algorithm; the options of the other one are ignored"""
    total_steps: int = 3_000_000
    """steps to train for, summed over environments, unless solved earlier"""
    num_envs: int = 64
    """environments stepped in parallel"""
    vectorization: Literal["sync", "async"] = "sync"
    """of an environment without a batched twin: "sync": all copies in this process; "async": each in a worker
    process of its own, which pays for slow environments"""
    seed: int = 0
    """seeds Python, NumPy, torch and every environment"""
    threads: int = 1
    """torch's threads; results are reproducible bit for bit only at the same number"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the policy computes; "auto": on a GPU if there is one"""
    run: Path | None = None
    """run folder to create; none: a fresh one under runs/"""
    resume: Path | None = None
    """run folder to continue, with its configuration and its last checkpoint"""
    track: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases; "online" needs an account and falls back to "offline" """
    tensorboard: bool = False
    """also write TensorBoard files into the run folder"""
    csv: bool = False
    """also write metrics.csv into the run folder"""
    video_every: int = 0
    """updates between two videos of an episode and its memories, in the run folder and in W&B; 0: none"""
    checkpoint_every: int = 20
    """updates between two checkpoints"""
    keep_checkpoints: int = 3
    """so many last checkpoints are kept, and the best one"""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not self.env:
            raise ValueError("env must name an environment, got an empty word")
        for option, arguments in (("env_args", self.env_args), ("eval_env_args", self.eval_env_args)):
            for key in arguments:
                if not key.isidentifier():
                    raise ValueError(f"{option}.{key} must be named like a Python argument")
        _check("total_steps", self.total_steps, "[1, inf)")
        _check("num_envs", self.num_envs, "[1, inf)")
        command_line.check_seed(self.seed)
        _check("threads", self.threads, "[1, inf)")
        _check("video_every", self.video_every, "[0, inf)")
        _check("checkpoint_every", self.checkpoint_every, "[1, inf)")
        _check("keep_checkpoints", self.keep_checkpoints, "[1, inf)")
        if self.algo == "ppo" and self.rollout_steps % self.ppo.batch_size:
            raise ValueError(
                f"ppo.batch_size ({self.ppo.batch_size}) must divide ppo.n_steps * num_envs "
                f"({self.ppo.n_steps} * {self.num_envs} = {self.rollout_steps})"
            )
        if self.total_steps < self.rollout_steps:
            raise ValueError(
                f"total_steps ({self.total_steps}) must be at least one rollout: "
                f"{self.algo}.n_steps * num_envs = {self.rollout_steps}"
            )
        argument, start = self.curriculum.argument, self.curriculum.start
        if argument is not None:
            goal = self.env_args.get(argument)
            if not isinstance(goal, int) or isinstance(goal, bool):
                raise ValueError(
                    f"curriculum.argument ({argument}) must be among env_args, with a whole number to grow to"
                )
            if not start < goal:
                raise ValueError(
                    f"curriculum.start ({start}) must be less than env_args.{argument} ({goal}), its goal"
                )
        if self.run is not None and self.resume is not None and self.run != self.resume:
            raise ValueError(
                f"run ({self.run}) and resume ({self.resume}) exclude each other: "
                "a resumed run continues in its own folder"
            )

    @property
    def evaluation_env_args(self) -> dict[str, Scalar]:
        """The environment's arguments in evaluation: those of training, unless it has its own."""
        return {**self.env_args, **self.eval_env_args}

    @property
    def rollout_steps(self) -> int:
        """Steps between two updates, summed over environments."""
        return self.num_envs * (self.ppo.n_steps if self.algo == "ppo" else self.a2c.n_steps)


def load(argv: Sequence[str] | None = None, presets: Path = PRESETS) -> TrainConfig:
    """Read the command line and the YAML file it asks for; a mistake ends the program with exit code 2.

    The file is that of --config, else the configuration of the run that --resume continues, else the
    preset named like --env, if there is one.

    Args:
        argv: words after the program's name; None: those of this process.
        presets: folder of the presets.

    Returns:
        The configuration, checked.
    """
    words = sys.argv[1:] if argv is None else argv
    if command_line.asks_for_help(words):
        _show_help([word for word in words if word not in ("-h", "--help")], presets)
    return command_line.or_exit(lambda: _load(words, presets))


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """Make a configuration from plain types (as `to_dict` does, or part of it).

    Raises:
        ValueError: an unknown key, a wrong type or a value that is refused.
    """
    return command_line.build(
        TrainConfig, command_line.settings_from_mapping(values, command_line.options_of(TrainConfig))
    )


def from_yaml(path: Path) -> TrainConfig:
    """Read a configuration file as it stands, without a command line.

    Raises:
        ValueError: it cannot be read, or a setting in it is refused.
    """
    settings = command_line.settings_from_yaml(path, command_line.options_of(TrainConfig))
    return command_line.build(TrainConfig, settings)


def to_dict(config: Any) -> dict[str, Any]:
    """Any configuration dataclass as plain types: dicts, strings, numbers, booleans and None."""
    result: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, Path):
            value = str(value)
        result[entry.name] = value
    return result


def to_yaml(config: TrainConfig) -> str:
    """The configuration as a file with which `--config FILE` repeats the experiment.

    The run folder is left out: it says where this run is, not what it does.
    """
    values = to_dict(config)
    del values["run"], values["resume"]
    return str(yaml.safe_dump(values, sort_keys=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class _TrainCommand:
    __doc__ = TrainConfig.__doc__

    config: Path | None = None
    """YAML file to read instead of the preset that --env picks"""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


RESUME_MAY_CHANGE = (
    "total_steps",
    "threads",
    "device",
    "run",
    "resume",
    "track",
    "tensorboard",
    "csv",
    "video_every",
    "checkpoint_every",
    "keep_checkpoints",
    "stop.success",
    "stop.retained",
    "evaluation.",
    "eval_env_args",
)
"""options, and groups of them, that a resumed run may be given anew: all others belong to the checkpoint"""


def _load(words: Sequence[str], presets: Path) -> TrainConfig:
    options = command_line.options_of(TrainConfig)
    given = command_line.settings_from_words(words, {**options, "config": Path})
    last = {setting.option: setting.value for setting in given}
    file = _file_to_read(last, presets)
    from_file = [] if file is None else command_line.settings_from_yaml(file, options)
    config = command_line.build(TrainConfig, [*from_file, *(s for s in given if s.option != "config")])
    if config.resume is not None:
        _check_resumed(command_line.build(TrainConfig, from_file), config)
    return config


def _check_resumed(before: TrainConfig, after: TrainConfig) -> None:
    """Refuse to change what the checkpoint has decided: it would be ignored, or half of it would be."""
    old, new = decided(before), decided(after)
    for option in sorted(old.keys() | new.keys()):
        was, is_now = old.get(option), new.get(option)
        if was != is_now:
            raise ValueError(
                f"{option} was {was} when the run began and cannot become {is_now} when it is resumed; "
                f"what can change: {', '.join(name.removesuffix('.') for name in RESUME_MAY_CHANGE)}"
            )


def decided(config: TrainConfig) -> dict[str, Scalar | None]:
    """Every option that belongs to the checkpoint, by its path."""
    return {
        option: value for option, value in _flat(to_dict(config)) if not option.startswith(RESUME_MAY_CHANGE)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of an option's path and its value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _file_to_read(given: Mapping[str, object], presets: Path) -> Path | None:
    if given.get("config") is not None and given.get("resume") is not None:
        raise ValueError("config and resume exclude each other: a resumed run has its own configuration")
    if given.get("config") is not None:
        return Path(str(given["config"]))
    if given.get("resume") is not None:
        file = Path(str(given["resume"])) / "config.yaml"
        if not file.is_file():
            raise ValueError(f"resume: {file.parent} is not a run folder, it has no {file.name}")
        return file
    env = given.get("env", TrainConfig().env)
    return next((path for path in presets.glob("*.yaml") if path.stem == env), None)


def _show_help(words: Sequence[str], presets: Path) -> None:
    """Explain every option, with the defaults of the chosen preset."""
    try:
        default = _TrainCommand(train=_load(words, presets))
    except ValueError:
        default = _TrainCommand()
    command_line.show_help(_TrainCommand, default)


def _check(option: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval such as "[0, 1)".

    Raises:
        ValueError: names the option and says what is allowed.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if above and below:
        return
    if math.isinf(high):
        allowed = f"{'greater than' if interval[0] == '(' else 'at least'} {low:g}, and finite"
        if isinstance(value, int):
            allowed = allowed.removesuffix(", and finite")
        raise ValueError(f"{option} must be {allowed}, got {value}")
    raise ValueError(f"{option} must lie in {interval}, got {value}")


def _check_optional(option: str, value: float | None, interval: str) -> None:
    if value is not None:
        _check(option, value, interval)


def _check_learning(group: str, config: PPOConfig | A2CConfig) -> None:
    """What both algorithms share."""
    _check(f"{group}.learning_rate", config.learning_rate, "(0, inf)")
    _check(f"{group}.n_steps", config.n_steps, "[1, inf)")
    _check(f"{group}.gamma", config.gamma, "[0, 1]")
    _check(f"{group}.gae_lambda", config.gae_lambda, "[0, 1]")
    _check(f"{group}.ent_coef", config.ent_coef, "[0, inf)")
    _check(f"{group}.vf_coef", config.vf_coef, "[0, inf)")
    _check(f"{group}.max_grad_norm", config.max_grad_norm, "(0, inf)")
