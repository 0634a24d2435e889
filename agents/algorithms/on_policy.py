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
from collections import deque
from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.utils import explained_variance, get_system_info, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from memory_suite.agents.algorithms.rollout_buffer import Rollout
from memory_suite.agents.algorithms.saved_arguments import decode, encode
from memory_suite.agents.algorithms.span_penalty import SpanPenalty, SpanPenaltySettings
from memory_suite.agents.algorithms.span_shortening import RandomShortening
from memory_suite.agents.algorithms.stopwatch import Stopwatch
from memory_suite.agents.diagnostics.cue_retention import cue_done_numbers, joined_needs
from memory_suite.agents.diagnostics.memory_metrics import MemoryStatistics, retained_ages
from memory_suite.agents.diagnostics.step_records import OwnStep, StepRecord, of_all_ranks
from memory_suite.agents.diagnostics.success_window import ALL, EPISODE_BASICS, SuccessWindow
from memory_suite.agents.distributed import ALONE, Ranks, chosen_rows, joined_rows
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.encoders import Features
from memory_suite.agents.policy.policy import MemoryPolicy, not_finite
from memory_suite.agents.serialization.archive import ArchiveError, read_archive, write_archive
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.agents.serialization.spaces import decode_space, encode_space, told_apart
from memory_suite.agents.serialization.state_tree import join, split

SMALLEST_ADVANTAGE_STD = 1e-8
"""keeps a division from failing when all advantages are equal"""


class NonFiniteLossError(RuntimeError):
    """Training cannot go on: the loss is not a number any more."""


Self = TypeVar("Self", bound="MemoryOnPolicyAlgorithm")


class MemoryOnPolicyAlgorithm(OnPolicyAlgorithm):
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
    policy: MemoryPolicy  # type: ignore[assignment]

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
        ranks: Ranks = ALONE,
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
                "a wrapped one, envs.vec_env.make_vec_env(name, num_envs)"
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
        self._steps: list[OwnStep] = []
        """of the rollout, still to be taken in by statistics"""
        self._memory: MemoryState | None = None
        self._last_tags = np.zeros(0, dtype=np.int64)
        self._last_done_cues = np.zeros(0, dtype=np.int64)
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
        self.memory_statistics = MemoryStatistics(self.n_envs, self.policy.transformer.settings, self.ranks)

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
            self._begin(self.env)
        self.stop_training = False
        self.bookkeeping = Stopwatch()
        callback.on_training_start(locals(), globals())
        iteration = 0
        while self.num_timesteps < total_timesteps:
            if not self._collect(callback):
                break
            iteration += 1
            self._update_current_progress_remaining(self.num_timesteps, total_timesteps)
            self.train()
            self._after_update()
            if iteration % log_interval == 0:
                self.dump_logs(iteration)
        callback.on_training_end()
        return self

    def _begin(self, env: VecEnv) -> None:
        """Nothing remembered, every environment at the start of an episode."""
        self._memory = self.policy.initial_state(env.num_envs)
        infos = getattr(env, "reset_infos", [{}] * env.num_envs)
        self._last_tags = cue_numbers(infos)
        self._last_done_cues = cue_done_numbers(infos)
        self.memory_statistics.begin()
        self._steps = []
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
        self._begin(self.env)

    def _after_update(self) -> None:
        """What changes only between an update and the next rollout."""
        self.rollouts_done += 1
        warmup = self.normalize_warmup_rollouts
        if warmup == 0 or self.rollouts_done <= warmup:
            self.policy.encoder.update_statistics()
        self.span_penalty.update(self.success_window.worst())

    # -- acting -------------------------------------------------------------------------------------

    def _collect(self, callback: BaseCallback) -> bool:
        """Fill the rollout; False if a callback asked to stop."""
        policy, rollout, ranks = self.policy, self.rollout, self.ranks
        policy.set_training_mode(False)
        warmup = self.normalize_warmup_rollouts
        policy.encoder.collecting = warmup == 0 or self.rollouts_done < warmup
        callback.on_rollout_start()
        if self.stop_training:
            return False
        env = self.env  # a callback may have changed it
        assert env is not None
        assert self._memory is not None
        memory = self._memory.in_rows()  # a callback may have stopped in the middle of a rollout
        rollout.begin(memory)
        self._memory = policy.transformer.for_acting(memory)
        self.memory_statistics.begin_rollout()
        seen_before = policy.encoder.seen_F.clone() if ranks.are_several else None

        for t in range(self.n_steps):
            features = self._features(self._last_obs)
            starts = np.asarray(self._last_episode_starts)
            is_first_B = torch.as_tensor(starts, device=self.device)
            max_span = policy.transformer.settings.max_span
            limit_B1 = self.shortening.sample(starts, max_span, ranks, self.device)
            tag_B = torch.as_tensor(self._last_tags, device=self.device)
            retention = self.memory_statistics.retention
            retention.before_step(policy.transformer, self._memory, starts, limit_B1)
            decision = policy.act(features, self._memory, is_first_B, limit_B1, tag_B=tag_B, ranks=ranks)
            self._memory = decision.state
            new_obs, rewards, dones, infos = env.step(policy.to_env(decision.actions))
            self.num_timesteps += ranks.count * env.num_envs
            callback.update_locals(locals())
            go_on = callback.on_step()
            rollout.add(
                features, decision.actions, is_first_B, decision.values_B, decision.log_prob_B, limit_B1
            )
            rollout.rewards_BT[:, t] = torch.as_tensor(rewards, dtype=torch.float32, device=self.device)
            self._bootstrap_truncated(rollout.rewards_BT[:, t], dones, infos, limit_B1)
            score = retention.after_step(
                policy.transformer,
                self._memory,
                decision.reports,
                self._last_tags,
                self._last_done_cues,
                dones,
                limit_B1=limit_B1,
            )
            ended = self._ended(infos, dones)
            self._steps.append(OwnStep(decision.reports, is_first_B, tag_B, score, ended))
            self._last_obs = new_obs  # type: ignore[assignment]
            self._last_episode_starts = dones
            self._last_tags = cue_numbers(infos)
            self._last_done_cues = cue_done_numbers(infos)
            if not go_on:  # later than SB3: a next `learn` goes on where the environments are
                break
        self._take_in_steps()
        if seen_before is not None:
            seen_F = policy.encoder.seen_F
            seen_F.copy_(seen_before + ranks.sum(seen_F - seen_before))
        if not go_on:
            return False

        policy.encoder.collecting = False  # the next rollout counts the last observation
        last_features = self._features(self._last_obs)
        last_first_B = torch.as_tensor(self._last_episode_starts, device=self.device)
        nobody_B = torch.zeros_like(last_first_B)  # rows that begin anew get a value that GAE leaves out
        last_values_B = policy.predict_values(last_features, self._memory, nobody_B, limit_B1)
        # What has expired goes before the weights change, and with them the spans: no memory returns.
        self._memory = policy.transformer.compact(self._memory, limit_B1)
        rollout.compute_advantages(last_values_B, last_first_B, gamma=self.gamma, gae_lambda=self.gae_lambda)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

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
        nobody = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        values = self.policy.predict_values(features, self._memory.select(index), nobody, row_limit_B1)
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

    def _ended(self, infos: list[dict[str, Any]], dones: np.ndarray) -> list[dict[str, Any]]:
        """What statistics need to know of the episodes that ended."""
        rows = np.flatnonzero(dones).tolist()
        if not rows:
            return []
        ended = [{name: infos[row][name] for name in _OF_EPISODES if name in infos[row]} for row in rows]
        return ended

    def _take_in_steps(self) -> None:
        """Add the steps since the last call to all statistics; to look at each alone is to wait for a GPU."""
        steps, self._steps = self._steps, []
        for record in of_all_ranks(steps, self.ranks):
            self._take_in(record)

    def _take_in(self, record: StepRecord) -> None:
        self.memory_statistics.add(record.reports, record.is_first_N, record.tag_N)
        self.memory_statistics.retention.add(record.score)
        self._update_info_buffer(record.ended, np.ones(len(record.ended), dtype=bool))
        for info in record.ended:
            if "is_success" in info:
                self.success_window.record(bool(info["is_success"]), str(info.get("episode_class", ALL)))

    # -- learning -----------------------------------------------------------------------------------

    def normalized(self, advantages_BT: Float[Tensor, "B T"], share: float) -> Float[Tensor, "B T"]:
        """Advantages as a gradient step takes them; `share` as in `Minibatch`."""
        if not self.normalize_advantage:
            return advantages_BT
        if self.ranks.are_several:
            wide_BT = advantages_BT.double() * (share > 0.0)
            count = wide_BT.new_tensor(float(wide_BT.numel() if share > 0.0 else 0))
            count, total, squares = self.ranks.sum(
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

    def over_ranks(self, means: list[Tensor], largest: Tensor, share: float) -> list[float]:
        """Numbers of a minibatch as numbers of that of all ranks.

        Args:
            means: over the minibatch.
            largest: the greatest of something in the minibatch.
            share: as in `Minibatch`.
        """
        rows_RX = self.ranks.joined(torch.stack([*means, largest, largest.new_tensor(share)]).unsqueeze(0))
        means_X = (rows_RX[:, :-2] * rows_RX[:, -1:]).sum(0)
        return [*means_X.tolist(), rows_RX[:, -2].max().item()]

    def explained_variance(self) -> float:
        """The share of the variance of the rollout's returns that the critic explained."""
        values = self.ranks.joined(self.rollout.values_BT).flatten()
        returns = self.ranks.joined(self.rollout.returns_BT).flatten()
        return float(explained_variance(values.cpu().numpy(), returns.cpu().numpy()))

    def optimize(self, loss: torch.Tensor) -> None:
        """One step of the optimizer.

        Args:
            loss: of this rank's share of the minibatch; the sum over ranks is that of the minibatch.

        Raises:
            NonFiniteLossError: the loss is NaN or infinite; the weights are left as they were.
        """
        whole = self.ranks.sum(loss.detach().clone()) if self.ranks.are_several else loss
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
        self.ranks.sum_gradients(parameters)
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
            if (
                not self.ranks.are_several
            ):  # a callback logs in the middle of a rollout, perhaps on one rank only
                self._take_in_steps()
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
        held, ages = self._contents()
        record("memory/bytes_held", held)
        for name, value in self.memory_statistics.metrics().items():
            record(name, value)
        for name, value in ages.items():
            if len(value):
                record(name, value)
        self.logger.dump(step=self.num_timesteps)

    def _contents(self) -> tuple[int, dict[str, np.ndarray]]:
        """Bytes held, and the ages of all memories by name in the log; of all ranks."""
        if self._memory is None:
            return 0, {}
        ages = retained_ages(self.policy.transformer, self._memory, self.shortening.limit_B1)
        of_ranks = self.ranks.gather_everywhere((self._memory.bytes_held, ages))
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

    def save(
        self,
        path: str | Path | BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
        *,
        with_training_state: bool = False,
    ) -> None:
        """Write the model to one archive, atomically.

        Args:
            path: a file (".zip" is added if it has no suffix), or a binary stream.
            exclude: constructor arguments to leave out; a model loaded without them has their defaults.
            include: constructor arguments to write although `exclude` names them.
            with_training_state: also write all that an exact continuation needs: random generators,
                memory contents, environments, statistics.

        Raises:
            ValueError: `exclude` or `include` names something else.
        """
        tree = self.state_tree(with_training_state=with_training_state)
        excluded, included = set(exclude or ()), set(include or ())
        for name in sorted(excluded | included):
            if name not in tree["settings"]:
                known = ", ".join(tree["settings"])
                raise ValueError(f"exclude, include: a model has no argument {name!r}; it has {known}")
        for name in excluded - included:
            del tree["settings"][name]
        tensors, data = split(tree)
        write_archive(_with_suffix(path), tensors, data)

    def set_parameters(
        self,
        load_path_or_dict: str | Path | BufferedIOBase | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """As SB3's; of a file that `save` wrote, the weights and the optimizer's state."""
        if not isinstance(load_path_or_dict, dict):
            tree = join(*read_archive(_with_suffix(load_path_or_dict)))
            load_path_or_dict = {"policy": tree["policy"], "policy.optimizer": _optimizer_state(tree)}
        super().set_parameters(load_path_or_dict, exact_match, device)

    @classmethod
    def load(
        cls: type[Self],
        path: str | Path | BufferedIOBase,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **changes: Any,
    ) -> Self:
        """The model that `save` wrote; reading it runs no code.

        Args:
            path: the file, or a binary stream.
            env: where to learn on; not needed for `predict`.
            device: where the weights go.
            custom_objects: constructor arguments by name, instead of the saved ones.
            print_system_info: print the versions of what is installed.
            force_reset: taken for the sake of SB3's programs; a loaded model begins with a reset, unless
                the file has the training state.
            changes: the same as `custom_objects`, as SB3 allows.

        Raises:
            ArchiveError: the file is damaged or no archive.
            ValueError: it holds another algorithm, or its spaces differ from those of `env`.
        """
        if print_system_info:
            get_system_info()
        tree = join(*read_archive(_with_suffix(path)))
        if "algorithm" not in tree:
            raise ArchiveError(f"{path} cannot be loaded: it is an archive, but holds no model")
        return cls.from_state_tree(tree, env, device, **{**(custom_objects or {}), **changes})

    @classmethod
    def from_state_tree(
        cls: type[Self],
        tree: dict[str, Any],
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        **replaced: Any,
    ) -> Self:
        """The model that `state_tree` described; arguments and errors as `load`."""
        if tree["algorithm"] != cls.__name__:
            raise ValueError(
                f"the saved model is a {tree['algorithm']}; load it with that class, not {cls.__name__}"
            )
        settings = {}
        for name, value in tree["settings"].items():
            if name not in replaced:
                try:
                    settings[name] = decode(value)
                except ValueError as error:
                    raise ValueError(
                        f"{name} of the saved model {error}; give it again: custom_objects={{{name!r}: ...}}"
                    ) from None
        model = cls("MemoryPolicy", env, device=device, _init_setup_model=False, **{**settings, **replaced})
        for name in ("observation_space", "action_space"):
            saved = decode_space(tree[name])
            if env is not None and getattr(model, name) != saved:
                here, there = told_apart(getattr(model, name), saved)
                raise ValueError(f"the {name} of env is {here}, but the model was saved with {there}")
            setattr(model, name, saved)
        if env is None:
            model.n_envs = tree["n_envs"]
        model._setup_model()
        model.load_state_tree(tree)
        return model

    def state_tree(self, *, with_training_state: bool) -> dict[str, Any]:
        """All that makes this model, as a tree of tensors, arrays and plain types.

        It does not depend on the number of ranks. All of them must ask for the training state; the first one
        gets it.
        """
        settings = {name: encode(getattr(self, name)) for name in self.SETTINGS}
        settings["span_penalty"] = encode(self.span_penalty.settings)
        settings["stats_window_size"] = self._stats_window_size
        optimizer = self.policy.optimizer.state_dict()
        tree: dict[str, Any] = {
            "algorithm": type(self).__name__,
            "settings": settings,
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "n_envs": self.ranks.count * self.n_envs,
            "policy": dict(self.policy.state_dict()),
            "optimizer": {
                **optimizer,
                "state": {str(key): value for key, value in optimizer["state"].items()},
            },
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "span_penalty": self.span_penalty.state_dict(),
        }
        if with_training_state:
            tree["training"] = self._training_state()
        return tree

    def load_state_tree(self, tree: dict[str, Any]) -> None:
        """Take over what `state_tree` gave, the training state included if it is there."""
        self.policy.load_state_dict(tree["policy"])
        self.policy.optimizer.load_state_dict(_optimizer_state(tree))
        for name, value in tree["counters"].items():
            setattr(self, name, value)
        self.span_penalty.load_state_dict(tree["span_penalty"])
        if "training" in tree and self.env is not None:
            self._load_training_state(tree["training"])

    def _training_state(self) -> dict[str, Any]:
        assert self._memory is not None
        assert self.env is not None
        statistics = self.memory_statistics.state_dict()
        rows: dict[str, Any] = {
            "last_obs": self._last_obs,
            "last_episode_starts": self._last_episode_starts,
            "last_tags": self._last_tags,
            "last_done_cues": self._last_done_cues,
            "shortening": self.shortening.state_dict(),
        }
        if self.resumes_exactly:
            rows["env"] = self.env.state_dict()  # type: ignore[attr-defined]
        memory = self._memory
        if self.ranks.are_several:
            shards = self.ranks.gather((rows, memory.to("cpu"), self.memory_statistics.retention.needed_BC))
            if not shards:
                return {}
            all_rows, memories, needed = zip(*shards, strict=True)
            rows, memory = joined_rows(list(all_rows)), MemoryState.joined(memories)
            statistics["retention"]["needed"] = joined_needs(needed)
        return {
            **rows,
            "memory": memory.state_dict(),
            "episodes": list(self.ep_info_buffer or []),
            "successes": [bool(success) for success in self.ep_success_buffer or []],
            "success_window": self.success_window.state_dict(),
            "memory_statistics": statistics,
            "random": random_state(self.device),
        }

    def _load_training_state(self, state: dict[str, Any]) -> None:
        statistics = state["memory_statistics"]
        memory = MemoryState.from_state_dict(state["memory"])
        if self.ranks.are_several:
            own = self.ranks.rows(self.n_envs)
            of_rows = ("last_obs", "last_episode_starts", "last_tags", "last_done_cues", "shortening", "env")
            state = state | {name: chosen_rows(state[name], own) for name in of_rows if name in state}
            memory = memory.select(torch.arange(own.start, own.stop)).trimmed()
            retention = statistics["retention"]
            statistics = statistics | {"retention": retention | {"needed": retention["needed"][own]}}
        self.ep_info_buffer = deque(state["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(state["successes"], maxlen=self._stats_window_size)
        self.success_window.load_state_dict(state["success_window"])
        self.memory_statistics.load_state_dict(statistics)
        self.shortening.load_state_dict(state["shortening"])
        if "env" in state:
            self.env.load_state_dict(state["env"])  # type: ignore[union-attr]
            self._memory = memory.to(self.device)
            self._last_obs = state["last_obs"]
            self._last_episode_starts = state["last_episode_starts"]
            self._last_tags = state["last_tags"]
            self._last_done_cues = state["last_done_cues"]
        # Last: building environments and models may have drawn from the generators.
        set_random_state(state["random"], self.device)

    @property
    def resumes_exactly(self) -> bool:
        """Whether the environments' own state can be saved, so that a resumed run equals an unbroken one."""
        return bool(getattr(self.env, "can_save_state", False))


_OF_EPISODES = ("episode", "is_success", "episode_class")
"""what the info of an episode's last step says of the whole episode"""

_COUNTERS = (
    "num_timesteps",
    "rollouts_done",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "_total_timesteps",
)


def _optimizer_state(tree: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state of a `state_tree`, whose keys are text, as torch has it."""
    optimizer = tree["optimizer"]
    return {**optimizer, "state": {int(key): value for key, value in optimizer["state"].items()}}


def _with_suffix(path: str | Path | BufferedIOBase) -> Path | BufferedIOBase:
    """A path that ends in .zip unless it has a suffix, as SB3 does; streams as they are."""
    if not isinstance(path, str | Path):
        return path
    return Path(path) if Path(path).suffix else Path(f"{path}.zip")


def cue_numbers(infos: list[dict[str, Any]]) -> np.ndarray:
    """The cue number of each environment's present observation (0: nothing to be remembered)."""
    return np.fromiter((int(info.get("cue", 0)) for info in infos), dtype=np.int64, count=len(infos))
