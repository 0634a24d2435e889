"""A2C with a memory policy.

Advantage actor-critic: Mnih et al. 2016, https://arxiv.org/abs/1602.01783, in its synchronous form.
Hyperparameters have stable-baselines3's names and meanings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.policy.policy import MemoryPolicy


class MemoryA2C(MemoryOnPolicyAlgorithm):
    """One gradient step on each rollout."""

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = 7e-4,
        n_steps: int = 5,
        gamma: float = 0.99,
        gae_lambda: float = 1.0,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        rms_prop_eps: float = 1e-5,
        use_rms_prop: bool = True,
        normalize_advantage: bool = False,
        policy_kwargs: dict[str, Any] | None = None,
        **memory_and_algorithm_kwargs: object,
    ) -> None:
        """Build the algorithm; arguments as SB3's A2C, then those of `MemoryOnPolicyAlgorithm`.

        Args:
            policy: "MemoryPolicy" or a class.
            env: a Gymnasium id, an environment or an SB3 VecEnv.
            learning_rate: step size, or a function of the progress remaining (1 to 0).
            n_steps: steps of a rollout per environment; gradients are cut at its beginning.
            gamma: discount factor.
            gae_lambda: lambda of generalized advantage estimation.
            ent_coef: weight of the entropy bonus.
            vf_coef: weight of the value loss.
            max_grad_norm: largest norm of the gradient; longer ones are scaled down.
            normalize_advantage: normalize advantages in each gradient step; off, as in SB3.
            rms_prop_eps: epsilon of RMSprop.
            use_rms_prop: RMSprop instead of Adam.
            policy_kwargs: arguments of `MemoryPolicy`.
            memory_and_algorithm_kwargs: arguments of `MemoryOnPolicyAlgorithm`.
        """
        policy_kwargs = {} if policy_kwargs is None else dict(policy_kwargs)
        # Always set: a saved model restores its optimizer from `policy_kwargs`.
        if "optimizer_class" not in policy_kwargs and use_rms_prop:
            policy_kwargs["optimizer_class"] = torch.optim.RMSprop
            policy_kwargs["optimizer_kwargs"] = {"alpha": 0.99, "eps": rms_prop_eps, "weight_decay": 0}
        policy_kwargs.setdefault("optimizer_class", torch.optim.Adam)
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
            normalize_advantage=normalize_advantage,
            use_sde=False,
            sde_sample_freq=-1,
            policy_kwargs=policy_kwargs,
            **memory_and_algorithm_kwargs,  # type: ignore[arg-type]
        )

    def train(self) -> None:
        """Update the policy with one gradient step on the whole rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        (batch,) = self.rollout_buffer.minibatches(self.ranks.world_size * self.n_envs, self.ranks)
        penalty = self.span_penalty
        evaluation = self.policy.evaluate_block(
            batch.features,
            batch.actions,
            batch.state,
            batch.episode_start_BT,
            batch.span_limit_BT,
            penalty=penalty.spec,
        )
        advantages = self.normalize_advantages(batch.advantages_BT, batch.share)
        policy_loss = -(advantages * evaluation.log_prob_BT).mean()
        value_loss = F.mse_loss(batch.returns_BT, evaluation.values_BT)
        entropy_loss = -evaluation.entropy_BT.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        if penalty.spec is not None:
            loss = loss + penalty.weight * evaluation.penalty
        self.optimizer_step(batch.share * loss)
        self._n_updates += 1

        deviation = (evaluation.log_prob_BT.detach() - batch.old_log_prob_BT).exp() - 1.0
        means = [part.detach() for part in (policy_loss, value_loss, entropy_loss, loss)]
        numbers = self.reduce_over_ranks(means, deviation.abs().max(), batch.share)
        names = ("policy_gradient_loss", "value_loss", "entropy_loss", "loss", "first_ratio_deviation")
        record = self.logger.record
        for name, number in zip(names, numbers, strict=True):
            record(f"train/{name}", number)
        record("train/explained_variance", self.explained_variance())
        record("train/n_updates", self._n_updates)
