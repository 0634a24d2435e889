"""PPO with a memory policy.

Proximal policy optimization: Schulman et al. 2017, https://arxiv.org/abs/1707.06347. Hyperparameters
have stable-baselines3's names and meanings.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import FloatSchedule

from memory_suite.agents.algorithms.on_policy import DEFAULT_LEARNING_RATE, MemoryOnPolicyAlgorithm
from memory_suite.agents.algorithms.rollout_buffer import Minibatch
from memory_suite.agents.defaults import (
    ENT_COEF,
    GAE_LAMBDA,
    GAMMA,
    MAX_GRAD_NORM,
    PPO_BATCH_SIZE,
    PPO_CLIP_RANGE,
    PPO_N_EPOCHS,
    PPO_N_STEPS,
    VF_COEF,
)
from memory_suite.agents.policy.policy import MemoryPolicy


class MemoryPPO(MemoryOnPolicyAlgorithm):
    """Clipped policy gradients; a minibatch is the whole rollout of some environments."""

    SAVED_ARGUMENTS = (
        *MemoryOnPolicyAlgorithm.SAVED_ARGUMENTS,
        "batch_size",
        "n_epochs",
        "clip_range",
        "target_kl",
    )

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        n_steps: int = PPO_N_STEPS,
        batch_size: int = PPO_BATCH_SIZE,
        n_epochs: int = PPO_N_EPOCHS,
        gamma: float = GAMMA,
        gae_lambda: float = GAE_LAMBDA,
        clip_range: float | Schedule = PPO_CLIP_RANGE,
        ent_coef: float = ENT_COEF,
        vf_coef: float = VF_COEF,
        max_grad_norm: float = MAX_GRAD_NORM,
        target_kl: float | None = None,
        **memory_and_algorithm_kwargs: object,
    ) -> None:
        """Build the algorithm; arguments as SB3's PPO, then those of `MemoryOnPolicyAlgorithm`.

        Args:
            policy: "MemoryPolicy" or a class.
            env: a Gymnasium id, an environment or an SB3 VecEnv.
            learning_rate: step size, or a function of the progress remaining (1 to 0).
            n_steps: steps of a rollout per environment; gradients are cut at its beginning.
            batch_size: steps of a minibatch: a multiple of `n_steps`, at most a whole rollout.
            n_epochs: passes over a rollout.
            gamma: discount factor.
            gae_lambda: lambda of generalized advantage estimation.
            clip_range: bound on the change of the probability ratio.
            ent_coef: weight of the entropy bonus.
            vf_coef: weight of the value loss, in units of the size of returns.
            max_grad_norm: largest norm of the gradients of actor and critic; longer ones are scaled down.
            target_kl: end an update early if the approximate KL exceeds 1.5 times this; None: never.
            memory_and_algorithm_kwargs: arguments of `MemoryOnPolicyAlgorithm`.

        Raises:
            ValueError: `batch_size` is not a multiple of `n_steps`, or an argument is out of range.
        """
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            **memory_and_algorithm_kwargs,  # type: ignore[arg-type]
        )
        for name, value in (("batch_size", batch_size), ("n_epochs", n_epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if batch_size % n_steps:
            raise ValueError(
                f"batch_size ({batch_size}) must be a multiple of n_steps ({n_steps}): "
                "a minibatch holds the whole rollouts of some environments"
            )
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = FloatSchedule(clip_range)
        self.target_kl = target_kl

    def train(self) -> None:
        """Update the policy with `n_epochs` passes over the rollout."""
        self.policy.set_training_mode(True)
        num_rows = self.batch_size // self.n_steps
        self._update_learning_rates(self.n_epochs * math.ceil(self.ranks.world_size * self.n_envs / num_rows))
        self.forgetting.begin_update(self.n_epochs, self.device)
        clip_range = self.clip_range(self._current_progress_remaining)
        totals: dict[str, float] = {}
        num_minibatches = 0
        kl_exceeded = False
        for epoch in range(self.n_epochs):
            log_factor_B = self.forgetting.log_factor_B(epoch)
            for minibatch in self.rollout_buffer.minibatches(num_rows, self.ranks, log_factor_B):
                loss, parts = self._loss(minibatch, clip_range)
                if num_minibatches == 0:
                    self.logger.record("train/first_ratio_deviation", parts["ratio_deviation"])
                kl_exceeded = self.target_kl is not None and parts["approx_kl"] > 1.5 * self.target_kl
                if kl_exceeded:
                    break
                self.optimizer_step(loss)
                num_minibatches += 1
                for name, value in parts.items():
                    totals[name] = totals.get(name, 0.0) + value
            if kl_exceeded:
                break
            self._n_updates += 1
        for name, total in totals.items():
            if name != "ratio_deviation":
                self.logger.record(f"train/{name}", total / num_minibatches)
        self.logger.record("train/explained_variance", self.explained_variance())
        self.logger.record("train/n_updates", self._n_updates)
        self.logger.record("train/clip_range", clip_range)

    def _loss(self, minibatch: Minibatch, clip_range: float) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a minibatch.

        Returns:
            This rank's term of the loss, which is the sum over ranks, and the numbers to log.
        """
        evaluation = self.policy.evaluate_block(
            minibatch.features,
            minibatch.actions,
            minibatch.state,
            minibatch.episode_start_BT,
            minibatch.span_limit_BT,
            penalty=self.forgetting.penalty_spec,
            detach_spans=not self.forgetting.task_teaches_spans,
            log_factor_B=minibatch.log_factor_B,
        )
        advantages = self.normalize_advantages(minibatch.advantages_BT, minibatch.share)
        log_ratio = evaluation.log_prob_BT - minibatch.old_log_prob_BT
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        value_loss = F.mse_loss(minibatch.returns_BT, evaluation.values_BT) / self.policy.value_scale.square()
        entropy_loss = -evaluation.entropy_BT.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        loss = loss + self.forgetting.penalty_weight * evaluation.penalty
        with torch.no_grad():
            means = [
                policy_loss,
                value_loss,
                entropy_loss,
                loss,
                # http://joschu.net/blog/kl-approx.html
                ((ratio - 1.0) - log_ratio).mean(),
                ((ratio - 1.0).abs() > clip_range).float().mean(),
            ]
            numbers = self.reduce_over_ranks(means, (ratio - 1.0).abs().max(), minibatch.share)
        names = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss", "approx_kl", "clip_fraction")
        if evaluation.shortened is not None and minibatch.share:
            loss = loss + self.forgetting.loss(evaluation.shortened, len(minibatch.actions))
        return minibatch.share * loss, dict(zip((*names, "ratio_deviation"), numbers, strict=True))
