"""A2C with a memory policy.

Advantage actor-critic: Mnih et al. 2016, https://arxiv.org/abs/1602.01783, in its synchronous form.
Hyperparameters have stable-baselines3's names and meanings.
"""

from __future__ import annotations

import torch.nn.functional as F
from stable_baselines3.common.type_aliases import GymEnv, Schedule

from memory_suite.agents.algorithms.on_policy import DEFAULT_LEARNING_RATE, MemoryOnPolicyAlgorithm
from memory_suite.agents.defaults import A2C_N_STEPS, ENT_COEF, GAE_LAMBDA, GAMMA, MAX_GRAD_NORM, VF_COEF
from memory_suite.agents.policy.policy import MemoryPolicy


class MemoryA2C(MemoryOnPolicyAlgorithm):
    """One gradient step on each rollout."""

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = DEFAULT_LEARNING_RATE,
        n_steps: int = A2C_N_STEPS,
        gamma: float = GAMMA,
        gae_lambda: float = GAE_LAMBDA,
        ent_coef: float = ENT_COEF,
        vf_coef: float = VF_COEF,
        max_grad_norm: float = MAX_GRAD_NORM,
        **memory_and_algorithm_kwargs: object,
    ) -> None:
        """Build the algorithm; arguments as SB3's A2C with Adam, then those of `MemoryOnPolicyAlgorithm`.

        Args:
            policy: "MemoryPolicy" or a class.
            env: a Gymnasium id, an environment or an SB3 VecEnv.
            learning_rate: step size, or a function of the progress remaining (1 to 0).
            n_steps: steps of a rollout per environment; gradients are cut at its beginning.
            gamma: discount factor.
            gae_lambda: lambda of generalized advantage estimation.
            ent_coef: weight of the entropy bonus.
            vf_coef: weight of the value loss, in units of the size of returns.
            max_grad_norm: largest norm of the gradients of actor and critic; longer ones are scaled down.
            memory_and_algorithm_kwargs: arguments of `MemoryOnPolicyAlgorithm`.
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

    def train(self) -> None:
        """Update the policy with one gradient step on the whole rollout."""
        self.policy.set_training_mode(True)
        self._update_learning_rates(1)
        self.forgetting.begin_update(1, self.device)
        num_rows = self.ranks.world_size * self.n_envs
        log_factor_B = self.forgetting.log_factor_B(0)
        (batch,) = self.rollout_buffer.minibatches(num_rows, self.ranks, log_factor_B)
        evaluation = self.policy.evaluate_block(
            batch.features,
            batch.actions,
            batch.state,
            batch.episode_start_BT,
            batch.span_limit_BT,
            penalty=self.forgetting.penalty_spec,
            detach_spans=not self.forgetting.task_teaches_spans,
            log_factor_B=batch.log_factor_B,
        )
        advantages = self.normalize_advantages(batch.advantages_BT, batch.share)
        policy_loss = -(advantages * evaluation.log_prob_BT).mean()
        value_loss = F.mse_loss(batch.returns_BT, evaluation.values_BT) / self.policy.value_scale.square()
        entropy_loss = -evaluation.entropy_BT.mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        loss = loss + self.forgetting.penalty_weight * evaluation.penalty
        with_forgetting = loss
        if evaluation.shortened is not None:
            with_forgetting = loss + self.forgetting.loss(evaluation.shortened, len(batch.actions))
        self.optimizer_step(batch.share * with_forgetting)
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
