"""The base class of PPO and A2C: collects rollouts with a memory, and logs one row of metrics per update.

Words: an **iteration** is a **rollout** (n_steps x n_envs) followed by an **update** (n_epochs over
its minibatches). A **step** is one step of one environment; `num_timesteps` sums over environments.

A stable-baselines3 algorithm: `learn`, `predict`, `save`, `load`, callbacks, `evaluate_policy` and the
logger are SB3's, but files are safe archives (`agents.serialization.archive`), never pickles.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import LinearSchedule, explained_variance, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from memory_suite.agents.algorithms.checkpointing import CheckpointedAlgorithm
from memory_suite.agents.algorithms.forgetting import DEFAULT_PENALTY, Forgetting, check_method
from memory_suite.agents.algorithms.return_scale import ReturnScale
from memory_suite.agents.algorithms.rollout_buffer import RolloutBuffer
from memory_suite.agents.algorithms.span_shortening import RandomShortening
from memory_suite.agents.algorithms.stopwatch import Stopwatch
from memory_suite.agents.defaults import ADVANTAGE_STD_FLOOR, CRITIC_LAMBDA, LEARNING_RATE
from memory_suite.agents.diagnostics.memory_metrics import retained_ages
from memory_suite.agents.diagnostics.rollout_diagnostics import RolloutDiagnostics
from memory_suite.agents.diagnostics.success_window import EPISODE_BASICS, SuccessWindow
from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext, cat_rows
from memory_suite.agents.model.settings import Method, PenaltySettings
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.encoders import Features
from memory_suite.agents.policy.policy import MemoryPolicy, not_finite

SMALLEST_ADVANTAGE_STD = 1e-30
"""lower bound of the divisor, for advantages that are all 0; far below any unit of reward"""
DEFAULT_LEARNING_RATE = LinearSchedule(LEARNING_RATE, 0.0, 1.0)
"""falls linearly to 0"""
STATISTICS_ROLLOUTS = 10
"""number of rollouts in which statistics of observations are collected; afterwards they are fixed"""


class NonFiniteLossError(RuntimeError):
    """Training cannot continue: the loss or its gradient is NaN or infinite."""


Self = TypeVar("Self", bound="MemoryOnPolicyAlgorithm")


class MemoryOnPolicyAlgorithm(CheckpointedAlgorithm):
    """On-policy learning with a memory policy; subclasses implement `train`."""

    SAVED_ARGUMENTS: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "n_steps",
        "gamma",
        "gae_lambda",
        "critic_lambda",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
        "normalize_advantage",
        "advantage_std_floor",
        "method",
        "penalty",
        "random_shortening",
        "success_window_episodes",
        "success_min_episodes",
        "policy_kwargs",
        "seed",
        "tensorboard_log",
        "verbose",
    )
    """constructor arguments that a saved model contains; subclasses add their own"""
    rollout_buffer: RolloutBuffer  # type: ignore[assignment]
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MemoryPolicy": MemoryPolicy,
        "ExpireSpanPolicy": MemoryPolicy,
    }

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str | None,
        *,
        method: Method = "counterfactual",
        penalty: PenaltySettings | None = None,
        random_shortening: bool = False,
        normalize_advantage: bool = True,
        advantage_std_floor: float = ADVANTAGE_STD_FLOOR,
        critic_lambda: float = CRITIC_LAMBDA,
        success_window_episodes: int = 100,
        success_min_episodes: int = 30,
        ranks: DistributedContext = SINGLE_PROCESS,
        **algorithm_kwargs: Any,
    ) -> None:
        """Build the algorithm.

        Args:
            policy: "MemoryPolicy" or a class.
            env: a Gymnasium id, an environment or an SB3 VecEnv.
            method: how spans learn what to forget (`forgetting`); ignored by memories that do not learn
                spans.
            penalty: the penalty of the method "paper"; None: defaults.
            random_shortening: clamp spans in training (`span_shortening`); ignored by the same memories.
            normalize_advantage: normalize advantages in each gradient step.
            advantage_std_floor: smallest standard deviation by which advantages are divided, in units of the
                size of returns (`return_scale`). Without reward, advantages are noise of the critic, which
                must not dominate the entropy bonus.
            critic_lambda: lambda of the critic's targets.
            success_window_episodes: number of recent episodes in the success rate of each class.
            success_min_episodes: smallest number of episodes for which a class has a success rate.
            ranks: the process group. Each rank has an `env` with the same number of environments; steps,
                minibatches and statistics are those of all ranks, which must all make the same calls.
            algorithm_kwargs: arguments of SB3's OnPolicyAlgorithm.

        Raises:
            ValueError: `policy` is an unknown name, `env` is a bare Gymnasium vector environment, or a number
                is out of range.
        """
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(f"policy must be {' or '.join(self.policy_aliases)}, got {policy!r}")
        if isinstance(env, VectorEnv):
            raise ValueError(
                "env is a Gymnasium vector environment: wrap it, envs.vec_env.GymnasiumVecEnv(env), or make "
                "a wrapped one, envs.make.make_vec_env(name, num_envs)"
            )
        shares = {name: algorithm_kwargs.get(name, 0.0) for name in ("gamma", "gae_lambda")}
        for name, value in {**shares, "critic_lambda": critic_lambda}.items():
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if algorithm_kwargs.get("n_steps", 1) < 1:
            raise ValueError(f"n_steps must be at least 1, got {algorithm_kwargs['n_steps']}")
        self.penalty = penalty or DEFAULT_PENALTY
        check_method(method, self.penalty)
        self.ranks = ranks
        self.method: Method = method
        self.critic_lambda = critic_lambda
        self.return_scale = ReturnScale()
        self.random_shortening = random_shortening
        self.shortening = RandomShortening(random_shortening)
        self.normalize_advantage = normalize_advantage
        self.advantage_std_floor = advantage_std_floor
        self.success_window_episodes = success_window_episodes
        self.success_min_episodes = success_min_episodes
        self.success_window = SuccessWindow(
            episodes_per_class=success_window_episodes, min_episodes_per_class=success_min_episodes
        )
        self.rollouts_done = 0
        self.stop_training = False
        """a callback may set this in `on_rollout_start`, between two iterations"""
        self.bookkeeping = Stopwatch()
        """time spent on logging (here) and on checkpoints (by a callback)"""
        self._memory: MemoryState | None = None
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]  # None while loading, as in SB3
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
            **algorithm_kwargs,
        )

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(  # type: ignore[assignment]
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            use_sde=self.use_sde,
            **self.policy_kwargs,
        ).to(self.device)
        transformer = self.policy.transformer
        self.forgetting = Forgetting(
            self.method, self.penalty, transformer, num_envs=self.n_envs, ranks=self.ranks
        )
        if not transformer.learns_spans:  # no span to shorten
            self.shortening = RandomShortening(False)
        self.rollout_buffer = RolloutBuffer(self.n_envs, self.n_steps, self.device)
        self.diagnostics = RolloutDiagnostics(
            transformer, self.success_window, self.ranks, full_memory_N=self.forgetting.full_memory_N.numpy()
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; the seed of an environment does not depend on the number of ranks."""
        super().set_random_seed(seed)
        if seed is not None and self.env is not None:
            self.env.seed(seed + self.ranks.rows(self.n_envs).start)

    # -- the loop -----------------------------------------------------------------------------------

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """As SB3's, but each iteration logs one row, after its update, with the metrics of both.

        TensorBoard runs are named after the algorithm unless `tb_log_name` is given.
        """
        fresh = reset_num_timesteps or self._last_obs is None
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name or type(self).__name__, progress_bar
        )
        assert self.env is not None
        if fresh:
            self._reset_memory(self.env)
        self.stop_training = False
        self.bookkeeping = Stopwatch()
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps:
            if not self.collect_rollouts(callback):
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self.train()
            self._end_iteration()
            if iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def _reset_memory(self, env: VecEnv) -> None:
        """Empty the memory: every environment is at the start of an episode."""
        self._memory = self.policy.initial_state(env.num_envs)
        self._memory.span_floor_B = self.forgetting.span_floor_B(self.device)
        self.diagnostics.reset(getattr(env, "reset_infos", [{}] * env.num_envs))
        for classes in env.get_attr("episode_classes") if env.has_attr("episode_classes") else []:
            self.success_window.expect(tuple(classes))

    def change_env(self, env: VecEnv) -> None:
        """Continue learning in other environments, the same number of them, with an empty memory.

        For callbacks in `on_rollout_start`. Outcomes of earlier episodes are discarded: the task changes.

        Raises:
            ValueError: the spaces differ.
        """
        self.set_env(env)
        assert self.env is not None
        self._last_obs = self.env.reset()  # type: ignore[assignment]
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        for recent in (self.ep_info_buffer, self.ep_success_buffer):
            if recent is not None:
                recent.clear()
        self.success_window.clear()
        self._reset_memory(self.env)

    def _end_iteration(self) -> None:
        """Update what is constant during an iteration: observation statistics and the reliance on memory."""
        self.rollouts_done += 1
        if self.rollouts_done <= STATISTICS_ROLLOUTS:
            self.policy.encoder.update_statistics()
        for name, value in self.forgetting.end_update().items():
            self.logger.record(name, value)

    # -- acting -------------------------------------------------------------------------------------

    def collect_rollouts(self, callback: BaseCallback) -> bool:  # type: ignore[override]
        """Fill the rollout buffer by acting in the environments; False if a callback stopped training."""
        policy, buffer = self.policy, self.rollout_buffer
        policy.set_training_mode(False)
        callback.on_rollout_start()
        if self.stop_training:
            return False
        env = self.env  # a callback may have changed it
        assert env is not None
        self._memory = self._begin_rollout()
        statistics_before = self._collect_statistics()
        max_span = policy.transformer.settings.max_span

        for step in range(self.n_steps):
            features = self._features(self._last_obs)
            starts = np.asarray(self._last_episode_starts)
            episode_start_B = torch.as_tensor(starts, device=self.device)
            span_limit_B1 = self.shortening.sample(starts, max_span, self.ranks, self.device)
            self.diagnostics.before_step(self._memory, starts, span_limit_B1)
            policy_step = policy.act(
                features,
                self._memory,
                episode_start_B,
                span_limit_B1,
                cue_B=torch.as_tensor(self.diagnostics.cues.cue_B, device=self.device),
                ranks=self.ranks,
            )
            self._memory = policy_step.state
            new_obs, rewards, dones, infos = env.step(policy.to_env(policy_step.actions))
            self.num_timesteps += self.ranks.world_size * env.num_envs
            callback.update_locals(locals())
            continue_training = callback.on_step()
            buffer.add(
                features,
                policy_step.actions,
                episode_start_B,
                policy_step.values_B,
                policy_step.log_prob_B,
                span_limit_B1,
            )
            rewards_B = buffer.rewards_BT[:, step]
            rewards_B[:] = torch.as_tensor(rewards, dtype=torch.float32, device=self.device)
            self._bootstrap_truncated(rewards_B, dones, infos, span_limit_B1)
            self.diagnostics.record(
                policy_step.reports, self._memory, episode_start_B, dones, infos, span_limit_B1
            )
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            if not continue_training:  # later than SB3: the next `learn` continues where the environments are
                break

        self._flush_diagnostics()
        self._share_statistics(statistics_before)
        if not continue_training:
            return False
        self._end_rollout(span_limit_B1)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _begin_rollout(self) -> MemoryState:
        """Reset the buffer with the present memory, and return that in the layout for acting."""
        assert self._memory is not None
        memory = self._memory.to_rows()  # a callback may have stopped in the middle of a rollout
        self.rollout_buffer.reset(memory)
        self.diagnostics.begin_rollout()
        return self.policy.transformer.for_acting(memory)

    def _end_rollout(self, span_limit_B1: Tensor | None) -> None:
        """Compute advantages, with the values of the last observations, and delete expired memories."""
        policy = self.policy
        assert self._memory is not None
        policy.encoder.collecting = False  # the next rollout counts the last observation
        last_features = self._features(self._last_obs)
        last_start_B = torch.as_tensor(self._last_episode_starts, device=self.device)
        no_reset_B = torch.zeros_like(last_start_B)  # GAE leaves out the values of rows that begin an episode
        last_values_B = policy.predict_values(last_features, self._memory, no_reset_B, span_limit_B1)
        # What has expired is deleted before the weights change, and with them the spans: no memory returns.
        self._memory = policy.transformer.compact(self._memory, span_limit_B1)
        self.rollout_buffer.compute_advantages(
            last_values_B,
            last_start_B,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            critic_lambda=self.critic_lambda,
        )
        self._rescale_values()

    def _rescale_values(self) -> None:
        """Add the rollout's returns to their statistics; values stay the same, except before the first."""
        has_size = self.return_scale.size > 0.0
        self.return_scale.update(self.rollout_buffer.returns_BT, self.ranks)
        if self.return_scale.size > 0.0:
            self.policy.rescale_values(self.return_scale.mean, self.return_scale.size, preserve=has_size)

    def _collect_statistics(self) -> Tensor | None:
        """Let the encoder collect statistics of observations in the warm-up; copy those that ranks share."""
        encoder = self.policy.encoder
        encoder.collecting = self.rollouts_done < STATISTICS_ROLLOUTS
        return encoder.seen_F.clone() if self.ranks.is_distributed else None

    def _share_statistics(self, before_F: Tensor | None) -> None:
        """Add the statistics that all ranks collected since `before_F`."""
        if before_F is not None:
            seen_F = self.policy.encoder.seen_F
            seen_F.copy_(before_F + self.ranks.all_reduce_sum(seen_F - before_F))

    def _bootstrap_truncated(
        self,
        rewards_B: Float[Tensor, " B"],
        dones: np.ndarray,
        infos: list[dict[str, Any]],
        span_limit_B1: Tensor | None,
    ) -> None:
        """Add gamma times the value of the final observation, given the memory of that moment.

        A time limit is not an end of the task: https://github.com/DLR-RM/stable-baselines3/issues/633
        """
        rows = [
            row
            for row in np.flatnonzero(dones)
            if infos[row].get("TimeLimit.truncated", False)
            and infos[row].get("terminal_observation") is not None
        ]
        if not rows:
            return
        assert self._memory is not None
        observations = [infos[row]["terminal_observation"] for row in rows]
        final_obs = (
            {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
            if isinstance(observations[0], dict)
            else np.stack(observations)
        )
        features = self._features(final_obs)
        index = torch.as_tensor(rows, device=self.device)
        row_span_limit_B1 = None if span_limit_B1 is None else span_limit_B1[index]
        no_reset = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        values = self.policy.predict_values(features, self._memory.select(index), no_reset, row_span_limit_B1)
        rewards_B[index] += self.gamma * values

    def _features(self, observation: Any) -> Features:
        """Features of the environments' observations.

        Raises:
            ValueError: an observation is not finite; no statistics include it.
        """
        fault = not_finite(observation)
        if fault is not None:
            raise ValueError(f"{fault}, at step {self.num_timesteps}")
        return self.policy.encoder.preprocess(self.policy.obs_to_tensor(observation)[0])

    def _flush_diagnostics(self) -> None:
        """Add the steps since the last call to the statistics."""
        ended = self.diagnostics.flush()
        self._update_info_buffer(ended, np.ones(len(ended), dtype=bool))

    # -- learning -----------------------------------------------------------------------------------

    def normalize_advantages(self, advantages_BT: Float[Tensor, "B T"], share: float) -> Float[Tensor, "B T"]:
        """Normalized advantages of a minibatch; `share` as in `Minibatch`."""
        if not self.normalize_advantage:  # still in units of the size of returns
            return advantages_BT / (self.return_scale.size or 1.0)
        smallest = max(self.advantage_std_floor * self.return_scale.size, SMALLEST_ADVANTAGE_STD)
        if self.ranks.is_distributed:
            wide_BT = advantages_BT.double() * (share > 0.0)
            count = wide_BT.new_tensor(float(wide_BT.numel() if share > 0.0 else 0))
            count, total, squares = self.ranks.all_reduce_sum(
                torch.stack([count, wide_BT.sum(), wide_BT.square().sum()])
            )
            mean = total / count
            variance = (squares - count * mean.square()) / (count - 1.0).clamp_min(1.0)
            std = variance.clamp_min(0.0).sqrt().to(advantages_BT.dtype)
            return (advantages_BT - mean.to(advantages_BT.dtype)) / std.clamp_min(smallest)
        if advantages_BT.numel() < 2:
            return advantages_BT
        return (advantages_BT - advantages_BT.mean()) / advantages_BT.std().clamp_min(smallest)

    def reduce_over_ranks(self, means: list[Tensor], largest: Tensor, share: float) -> list[float]:
        """Reduce numbers of this rank's minibatch to those of the minibatch of all ranks.

        Args:
            means: means over this rank's rows.
            largest: a maximum over this rank's rows.
            share: as in `Minibatch`.

        Returns:
            The means, then the maximum.
        """
        of_ranks = self.ranks.all_gather(
            torch.stack([*means, largest, largest.new_tensor(share)]).unsqueeze(0)
        )
        shares = of_ranks[:, -1:]
        reduced = (of_ranks[:, :-2] * shares).sum(0)
        return [*reduced.tolist(), of_ranks[:, -2].max().item()]

    def explained_variance(self) -> float:
        """Share of the variance of the rollout's returns that the critic explains."""
        values = self.ranks.all_gather(self.rollout_buffer.values_BT).flatten()
        returns = self.ranks.all_gather(self.rollout_buffer.returns_BT).flatten()
        return float(explained_variance(values.cpu().numpy(), returns.cpu().numpy()))

    def optimizer_step(self, loss: torch.Tensor) -> None:
        """Take one step of the optimizer.

        Args:
            loss: this rank's term of the loss; the loss is the sum over ranks.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite; the weights are unchanged.
        """
        whole = self.ranks.all_reduce_sum(loss.detach().clone()) if self.ranks.is_distributed else loss
        if not bool(torch.isfinite(whole)):
            raise NonFiniteLossError(
                f"the loss became {whole.item()} in update {self.rollouts_done + 1}, "
                f"at step {self.num_timesteps}"
            )
        optimizer = self.policy.optimizer
        # A list is faster than optimizer.zero_grad() and policy.parameters(); a minibatch takes milliseconds.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        self.ranks.all_reduce_gradients(parameters)
        norm = self._clip_gradients(optimizer)
        if not bool(torch.isfinite(norm)):  # the weights are still unchanged
            raise NonFiniteLossError(
                f"the gradient became {norm.item()} in update {self.rollouts_done + 1}, "
                f"at step {self.num_timesteps}"
            )
        optimizer.step()

    def _clip_gradients(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Clip the gradients of actor and critic apart; returns the sum of their norms.

        Gradients of spans are clipped only where the task's loss reaches them: those of the counterfactual
        method have a scale of their own.
        """
        groups = {group.get("name", "others"): group["params"] for group in optimizer.param_groups}
        spans = groups.pop("spans", [])
        if self.forgetting.task_teaches_spans:
            groups["others"] = [*groups["others"], *spans]
        norms = [
            torch.nn.utils.clip_grad_norm_(group, self.max_grad_norm, foreach=True)
            for group in groups.values()
        ]
        norms += [parameter.grad.norm() for parameter in spans if parameter.grad is not None]
        return torch.stack(norms).sum()

    def _update_learning_rates(self, gradient_steps_per_rollout: int) -> None:
        """Set the learning rates of all parameters, and log them."""
        optimizer = self.policy.optimizer
        self._update_learning_rate(optimizer)
        steps = self.n_steps * self.n_envs * self.ranks.world_size
        rate = self.forgetting.set_learning_rate(
            optimizer,
            progress_remaining=self._current_progress_remaining,
            gradient_steps=gradient_steps_per_rollout * self._total_timesteps / steps,
        )
        if rate is not None:
            self.logger.record("forgetting/learning_rate", rate)

    # -- logging ------------------------------------------------------------------------------------

    def dump_logs(self, iteration: int = 0) -> None:
        """Log one row of metrics; docs/metrics.md describes each name."""
        with self.bookkeeping:
            # A callback logs in the middle of a rollout, perhaps on one rank only.
            if not self.ranks.is_distributed:
                self._flush_diagnostics()
            self._dump_logs(iteration)

    def _dump_logs(self, iteration: int) -> None:
        assert self.ep_info_buffer is not None
        assert self.ep_success_buffer is not None
        record = self.logger.record
        seconds = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        record("time/iterations", iteration)
        record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / seconds))
        record("time/time_elapsed", seconds)
        record("time/bookkeeping_share", self.bookkeeping.seconds / seconds)
        record("time/total_timesteps", self.num_timesteps)
        if self.ep_info_buffer:
            record("rollout/ep_rew_mean", safe_mean([info["r"] for info in self.ep_info_buffer]))
            record("rollout/ep_len_mean", safe_mean([info["l"] for info in self.ep_info_buffer]))
            measured = [info.keys() - EPISODE_BASICS for info in self.ep_info_buffer]
            for name in sorted(set().union(*measured)):  # an episode need not have all of them
                values = [info[name] for info in self.ep_info_buffer if name in info]
                record(f"episode/{name}", safe_mean(values))
        if self.ep_success_buffer:
            record("rollout/success_rate", safe_mean(list(self.ep_success_buffer)))
        for name, rate in self.success_window.rates().items():
            record(f"success/{name}", rate)
        worst = self.success_window.worst()
        if worst is not None:
            record("success/worst", worst)
        if self.forgetting.method == "paper":
            record("memory/penalty_weight", self.forgetting.penalty_weight)
        if self.diagnostics.full_memory_returns:
            record("forgetting/full_memory_return", safe_mean(self.diagnostics.full_memory_returns))
        record("train/return_size", self.return_scale.size)
        held, ages = self._memory_contents()
        record("memory/bytes_held", held)
        for name, value in self.diagnostics.memory.metrics().items():
            record(name, value)
        for name, value in ages.items():
            if len(value):
                record(name, value)
        self.logger.dump(step=self.num_timesteps)

    def _memory_contents(self) -> tuple[int, dict[str, np.ndarray]]:
        """Bytes of all ranks' memories, and the ages of the memories by name in the log."""
        if self._memory is None:
            return 0, {}
        forgets_N = (~self.forgetting.full_memory_B).nonzero().squeeze(1).to(self.device)
        limit_B1 = self.shortening.span_limit_B1
        ages = retained_ages(
            self.policy.transformer,
            self._memory.select(forgets_N),
            None if limit_B1 is None else limit_B1[forgets_N],
        )
        of_ranks = self.ranks.all_gather_object((self._memory.bytes_held, ages))
        return sum(held for held, _ in of_ranks), cat_rows([ages for _, ages in of_ranks])

    # -- stable-baselines3's interface ------------------------------------------------------------

    def predict(  # type: ignore[override]
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: MemoryState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, MemoryState]:
        """See `MemoryPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic)
