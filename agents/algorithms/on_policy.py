"""What PPO and A2C share: acting with a memory, and one row of metrics per update.

Words: an **iteration** is a **rollout** (n_steps x n_envs) followed by an **update** (n_epochs over
its minibatches). A **step** is one step of one environment; `num_timesteps` sums over environments.

A stable-baselines3 algorithm: `learn`, `predict`, `save`, `load`, callbacks, `evaluate_policy` and the
logger are SB3's, but files are safe archives (`agents.serialization.archive`), never pickles.

Shape letters:
    B  environments
    T  steps of a rollout
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
from stable_baselines3.common.utils import explained_variance, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from memory_suite.agents.algorithms.checkpointing import CheckpointedAlgorithm
from memory_suite.agents.algorithms.rollout_buffer import Rollout
from memory_suite.agents.algorithms.span_penalty import SpanPenalty, SpanPenaltySettings
from memory_suite.agents.algorithms.span_shortening import RandomShortening
from memory_suite.agents.algorithms.stopwatch import Stopwatch
from memory_suite.agents.diagnostics.memory_metrics import retained_ages
from memory_suite.agents.diagnostics.rollout_diagnostics import RolloutDiagnostics
from memory_suite.agents.diagnostics.success_window import EPISODE_BASICS, SuccessWindow
from memory_suite.agents.distributed import SINGLE_PROCESS, DistributedContext, joined_rows
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.encoders import Features
from memory_suite.agents.policy.policy import MemoryPolicy, not_finite

SMALLEST_ADVANTAGE_STD = 1e-8
"""keeps a division from failing when all advantages are equal"""


class NonFiniteLossError(RuntimeError):
    """Training cannot go on: the loss is not a number any more."""


Self = TypeVar("Self", bound="MemoryOnPolicyAlgorithm")


class MemoryOnPolicyAlgorithm(CheckpointedAlgorithm):
    """On-policy learning with a memory policy; `train` is the subclass's."""

    SETTINGS: ClassVar[tuple[str, ...]] = (
        "learning_rate",
        "n_steps",
        "gamma",
        "gae_lambda",
        "ent_coef",
        "vf_coef",
        "max_grad_norm",
        "normalize_advantage",
        "advantage_std_floor",
        "normalize_warmup_rollouts",
        "random_shortening",
        "success_window_episodes",
        "success_min_episodes",
        "policy_kwargs",
        "seed",
        "tensorboard_log",
        "verbose",
    )
    """constructor arguments that a saved model keeps; subclasses add theirs"""
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MemoryPolicy": MemoryPolicy,
        "ExpireSpanPolicy": MemoryPolicy,
    }

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | str | None,
        *,
        span_penalty: SpanPenaltySettings | None = None,
        random_shortening: bool = False,
        normalize_advantage: bool = True,
        advantage_std_floor: float = 0.0,
        normalize_warmup_rollouts: int = 10,
        success_window_episodes: int = 100,
        success_min_episodes: int = 30,
        ranks: DistributedContext = SINGLE_PROCESS,
        **algorithm_kwargs: Any,
    ) -> None:
        """Build the algorithm.

        Args:
            policy: "MemoryPolicy" or a class.
            env: a Gymnasium id, an environment or an SB3 VecEnv.
            span_penalty: how forgetting is rewarded; ignored by memories that do not learn spans.
            random_shortening: clamp spans in training (`span_shortening`); ignored likewise.
            normalize_advantage: per gradient step.
            advantage_std_floor: advantages are divided by their standard deviation, or by this if that is
                smaller: without reward they are the critic's noise, which must not drown the entropy bonus.
            normalize_warmup_rollouts: statistics of the observations are taken in so many first
                rollouts and fixed afterwards; 0: they go on for ever.
            success_window_episodes: recent episodes of each class that its success rate is taken over.
            success_min_episodes: with fewer of them a class has no rate yet.
            ranks: the processes that learn together, each on an `env` of as many environments; steps,
                minibatches and statistics are those of all of them. Every rank must make the same calls.
            algorithm_kwargs: what SB3's OnPolicyAlgorithm takes.

        Raises:
            ValueError: `policy` is of no known name, `env` a bare Gymnasium vector environment, or a number
                out of its range.
        """
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(f"policy must be {' or '.join(self.policy_aliases)}, got {policy!r}")
        if isinstance(env, VectorEnv):
            raise ValueError(
                "env is a Gymnasium vector environment: wrap it, envs.vec_env.GymnasiumVecEnv(env), or make "
                "a wrapped one, envs.make.make_vec_env(name, num_envs)"
            )
        for name in ("gamma", "gae_lambda"):
            if not 0.0 <= algorithm_kwargs.get(name, 0.0) <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {algorithm_kwargs[name]}")
        if algorithm_kwargs.get("n_steps", 1) < 1:
            raise ValueError(f"n_steps must be at least 1, got {algorithm_kwargs['n_steps']}")
        self.ranks = ranks
        self.span_penalty = SpanPenalty(span_penalty or SpanPenaltySettings())
        self.random_shortening = random_shortening
        self.shortening = RandomShortening(random_shortening)
        self.normalize_advantage = normalize_advantage
        self.advantage_std_floor = advantage_std_floor
        self.normalize_warmup_rollouts = normalize_warmup_rollouts
        self.success_window_episodes = success_window_episodes
        self.success_min_episodes = success_min_episodes
        self.success_window = SuccessWindow(
            episodes_per_class=success_window_episodes, min_episodes_per_class=success_min_episodes
        )
        self.rollouts_done = 0
        self.stop_training = False
        """a callback may set this in `on_rollout_start`, when everything belongs to whole updates"""
        self.bookkeeping = Stopwatch()
        """runs while what training does is only written down: logs here, checkpoints by a callback"""
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
        if not self.policy.transformer.learns_spans:  # there is nothing to charge, and nothing to shorten
            self.span_penalty = SpanPenalty(SpanPenaltySettings(kind="none"))
            self.shortening = RandomShortening(False)
        self.rollout = Rollout(self.n_envs, self.n_steps, self.device)
        self.diagnostics = RolloutDiagnostics(
            self.n_envs, self.policy.transformer, self.success_window, self.ranks
        )

    def set_random_seed(self, seed: int | None = None) -> None:
        """As SB3's; environment i of all ranks has the same seed however many ranks there are."""
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
        """As SB3's, but each iteration logs one row, after its update, with all that belongs to it.

        TensorBoard's runs are called after the algorithm unless `tb_log_name` says otherwise.
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
        """Nothing remembered, every environment at the start of an episode."""
        self._memory = self.policy.initial_state(env.num_envs)
        self.diagnostics.reset(getattr(env, "reset_infos", [{}] * env.num_envs))
        for classes in env.get_attr("episode_classes") if env.has_attr("episode_classes") else []:
            self.success_window.expect(tuple(classes))

    def change_env(self, env: VecEnv) -> None:
        """Learn on in other environments, as many of them; their episodes begin, and nothing is remembered.

        For callbacks in `on_rollout_start`. The outcomes of earlier episodes are forgotten: they say nothing
        of the new task.

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
        """What changes only between an update and the next rollout."""
        self.rollouts_done += 1
        warmup = self.normalize_warmup_rollouts
        if warmup == 0 or self.rollouts_done <= warmup:
            self.policy.encoder.update_statistics()
        self.span_penalty.update(self.success_window.worst())

    # -- acting -------------------------------------------------------------------------------------

    def collect_rollouts(self, callback: BaseCallback) -> bool:  # type: ignore[override]
        """Fill the rollout buffer; False if a callback stopped training."""
        policy, transformer = self.policy, self.policy.transformer
        policy.set_training_mode(False)
        callback.on_rollout_start()
        if self.stop_training:
            return False
        env = self.env  # a callback may have changed it
        assert env is not None
        self._memory = self._begin_rollout()
        statistics_before = self._collect_statistics()

        for step in range(self.n_steps):
            features = self._features(self._last_obs)
            starts = np.asarray(self._last_episode_starts)
            episode_start_B = torch.as_tensor(starts, device=self.device)
            limit_B1 = self.shortening.sample(starts, transformer.settings.max_span, self.ranks, self.device)
            self.diagnostics.before_step(self._memory, starts, limit_B1)
            decision = policy.act(
                features,
                self._memory,
                episode_start_B,
                limit_B1,
                tag_B=torch.as_tensor(self.diagnostics.cues.cue_B, device=self.device),
                ranks=self.ranks,
            )
            self._memory = decision.state
            new_obs, rewards, dones, infos = env.step(policy.to_env(decision.actions))
            self.num_timesteps += self.ranks.world_size * env.num_envs
            callback.update_locals(locals())
            continue_training = callback.on_step()
            self.rollout.add(
                features, decision.actions, episode_start_B, decision.values_B, decision.log_prob_B, limit_B1
            )
            rewards_B = self.rollout.rewards_BT[:, step]
            rewards_B[:] = torch.as_tensor(rewards, dtype=torch.float32, device=self.device)
            self._bootstrap_truncated(rewards_B, dones, infos, limit_B1)
            self.diagnostics.record(decision.reports, self._memory, episode_start_B, dones, infos, limit_B1)
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            if not continue_training:  # later than SB3: the next `learn` continues where the environments are
                break

        self._flush_diagnostics()
        self._share_statistics(statistics_before)
        if not continue_training:
            return False
        self._end_rollout(limit_B1)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _begin_rollout(self) -> MemoryState:
        """Reset the buffer to the present memory, and lay that out for acting."""
        assert self._memory is not None
        memory = self._memory.to_rows()  # a callback may have stopped in the middle of a rollout
        self.rollout.begin(memory)
        self.diagnostics.begin_rollout()
        return self.policy.transformer.for_acting(memory)

    def _end_rollout(self, limit_B1: Tensor | None) -> None:
        """Compute advantages, with the values of the last observations, and delete expired memories."""
        policy = self.policy
        assert self._memory is not None
        policy.encoder.collecting = False  # the next rollout counts the last observation
        last_features = self._features(self._last_obs)
        last_start_B = torch.as_tensor(self._last_episode_starts, device=self.device)
        no_reset_B = torch.zeros_like(last_start_B)  # GAE leaves out the values of rows that begin an episode
        last_values_B = policy.predict_values(last_features, self._memory, no_reset_B, limit_B1)
        # What has expired is deleted before the weights change, and with them the spans: no memory returns.
        self._memory = policy.transformer.compact(self._memory, limit_B1)
        self.rollout.compute_advantages(
            last_values_B, last_start_B, gamma=self.gamma, gae_lambda=self.gae_lambda
        )

    def _collect_statistics(self) -> Tensor | None:
        """Let the encoder collect statistics of observations in the warm-up; copy those that ranks share."""
        encoder, warmup = self.policy.encoder, self.normalize_warmup_rollouts
        encoder.collecting = warmup == 0 or self.rollouts_done < warmup
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
        limit_B1: Tensor | None,
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
        row_limit_B1 = None if limit_B1 is None else limit_B1[index]
        no_reset = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        values = self.policy.predict_values(features, self._memory.select(index), no_reset, row_limit_B1)
        rewards_B[index] += self.gamma * values

    def _features(self, observation: Any) -> Features:
        """What the policy's encoder makes of the environments' observations.

        Raises:
            ValueError: one is not finite; nothing of it has got into the statistics.
        """
        fault = not_finite(observation)
        if fault is not None:
            raise ValueError(f"{fault}, at step {self.num_timesteps}")
        return self.policy.encoder.preprocess(self.policy.obs_to_tensor(observation)[0])

    def _flush_diagnostics(self) -> None:
        """Add the steps since the last call to all statistics."""
        ended = self.diagnostics.flush()
        self._update_info_buffer(ended, np.ones(len(ended), dtype=bool))

    # -- learning -----------------------------------------------------------------------------------

    def normalize_advantages(self, advantages_BT: Float[Tensor, "B T"], share: float) -> Float[Tensor, "B T"]:
        """Advantages as a gradient step takes them; `share` as in `Minibatch`."""
        if not self.normalize_advantage:
            return advantages_BT
        if self.ranks.is_distributed:
            wide_BT = advantages_BT.double() * (share > 0.0)
            count = wide_BT.new_tensor(float(wide_BT.numel() if share > 0.0 else 0))
            count, total, squares = self.ranks.all_reduce_sum(
                torch.stack([count, wide_BT.sum(), wide_BT.square().sum()])
            )
            mean = total / count
            variance = (squares - count * mean.square()) / (count - 1.0).clamp_min(1.0)
            std = variance.clamp_min(0.0).sqrt().to(advantages_BT.dtype)
            scale = std.clamp_min(self.advantage_std_floor) + SMALLEST_ADVANTAGE_STD
            return (advantages_BT - mean.to(advantages_BT.dtype)) / scale
        if advantages_BT.numel() < 2:
            return advantages_BT
        scale = advantages_BT.std().clamp_min(self.advantage_std_floor) + SMALLEST_ADVANTAGE_STD
        return (advantages_BT - advantages_BT.mean()) / scale

    def reduce_over_ranks(self, means: list[Tensor], largest: Tensor, share: float) -> list[float]:
        """Numbers of a minibatch as numbers of that of all ranks.

        Args:
            means: over the minibatch.
            largest: the greatest of something in the minibatch.
            share: as in `Minibatch`.
        """
        rows_RX = self.ranks.all_gather(
            torch.stack([*means, largest, largest.new_tensor(share)]).unsqueeze(0)
        )
        means_X = (rows_RX[:, :-2] * rows_RX[:, -1:]).sum(0)
        return [*means_X.tolist(), rows_RX[:, -2].max().item()]

    def explained_variance(self) -> float:
        """The share of the variance of the rollout's returns that the critic explained."""
        values = self.ranks.all_gather(self.rollout.values_BT).flatten()
        returns = self.ranks.all_gather(self.rollout.returns_BT).flatten()
        return float(explained_variance(values.cpu().numpy(), returns.cpu().numpy()))

    def optimizer_step(self, loss: torch.Tensor) -> None:
        """One step of the optimizer.

        Args:
            loss: of this rank's share of the minibatch; the sum over ranks is that of the minibatch.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; the weights are left as they were.
        """
        whole = self.ranks.all_reduce_sum(loss.detach().clone()) if self.ranks.is_distributed else loss
        if not bool(torch.isfinite(whole)):
            raise NonFiniteLossError(
                f"the loss became {whole.item()} in update {self.rollouts_done + 1}, "
                f"at step {self.num_timesteps}"
            )
        optimizer = self.policy.optimizer
        # Neither the optimizer's own loop nor the policy's tree of modules: a minibatch takes milliseconds.
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters:
            parameter.grad = None
        torch.autograd.backward(loss)
        self.ranks.all_reduce_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm, foreach=True)
        if not bool(torch.isfinite(norm)):  # the weights are still what they were
            raise NonFiniteLossError(
                f"the gradient became {norm.item()} in update {self.rollouts_done + 1}, "
                f"at step {self.num_timesteps}"
            )
        optimizer.step()

    # -- logging ------------------------------------------------------------------------------------

    def dump_logs(self, iteration: int = 0) -> None:
        """One row of metrics; docs/metrics.md describes each name."""
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
        record("memory/penalty_weight", self.span_penalty.weight)
        held, ages = self._memory_contents()
        record("memory/bytes_held", held)
        for name, value in self.diagnostics.memory.metrics().items():
            record(name, value)
        for name, value in ages.items():
            if len(value):
                record(name, value)
        self.logger.dump(step=self.num_timesteps)

    def _memory_contents(self) -> tuple[int, dict[str, np.ndarray]]:
        """Bytes held, and the ages of all memories by name in the log; of all ranks."""
        if self._memory is None:
            return 0, {}
        ages = retained_ages(self.policy.transformer, self._memory, self.shortening.limit_B1)
        of_ranks = self.ranks.all_gather_object((self._memory.bytes_held, ages))
        return sum(held for held, _ in of_ranks), joined_rows([ages for _, ages in of_ranks])

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
