"""Options of an agent's training.

A YAML file overrides these defaults and the command line overrides the YAML; both go through the one
parser (`configs.command_line`). A number out of its range or an impossible combination is refused
where the dataclass is built, with a message that names the option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import tyro

from memory_suite.agents import defaults
from memory_suite.agents.model.settings import Method, PenaltyForm
from memory_suite.agents.ranges import check, check_optional
from memory_suite.configs import command_line, run_config
from memory_suite.configs.command_line import Scalar
from memory_suite.configs.model import MemoryConfig, ModelConfig
from memory_suite.configs.run_config import RunConfig

PRESETS = Path(__file__).parent / "presets" / "agents"
"""Folder of the presets that `--env` picks by name."""

METHOD_PRESETS = PRESETS.parent / "methods"
"""Folder of the presets that `--method` picks by name."""

Schedule = Literal["constant", "linear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentMemoryConfig(MemoryConfig):
    """What the policy remembers and for how long; capital letters are the papers' symbols."""

    max_span: int = defaults.MAX_SPAN
    """L: longest span that can be learned, in steps (expire-span, adaptive-span)"""
    initial_span_fraction: float = defaults.INITIAL_SPAN_FRACTION
    """p: initial span, as a fraction of `max_span`"""
    ramp: int = defaults.RAMP
    """R: steps over which an expiring memory fades out. With `--method paper`, which sets 16, spans have a
    gradient of the task loss only there"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyConfig(ModelConfig):
    """The transformer around the memory, and its observations."""

    null_memory: bool = True
    """let heads also attend to a memory of zeros that never expires, so that the context depends less on the
    number of irrelevant memories"""
    normalize_observations: bool = True
    """divide features by their running standard deviation, which makes rare features, such as cues, large"""

    def __post_init__(self) -> None:
        """Validate the options."""
        self.check("policy")


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOConfig:
    """Proximal policy optimization; names and meanings as in stable-baselines3."""

    learning_rate: float = defaults.LEARNING_RATE
    """learning rate of Adam"""
    learning_rate_schedule: Schedule = "linear"
    """"linear": falls to 0 at `total_steps`; "constant": stays"""
    adam_beta2: float = defaults.ADAM_BETAS[1]
    """decay of Adam's second moment. After a task is solved gradients are small, so a rare failure takes a
    step of up to 0.1 / sqrt(1 - adam_beta2) learning rates: 3.2 at 0.999, 1 at 0.99"""
    adam_eps: float = defaults.ADAM_EPS
    """epsilon of Adam: gradients below it take steps in proportion to their size instead of a whole learning
    rate, so that the small gradients of a solved task, mostly noise of the critic, unlearn nothing"""
    n_steps: int = defaults.PPO_N_STEPS
    """steps of each environment between two updates; gradients are cut there, memories are carried on"""
    batch_size: int = defaults.PPO_BATCH_SIZE
    """minibatch, in steps of environments: a multiple of `n_steps` that divides a rollout, `n_steps` *
    `num_envs`. If it exceeds a rollout, the whole rollout is one minibatch"""
    n_epochs: int = defaults.PPO_N_EPOCHS
    """passes over each rollout"""
    gamma: float = defaults.GAMMA
    """discount factor"""
    gae_lambda: float = defaults.GAE_LAMBDA
    """lambda of the advantages: bias against variance (1: Monte Carlo)"""
    critic_lambda: float = defaults.CRITIC_LAMBDA
    """lambda of the critic's targets"""
    clip_range: float = defaults.PPO_CLIP_RANGE
    """bound on the change of the probability ratio"""
    normalize_advantage: bool = True
    """normalize the advantages of each minibatch"""
    advantage_std_floor: float = defaults.ADVANTAGE_STD_FLOOR
    """smallest standard deviation by which advantages are divided, in units of the size of returns. Without
    reward they are noise of the critic, which must not dominate the entropy bonus"""
    ent_coef: float = defaults.ENT_COEF
    """weight of the entropy bonus"""
    vf_coef: float = defaults.VF_COEF
    """weight of the value loss, in units of the size of returns"""
    max_grad_norm: float = defaults.MAX_GRAD_NORM
    """the gradients of actor and critic are scaled down to this norm"""
    target_kl: float | None = None
    """end an update early once the policy has moved 1.5 times this far; none: never"""

    def __post_init__(self) -> None:
        """Validate the options."""
        _check_learning("ppo", self)
        check("ppo.batch_size", self.batch_size, "[1, inf)")
        check("ppo.n_epochs", self.n_epochs, "[1, inf)")
        check("ppo.clip_range", self.clip_range, "(0, inf)")
        check_optional("ppo.target_kl", self.target_kl, "(0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class A2CConfig:
    """Advantage actor-critic; names and meanings as in stable-baselines3."""

    learning_rate: float = defaults.LEARNING_RATE
    """learning rate of Adam"""
    learning_rate_schedule: Schedule = "linear"
    """"linear": falls to 0 at `total_steps`; "constant": stays"""
    adam_beta2: float = defaults.ADAM_BETAS[1]
    """decay of Adam's second moment. After a task is solved gradients are small, so a rare failure takes a
    step of up to 0.1 / sqrt(1 - adam_beta2) learning rates: 3.2 at 0.999, 1 at 0.99"""
    adam_eps: float = defaults.ADAM_EPS
    """epsilon of Adam: gradients below it take steps in proportion to their size instead of a whole learning
    rate, so that the small gradients of a solved task, mostly noise of the critic, unlearn nothing"""
    n_steps: int = defaults.A2C_N_STEPS
    """steps of each environment between two updates; gradients are cut there, memories are carried on"""
    gamma: float = defaults.GAMMA
    """discount factor"""
    gae_lambda: float = defaults.GAE_LAMBDA
    """lambda of the advantages: bias against variance (1: Monte Carlo)"""
    critic_lambda: float = defaults.CRITIC_LAMBDA
    """lambda of the critic's targets"""
    normalize_advantage: bool = True
    """normalize the advantages of each rollout"""
    advantage_std_floor: float = defaults.ADVANTAGE_STD_FLOOR
    """smallest standard deviation by which advantages are divided, in units of the size of returns. Without
    reward they are noise of the critic, which must not dominate the entropy bonus"""
    ent_coef: float = defaults.ENT_COEF
    """weight of the entropy bonus"""
    vf_coef: float = defaults.VF_COEF
    """weight of the value loss, in units of the size of returns"""
    max_grad_norm: float = defaults.MAX_GRAD_NORM
    """the gradients of actor and critic are scaled down to this norm"""

    def __post_init__(self) -> None:
        """Validate the options."""
        _check_learning("a2c", self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PenaltyConfig:
    """The span penalty (equation 6) of `--method paper`; other methods have none."""

    weight: float = defaults.PENALTY_WEIGHT
    """alpha; 0: no penalty"""
    form: PenaltyForm = defaults.PENALTY_FORM
    """cost of a memory. "all": its span, as in equation 6; "log": log(1 + span); "ramp": as in the released
    code, for fading memories only"""

    def __post_init__(self) -> None:
        """Validate the options."""
        check("penalty.weight", self.weight, "[0, inf)")


@dataclass(frozen=True, kw_only=True, slots=True)
class StopConfig:
    """When the task counts as solved and training stops early."""

    success: float | None = 0.99
    """the worst class of recent episodes must succeed this often, and unseen episodes must confirm it; none:
    train all `total_steps`"""
    window_episodes: int = 100
    """number of recent episodes of each class in its success rate"""
    min_episodes: int = 30
    """smallest number of episodes for which a class has a success rate"""
    retained: float | None = None
    """also require that no layer retains more memories than this on average, where spans are learned; none:
    not required"""
    evaluation_success: float | None = None
    """success rate required in `evaluation.episodes` unseen episodes, with another seed than the final
    evaluation, once all other conditions hold; none: `success`; 0: no such evaluation"""
    evaluation_every: int = 10
    """smallest number of updates between two such evaluations"""

    @property
    def required_evaluation_success(self) -> float:
        """Success rate required in unseen episodes; 0: none."""
        return (self.success or 0.0) if self.evaluation_success is None else self.evaluation_success

    def __post_init__(self) -> None:
        """Validate the options."""
        check_optional("stop.success", self.success, "(0, 1]")
        check_optional("stop.evaluation_success", self.evaluation_success, "[0, 1]")
        check("stop.evaluation_every", self.evaluation_every, "[1, inf)")
        check("stop.window_episodes", self.window_episodes, "[1, inf)")
        check("stop.min_episodes", self.min_episodes, "[1, inf)")
        check_optional("stop.retained", self.retained, "[0, inf)")
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

    def __post_init__(self) -> None:
        """Validate the options."""
        check("curriculum.start", self.start, "[1, inf)")
        check("curriculum.factor", self.factor, "(1, inf)")
        check("curriculum.success", self.success, "(0, 1]")

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
        """Validate the options."""
        check("evaluation.episodes", self.episodes, "[1, inf)")
        command_line.check_seed(self.seed, "evaluation.seed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(RunConfig):
    """Train an agent that learns what to remember and what to forget.

    One configuration serves all environments. The preset named like --env, if there is one, says how long to
    train and when to stop; --config takes another YAML file; what is given here wins. Options may be written
    with hyphens or underscores, as --name value or --name=value.
    """

    PRESETS: ClassVar[Path] = PRESETS
    PRESET_OPTION: ClassVar[str] = "env"
    METHOD_PRESETS: ClassVar[Path | None] = METHOD_PRESETS
    RESUME_MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "total_steps",
        *RunConfig.RESUME_MAY_CHANGE,
        "policy.attention",
        "video_every",
        "stop.success",
        "stop.retained",
        "evaluation.",
        "eval_env_args",
    )

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
    method: Method = "counterfactual"
    """how spans learn. "counterfactual": memories are forgotten whose absence changes no action; "paper":
    equation 6 of Expire-Span, with the options of presets/methods/paper.yaml; "none": they do not, and every
    memory is kept for the initial span"""
    algo: Literal["ppo", "a2c"] = "ppo"
    """learning algorithm; the options of the other one are ignored"""
    total_steps: int = 3_000_000
    """steps to train for, summed over environments, unless solved earlier"""
    num_envs: int = 64
    """environments stepped in parallel, by all processes together"""
    vectorization: Literal["sync", "async"] = "sync"
    """of an environment without a batched twin: "sync": all copies in this process; "async": each in a worker
    process of its own, which pays for slow environments"""
    video_every: int = 0
    """updates between two videos of an episode and its memories, in the run folder and in W&B; 0: none"""
    memory: AgentMemoryConfig = field(default_factory=AgentMemoryConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    penalty: PenaltyConfig = field(default_factory=PenaltyConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        """Validate the options."""
        RunConfig.__post_init__(self)
        if not self.env:
            raise ValueError("env must name an environment, got an empty word")
        for option, arguments in (("env_args", self.env_args), ("eval_env_args", self.eval_env_args)):
            for key in arguments:
                if not key.isidentifier():
                    raise ValueError(f"{option}.{key} must be named like a Python argument")
        check("total_steps", self.total_steps, "[1, inf)")
        check("num_envs", self.num_envs, "[1, inf)")
        check("video_every", self.video_every, "[0, inf)")
        if self.algo == "ppo":
            self._check_minibatch()
        if self.total_steps < self.rollout_steps:
            raise ValueError(
                f"total_steps ({self.total_steps}) must be at least one rollout: "
                f"{self.algo}.n_steps * num_envs = {self.rollout_steps}"
            )
        charged = self.memory.learns_spans and self.method == "paper"
        self.policy.check_attention(
            "policy", device=self.device, form=self.penalty.form if charged else None, use_weight=0.0
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

    def _check_minibatch(self) -> None:
        """Raise ValueError unless a rollout consists of whole minibatches, and these of whole rows."""
        ppo = self.ppo
        if self.minibatch_steps % ppo.n_steps:
            raise ValueError(
                f"ppo.batch_size ({ppo.batch_size}) must be a multiple of ppo.n_steps ({ppo.n_steps}): "
                "a minibatch holds the whole rollouts of some environments"
            )
        if self.rollout_steps % self.minibatch_steps:
            raise ValueError(
                f"ppo.batch_size ({ppo.batch_size}) must divide ppo.n_steps * num_envs "
                f"({ppo.n_steps} * {self.num_envs} = {self.rollout_steps})"
            )

    @property
    def label(self) -> str:
        """Name of a new run folder, before the time."""
        return f"{self.env}-{self.algo}-seed{self.seed}"

    @property
    def evaluation_env_args(self) -> dict[str, Scalar]:
        """The environment's arguments in evaluation: those of training, unless it has its own."""
        return {**self.env_args, **self.eval_env_args}

    @property
    def rollout_steps(self) -> int:
        """Steps between two updates, summed over environments."""
        return self.num_envs * (self.ppo.n_steps if self.algo == "ppo" else self.a2c.n_steps)

    @property
    def minibatch_steps(self) -> int:
        """Steps of a minibatch of PPO, summed over environments."""
        return min(self.ppo.batch_size, self.num_envs * self.ppo.n_steps)


def load(argv: Sequence[str] | None = None, presets: Path = PRESETS) -> TrainConfig:
    """`run_config.load` for agents."""
    return run_config.load(TrainConfig, argv, presets)


def from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """`run_config.from_dict` for agents."""
    return run_config.from_dict(TrainConfig, values)


def from_yaml(path: Path) -> TrainConfig:
    """`run_config.from_yaml` for agents."""
    return run_config.from_yaml(TrainConfig, path)


def _check_learning(group: str, config: PPOConfig | A2CConfig) -> None:
    """What both algorithms share."""
    check(f"{group}.learning_rate", config.learning_rate, "(0, inf)")
    check(f"{group}.adam_beta2", config.adam_beta2, "[0, 1)")
    check(f"{group}.adam_eps", config.adam_eps, "(0, inf)")
    check(f"{group}.n_steps", config.n_steps, "[1, inf)")
    check(f"{group}.gamma", config.gamma, "[0, 1]")
    check(f"{group}.gae_lambda", config.gae_lambda, "[0, 1]")
    check(f"{group}.critic_lambda", config.critic_lambda, "[0, 1]")
    check(f"{group}.advantage_std_floor", config.advantage_std_floor, "[0, inf)")
    check(f"{group}.ent_coef", config.ent_coef, "[0, inf)")
    check(f"{group}.vf_coef", config.vf_coef, "[0, inf)")
    check(f"{group}.max_grad_norm", config.max_grad_norm, "(0, inf)")
