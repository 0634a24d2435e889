"""How an agent learns what to forget.

- "counterfactual": the rule of `agents.model.shortening`. Spans learn from the memories whose absence changes
  the distribution of actions, and nothing else. It needs nothing from the environment: no reported success,
  no classes of episodes, no horizon. One environment in `FULL_MEMORY_INTERVAL` keeps all memories for at
  least the initial span, so that a memory can prove useful although its span is too short.
- "paper": equation 6 of Expire-Span (https://arxiv.org/abs/2105.06548): spans pay a penalty of constant
  weight, and learn from the task loss through the ramp.
- "none": spans stay as they are.

The pace of forgetting follows how much actions depend on memory (`Reliance`): before the first reward, hardly
anything is used, so hardly anything is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from memory_suite.agents.defaults import PENALTY_FORM, PENALTY_WEIGHT
from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext
from memory_suite.agents.model.settings import Method, PenaltySettings, PenaltySpec
from memory_suite.agents.model.shortening import RAMP_EFOLDINGS, ShortenedEffect, sample_log_factors
from memory_suite.agents.model.transformer import MemoryTransformer

DEFAULT_PENALTY = PenaltySettings(weight=PENALTY_WEIGHT, form=PENALTY_FORM)
"""penalty of the method "paper" """
FULL_MEMORY_INTERVAL = 4
"""One of so many environments keeps all memories, the last of each group; with fewer environments none
does."""
FORGETTING_TIME = 0.1
"""share of the training in which the span of a memory without use can fall from the initial span to one
step"""
EFOLDINGS_PER_RATE = 6.0
"""E-foldings by which a gradient step shortens the spans of useless memories, per unit of the rate; measured
for width 64"""
GREATEST_SPAN_RATE = 6e-3
"""upper bound of the rate at which spans learn"""
SPAN_ADAM_EPS = 10.0
"""Adam's epsilon for spans, whose gradients have a known scale: that of the cost is about 1. With an epsilon
above most gradients, steps are in proportion to them. The rare large gradient of a memory that is missed
lengthens its span at once, and the small steady one of the cost shortens spans slowly. Divided by their size,
as with a small epsilon, both would move spans alike, and needed memories were forgotten now and then."""
FULL_RELIANCE = 0.3
"""reliance from which spans learn at full pace"""
SMALLEST_PACE = 0.1
"""pace without reliance, so that memory is bounded on tasks that need none"""
RELIANCE_DECAY = 0.95
"""decay of the sums of `Reliance` per update"""


@dataclass(slots=True)
class Reliance:
    """How much actions depend on memory, from the effects of leaving all of it out.

    The mean effect, each step weighted by its effect: a few steps at which memory decides everything count, a
    small effect at all steps does not.
    """

    total: float = 0.0
    """decayed sum of the effects"""
    squares: float = 0.0
    """decayed sum of their squares"""

    @property
    def value(self) -> float:
        """Between 0 (no action depends on memory) and 1."""
        return self.squares / self.total if self.total > 0.0 else 0.0

    @property
    def pace(self) -> float:
        """Factor on the learning rate of spans."""
        return min(1.0, max(SMALLEST_PACE, self.value / FULL_RELIANCE))

    def update(self, total: float, squares: float) -> None:
        """Add the sums of an update."""
        self.total = RELIANCE_DECAY * self.total + total
        self.squares = RELIANCE_DECAY * self.squares + squares


class Forgetting:
    """The method by which spans learn, during the training of one agent."""

    def __init__(
        self,
        method: Method,
        penalty: PenaltySettings,
        transformer: MemoryTransformer,
        *,
        num_envs: int,
        ranks: DistributedContext = SINGLE_PROCESS,
    ) -> None:
        """Begin.

        Args:
            method: one of the module's docstring; without learned spans it is "none".
            penalty: the penalty of the method "paper".
            transformer: the transformer whose spans learn.
            num_envs: number of environments of this rank.
            ranks: process group.
        """
        self.method: Method = method if transformer.learns_spans else "none"
        self._penalty = penalty
        self._ranks = ranks
        self._num_envs = num_envs
        settings = transformer.settings
        self._initial_span = settings.initial_span_fraction * settings.max_span
        self.reliance = Reliance()
        self.log_factor_BE: Tensor | None = None
        """log of the factor on the spans of each environment in each epoch of the update; NaN: not
        evaluated"""
        self._sums = [0.0] * 4

    @property
    def full_memory_N(self) -> Bool[Tensor, " N"]:
        """The environments of all ranks that keep all memories."""
        index_N = torch.arange(self._ranks.world_size * self._num_envs)
        last = FULL_MEMORY_INTERVAL - 1
        return (index_N % FULL_MEMORY_INTERVAL == last) & (self.method == "counterfactual")

    @property
    def full_memory_B(self) -> Bool[Tensor, " B"]:
        """The environments of this rank that keep all memories."""
        return self.full_memory_N[self._ranks.rows(self._num_envs)]

    def span_floor_B(self, device: torch.device) -> Float[Tensor, " B"] | None:
        """Lower bound of the spans of each environment, in steps; None: there is none."""
        if not bool(self.full_memory_N.any()):
            return None
        return self._initial_span * self.full_memory_B.float().to(device)

    @property
    def penalty_spec(self) -> PenaltySpec | None:
        """The penalty to compute; None: there is none."""
        return self._penalty.spec(self._penalty.weight) if self.method == "paper" else None

    @property
    def penalty_weight(self) -> float:
        """Weight alpha of the penalty."""
        return self._penalty.weight if self.method == "paper" else 0.0

    @property
    def task_teaches_spans(self) -> bool:
        """Whether the gradient of the task's loss reaches spans."""
        return self.method == "paper"

    def begin_update(self, num_epochs: int, device: torch.device) -> None:
        """Draw the factors on spans: each environment that is evaluated is evaluated in one epoch."""
        self._sums = [0.0] * 4
        if self.method != "counterfactual":
            return
        evaluated_N = self.full_memory_N
        if not bool(evaluated_N.any()):
            evaluated_N = torch.ones_like(evaluated_N)
        shape = (len(evaluated_N),)
        epoch_N = torch.randint(num_epochs, shape, device=device)
        log_factor_N1 = sample_log_factors(shape, device).unsqueeze(1)
        is_epoch_NE = epoch_N.unsqueeze(1) == torch.arange(num_epochs, device=device)
        is_epoch_NE &= evaluated_N.to(device).unsqueeze(1)
        log_factor_NE = torch.where(is_epoch_NE, log_factor_N1, torch.nan)
        self.log_factor_BE = log_factor_NE[self._ranks.rows(self._num_envs)]
        self._evaluated_share = float(evaluated_N.float().mean()) / num_epochs

    def log_factor_B(self, epoch: int) -> Float[Tensor, " B"] | None:
        """The factors of an epoch; None: no row is evaluated."""
        return None if self.log_factor_BE is None else self.log_factor_BE[:, epoch]

    def loss(self, effect: ShortenedEffect, num_rows: int) -> Float[Tensor, ""]:
        """The method's term of the loss of a minibatch of `num_rows` rows; counts the effect."""
        nothing_N = effect.log_factor_N == -torch.inf
        near_N = (effect.log_factor_N <= 0.0) & (effect.log_factor_N >= -RAMP_EFOLDINGS)
        nothing, near = effect.effect_NW[nothing_N], effect.effect_NW[near_N]
        sums = torch.stack([nothing.sum(), nothing.square().sum(), near.sum()]).tolist()
        for index, value in enumerate([*sums, float(near.numel())]):
            self._sums[index] += value
        return effect.loss / (num_rows * self._evaluated_share)

    def end_update(self) -> dict[str, float]:
        """Update the reliance; returns metrics by name in the log."""
        if self.method != "counterfactual":
            return {}
        total, squares, near, count = self._ranks.all_reduce_sum(
            torch.tensor(self._sums, dtype=torch.float64)
        ).tolist()
        self.reliance.update(total, squares)
        metrics = {"forgetting/reliance": self.reliance.value}
        if count:
            metrics["train/forgetting_effect"] = near / count
        return metrics

    def set_learning_rate(
        self, optimizer: torch.optim.Optimizer, *, progress_remaining: float, gradient_steps: float
    ) -> float | None:
        """Set the learning rate of spans, and Adam's epsilon for them. Another optimizer keeps its own.

        Args:
            optimizer: the policy's optimizer.
            progress_remaining: 1 at the beginning of the training, 0 at its end.
            gradient_steps: number of gradient steps of the whole training.

        Returns:
            The rate at which spans learn: their learning rate in units of epsilon. None: that of all weights.
        """
        groups = [group for group in optimizer.param_groups if group.get("name") == "spans"]
        if self.method != "counterfactual" or "eps" not in optimizer.defaults:
            return None
        efoldings = max(math.log(self._initial_span), 1.0) if self._initial_span > 1.0 else 1.0
        rate = efoldings / (EFOLDINGS_PER_RATE * max(FORGETTING_TIME * gradient_steps, 1.0))
        rate = progress_remaining * self.reliance.pace * min(rate, GREATEST_SPAN_RATE)
        for group in groups:
            group["lr"] = rate * SPAN_ADAM_EPS
            group["eps"] = SPAN_ADAM_EPS
        return rate

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint."""
        return {"total": self.reliance.total, "squares": self.reliance.squares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.reliance = Reliance(**state)


def check_method(method: str, penalty: PenaltySettings) -> None:
    """Raise ValueError for an unknown method, or a penalty that agents do not offer."""
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}")
    if penalty.use_weight:
        raise ValueError(
            f"penalty.use_weight ({penalty.use_weight:g}) is not offered for agents; "
            "use method='counterfactual'"
        )
