"""The memory policy: encoder, memory transformer, actor and critic heads.

A stable-baselines3 policy whose recurrent "state" is a `MemoryState`: pass what `predict` returned
back in, together with `episode_start`, as SB3's documentation asks of recurrent policies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.distributions import Distribution, kl_divergence, make_proba_distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

from memory_suite.agents.defaults import ADAM_BETAS, ADAM_EPS, INITIAL_SPAN_FRACTION, MAX_SPAN, RAMP
from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext
from memory_suite.agents.model.init import orthogonal
from memory_suite.agents.model.layer import MemoryDetail, StepReport
from memory_suite.agents.model.settings import PenaltySpec, TransformerSettings
from memory_suite.agents.model.shortening import ShortenedEffect, shortened_effect
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer
from memory_suite.agents.policy.encoders import Features, ObservationEncoder
from memory_suite.agents.serialization.archive import read_archive, write_archive
from memory_suite.agents.serialization.spaces import decode_space, encode_space

CRITIC_TRUNK_SHARE = 0.1
"""Share of the critic's gradient that reaches the transformer. With all of it, what is easy to predict of
returns (such as the time) displaces what the actions need."""
ACTOR_GAIN = 0.01
"""orthogonal gain of the action head, so that the first policy is uniform (as in SB3's PPO)"""


POLICY_DEFAULTS: dict[str, Any] = {
    "max_span": MAX_SPAN,
    "initial_span_fraction": INITIAL_SPAN_FRACTION,
    "ramp": RAMP,
    "null_memory": True,
}
"""settings of the transformer that differ from those of sequence models"""


class PolicyStep(NamedTuple):
    """The policy's output in one step."""

    actions: Tensor
    values_B: Float[Tensor, " B"]
    log_prob_B: Float[Tensor, " B"]
    state: MemoryState
    reports: list[StepReport]
    distribution: Distribution
    """distribution of the actions; valid until the policy acts again"""


class ActionEvaluation(NamedTuple):
    """The policy's evaluation of a rollout's actions."""

    values_BT: Float[Tensor, "B T"]
    log_prob_BT: Float[Tensor, "B T"]
    entropy_BT: Float[Tensor, "B T"]
    penalty: Float[Tensor, ""]
    """the span penalty (`BlockOutput.span_penalty`); 0 without a `PenaltySpec`"""
    shortened: ShortenedEffect | None
    """effect of shorter spans, if any row is evaluated"""


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Disable torch's checks that parameters of distributions are finite and in range.

    Each check synchronizes with the GPU. Inputs are checked by `not_finite`, losses by
    `MemoryOnPolicyAlgorithm.optimizer_step`.
    """
    checks = torch.distributions.Distribution._validate_args  # torch has no public getter
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(checks)


class MemoryPolicy(BasePolicy):
    """Actor and critic on a transformer with a memory: Expire-Span by default, or another kind."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        normalize_observations: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        **transformer_kwargs: Any,
    ) -> None:
        """Build the policy.

        Args:
            observation_space: Box, Discrete, MultiDiscrete, MultiBinary, images, or a Dict of these.
            action_space: Discrete, MultiDiscrete, MultiBinary or Box.
            lr_schedule: learning rate as a function of the progress remaining (1 to 0).
            normalize_observations: divide features by their running standard deviation.
            optimizer_class: class of the optimizer.
            optimizer_kwargs: its arguments besides the learning rate.
            use_sde: must be False; state-dependent exploration is not offered.
            transformer_kwargs: fields of `TransformerSettings`, of which some have defaults of their own
                here, those of `POLICY_DEFAULTS`.

        Raises:
            TypeError: `transformer_kwargs` names something else.
            ValueError: a space or a setting is not supported.
        """
        super().__init__(
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        if isinstance(action_space, spaces.MultiDiscrete) and action_space.nvec.ndim != 1:
            raise ValueError(f"action_space must be a flat MultiDiscrete, got {action_space}")
        if use_sde:
            raise ValueError("use_sde=True is not offered by MemoryPolicy; set it to False")
        settings = TransformerSettings(**{**POLICY_DEFAULTS, **transformer_kwargs})
        width = settings.width
        self.encoder = ObservationEncoder(observation_space, width, normalize=normalize_observations)
        self.transformer = MemoryTransformer(settings)
        self.action_dist = make_proba_distribution(action_space)
        head: Any = self.action_dist.proba_distribution_net(latent_dim=width)
        self.log_std: nn.Parameter | None = None
        if isinstance(action_space, spaces.Box):
            self.action_net, self.log_std = head
        else:
            self.action_net = head
        self.value_body = nn.Sequential(orthogonal(nn.Linear(width, 2 * width), gain=2**0.5), nn.ReLU())
        self.value_net = nn.Linear(2 * width, 1)
        self.value_mean: Tensor
        self.value_scale: Tensor
        self.register_buffer("value_mean", torch.zeros(()))
        self.register_buffer("value_scale", torch.ones(()))
        self.action_net.apply(lambda module: self.init_weights(module, gain=ACTOR_GAIN))
        # The critic starts at 0 everywhere. The first updates see no reward and would learn from random
        # values alone, which can teach a policy to stay where it is (docs/results.md).
        nn.init.zeros_(self.value_net.weight)
        nn.init.zeros_(self.value_net.bias)
        options = dict(self.optimizer_kwargs)
        if self.optimizer_class is torch.optim.Adam:
            options.setdefault("fused", True)  # one kernel for all weights instead of one for each
            options.setdefault("betas", ADAM_BETAS)
            options.setdefault("eps", ADAM_EPS)
        self.optimizer = self.optimizer_class(self._parameter_groups(), lr=lr_schedule(1), **options)  # type: ignore[call-arg]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters of the optimizer by name: "critic", "spans" (if spans are learned) and "others"."""
        layers = self.transformer.layers if self.transformer.settings.remembers else []
        groups: dict[str, list[nn.Parameter]] = {
            "critic": [*self.value_body.parameters(), *self.value_net.parameters()],
            "spans": [parameter for layer in layers for parameter in layer.retention.parameters()],
        }
        named = {id(parameter) for group in groups.values() for parameter in group}
        groups["others"] = [parameter for parameter in self.parameters() if id(parameter) not in named]
        return [{"params": group, "name": name} for name, group in groups.items() if group]

    def save(self, path: str | Path) -> None:
        """Write the policy alone, without the state of its training, to a safe archive."""
        settings = asdict(self.transformer.settings)
        data = {
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "arguments": {**settings, "normalize_observations": self.encoder.normalize},
        }
        write_archive(Path(path), self.state_dict(), data)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "auto") -> MemoryPolicy:
        """Load a policy that `save` wrote, without running code; raises ArchiveError for a damaged file."""
        tensors, data = read_archive(Path(path))
        observations, actions = decode_space(data["observation_space"]), decode_space(data["action_space"])
        policy = cls(observations, actions, cls._dummy_schedule, **data["arguments"])
        policy.load_state_dict(tensors)
        return policy.to(get_device(device))

    def initial_state(self, batch: int) -> MemoryState:
        """Empty memories for `batch` environments."""
        return self.transformer.initial_state(batch)

    @torch.no_grad()
    @_unchecked_distributions()
    def act(
        self,
        features: Features,
        state: MemoryState,
        episode_start_B: Bool[Tensor, " B"],
        span_limit_B1: Float[Tensor, "B 1"] | None = None,
        *,
        cue_B: Int[Tensor, " B"] | None = None,
        deterministic: bool = False,
        details: list[MemoryDetail] | None = None,
        ranks: DistributedContext = SINGLE_PROCESS,
    ) -> PolicyStep:
        """Choose an action for each environment; `state` is updated in place.

        `details`, if given, receives what each layer saw (see `MemoryTransformer.step`). With several `ranks`
        every rank samples for the environments of all, so that samples do not depend on the number of ranks.
        """
        output = self.transformer.step(
            self.encoder(features), state, episode_start_B, span_limit_B1, cue_B=cue_B, details=details
        )
        parameters = self.action_net(output.y_BD)
        if ranks.is_distributed and not deterministic:
            all_actions = self._distribution(ranks.padded(parameters)).get_actions()
            actions = all_actions[ranks.rows(len(parameters))]
            distribution = self._distribution(parameters)
        else:
            distribution = self._distribution(parameters)
            actions = distribution.get_actions(deterministic=deterministic)
        values_B = self.values(output.y_BD)
        log_prob_B = distribution.log_prob(actions)
        return PolicyStep(actions, values_B, log_prob_B, output.state, output.reports, distribution)

    @torch.no_grad()
    def predict_values(
        self,
        features: Features,
        state: MemoryState,
        episode_start_B: Bool[Tensor, " B"],
        span_limit_B1: Float[Tensor, "B 1"] | None = None,
    ) -> Float[Tensor, " B"]:
        """The critic's values of observations given the memory, which is not changed."""
        output = self.transformer.step(
            self.encoder(features), state, episode_start_B, span_limit_B1, write=False
        )
        return self.values(output.y_BD)

    def values(self, y: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
        """The critic's values of hidden states, in units of reward."""
        y = y.detach() + CRITIC_TRUNK_SHARE * (y - y.detach()) if y.requires_grad else y
        return self.value_mean + self.value_scale * self.value_net(self.value_body(y)).squeeze(-1)

    @torch.no_grad()
    def rescale_values(self, mean: float, scale: float, *, preserve: bool) -> None:
        """Let the critic's head predict values in units of `scale` around `mean`.

        Args:
            mean: in units of reward.
            scale: in units of reward.
            preserve: change the head such that all values stay the same (PopArt,
                https://arxiv.org/abs/1602.07714).
        """
        if preserve:
            self.value_net.weight.mul_(self.value_scale / scale)
            self.value_net.bias.mul_(self.value_scale).add_(self.value_mean - mean).div_(scale)
        self.value_mean.fill_(mean)
        self.value_scale.fill_(scale)

    @_unchecked_distributions()
    def evaluate_block(
        self,
        features: Features,
        actions: Tensor,
        state: MemoryState,
        episode_start_BT: Bool[Tensor, "B T"],
        span_limit_BT: Float[Tensor, "B T"] | None = None,
        *,
        penalty: PenaltySpec | None = None,
        detach_spans: bool = False,
        log_factor_B: Float[Tensor, " B"] | None = None,
    ) -> ActionEvaluation:
        """Values, log-probabilities and entropy of a rollout's actions, with gradients.

        `penalty` and `detach_spans` are those of `MemoryTransformer.block`, `log_factor_B` is that of
        `shortened_effect`.
        """
        x_BTD = self.encoder(features)
        output = self.transformer.block(
            x_BTD,
            state,
            episode_start_BT,
            span_limit_BT,
            penalty=penalty,
            detach_spans=detach_spans,
            need_state=False,
        )
        batch, num_steps = episode_start_BT.shape
        distribution = self._distribution(self.action_net(output.y_BWD.flatten(0, 1)))
        log_prob_BT = distribution.log_prob(actions.flatten(0, 1)).view(batch, num_steps)
        entropy = distribution.entropy()
        assert entropy is not None  # only squashed distributions have none
        values_BT = self.values(output.y_BWD)
        charge = values_BT.new_zeros(()) if penalty is None else output.span_penalty()
        shortened = None
        if log_factor_B is not None and not bool(log_factor_B.isnan().all()):

            def divergence(rows_N: Tensor, y_NTD: Tensor) -> Tensor:
                with torch.no_grad():  # a copy, since SB3 distributions are changed in place
                    full = self._distribution(
                        self.action_net(output.y_BWD[rows_N].flatten(0, 1)), copy(self.action_dist)
                    )
                other = self._distribution(self.action_net(y_NTD.flatten(0, 1)), copy(self.action_dist))
                kl = kl_divergence(full, other)
                return (kl if kl.dim() == 1 else kl.sum(1)).view(len(rows_N), num_steps)

            shortened = shortened_effect(
                self.transformer, x_BTD, state, episode_start_BT, log_factor_B, divergence
            )
        return ActionEvaluation(values_BT, log_prob_BT, entropy.view(batch, num_steps), charge, shortened)

    def _distribution(
        self, parameters: Float[Tensor, "N parameters"], kind: Distribution | None = None
    ) -> Distribution:
        kind = self.action_dist if kind is None else kind
        if self.log_std is not None:
            return kind.proba_distribution(parameters, self.log_std)
        return kind.proba_distribution(parameters)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Act on a single observation as if an episode began with it."""
        episode_start_B = torch.ones(_batch_size(observation), dtype=torch.bool, device=self.device)
        state = self.initial_state(len(episode_start_B))
        return self.act(
            self.encoder.preprocess(observation), state, episode_start_B, deterministic=deterministic
        ).actions

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Act without effects on training: no observation statistics are collected, no layer is dropped."""
        training, collecting = self.training, self.encoder.collecting
        self.set_training_mode(False)
        self.encoder.collecting = False
        try:
            yield
        finally:
            self.encoder.collecting = collecting
            self.set_training_mode(training)

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: MemoryState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, MemoryState]:
        """Actions for observations, and the memory to pass to the next call.

        Args:
            observation: one observation or a batch of them.
            state: memory that the last call returned; None: empty. It is not changed.
            episode_start: [B] True where this observation begins an episode; None: where `state` is empty.
            deterministic: take the most likely action instead of sampling.

        Raises:
            ValueError: an observation is not finite, or the numbers of observations, memories and episode
                starts differ.
        """
        fault = not_finite(observation)
        if fault is not None:
            raise ValueError(fault)
        tensor, vectorized = self.obs_to_tensor(observation)
        batch = _batch_size(tensor)
        state = self.initial_state(batch) if state is None else state.clone()
        if state.batch_size != batch:
            raise ValueError(
                f"state remembers {state.batch_size} environments, but {batch} observations were given"
            )
        if episode_start is None:
            episode_start_B = state.clock_B == 0
        else:
            episode_start_B = (
                torch.as_tensor(np.asarray(episode_start), device=self.device).bool().reshape(-1)
            )
            if len(episode_start_B) != batch:
                raise ValueError(f"episode_start is of {len(episode_start_B)} environments, not of {batch}")
        with self.watching():
            features = self.encoder.preprocess(tensor)
            policy_step = self.act(features, state, episode_start_B, deterministic=deterministic)
        actions = self.to_env(policy_step.actions)
        return (actions if vectorized else actions.squeeze(axis=0)), policy_step.state

    def to_env(self, actions: Tensor) -> np.ndarray:
        """Convert actions to the shape and range of the action space; boxes are clipped."""
        shape = self.action_space.shape
        assert shape is not None
        array: np.ndarray = actions.cpu().numpy().reshape((-1, *shape))
        match self.action_space:
            case spaces.Box():
                array = array.clip(self.action_space.low, self.action_space.high)
            case spaces.Discrete() | spaces.MultiDiscrete():
                array = array + self.action_space.start
        return array.astype(self.action_space.dtype)  # torch samples floats for MultiBinary


def not_finite(observation: object) -> str | None:
    """Describe the first observation that has a NaN or infinite number; None if there is none."""
    parts = observation.items() if isinstance(observation, dict) else [("", observation)]
    for name, part in parts:
        values = np.asarray(part)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            row, *_ = (int(index[0]) for index in np.nonzero(~np.isfinite(np.atleast_2d(values))))
            what = f"the observation {name!r}" if name else "the observation"
            return f"{what} of environment {row} is not finite"
    return None


def _batch_size(observation: PyTorchObs) -> int:
    first = next(iter(observation.values())) if isinstance(observation, dict) else observation
    return int(first.shape[0])
