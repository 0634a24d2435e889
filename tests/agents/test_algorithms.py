"""PPO and A2C with a memory: as stable-baselines3 algorithms, and the details that are easy to get wrong."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env as sb3_make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from memory_suite import MemoryA2C, MemoryPPO
from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm, NonFiniteLossError
from memory_suite.agents.model.settings import PenaltySettings
from memory_suite.agents.model.store.rows import NEVER
from memory_suite.agents.policy.encoders import ObservationEncoder
from memory_suite.envs.make import make_vec_env
from memory_suite.envs.vec_env import GymnasiumVecEnv
from tests.agents.small_envs import AnySpace, Endless, RepeatFirst

TINY: dict[str, Any] = {
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "max_span": 40,
    "initial_span_fraction": 0.1,
    "ramp": 4,
    "position_window": 3,
}


FEW_MEMORIES: dict[str, Any] = {"memory_size": 3, "compressed_size": 2, "compression_rate": 2}


def vec(make: Any, count: int = 4) -> DummyVecEnv:
    return sb3_make_vec_env(make, n_envs=count, seed=0)


def ppo(env: Any, **changes: Any) -> MemoryPPO:
    settings: dict[str, Any] = {
        "n_steps": 16,
        "batch_size": 32,
        "n_epochs": 2,
        "seed": 0,
        "device": "cpu",
    } | changes
    settings["policy_kwargs"] = {**TINY, **settings.get("policy_kwargs", {})}
    return MemoryPPO("MemoryPolicy", env, **settings)


def a2c(env: Any, **changes: Any) -> MemoryA2C:
    settings: dict[str, Any] = {"n_steps": 16, "seed": 0, "device": "cpu", "policy_kwargs": TINY} | changes
    return MemoryA2C("MemoryPolicy", env, **settings)


class Recorder(KVWriter):
    """Keeps every row."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def rows_of(model: MemoryOnPolicyAlgorithm, total_timesteps: int) -> list[dict[str, Any]]:
    recorder = Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(total_timesteps)
    return recorder.rows


class LogsInTheMiddle(BaseCallback):
    """As SB3's LogEveryNTimesteps does."""

    def _on_step(self) -> bool:
        if self.num_timesteps == 4 * 12:
            self.model.dump_logs()
        return True


class StopAfter(BaseCallback):
    """Stops between two iterations."""

    def __init__(self, rollouts: int) -> None:
        super().__init__()
        self.left = rollouts

    def _on_rollout_start(self) -> None:
        self.model.stop_training = self.left == 0
        self.left -= 1

    def _on_step(self) -> bool:
        return True


def test_a_callback_may_log_in_the_middle_of_a_rollout() -> None:
    """What the steps before it showed is in that row, and counted once."""
    model, recorder = ppo(vec(lambda: RepeatFirst(5))), Recorder()
    model.set_logger(Logger(None, [recorder]))
    model.learn(4 * 16, callback=LogsInTheMiddle())
    middle, end = recorder.rows
    assert middle["rollout/ep_len_mean"] == 5
    assert middle["memory/possible_mean"] == pytest.approx(np.mean([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]))
    assert end["memory/possible_mean"] == pytest.approx(np.mean([0, 1, 2, 3, 4] * 3 + [0]))
    assert len(model.ep_info_buffer or []) == 3 * 3  # one of four environments keeps all memories


OBSERVATIONS = {
    "box": spaces.Box(-2.0, 2.0, (3,), np.float32),
    "matrix": spaces.Box(-2.0, 2.0, (2, 3), np.float32),
    "discrete": spaces.Discrete(5, start=2),
    "discrete_of_bytes": spaces.Discrete(5, start=2, dtype=np.uint8),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(4),
    "categories": spaces.Box(0, np.full((3, 3, 2), 5, np.uint8), dtype=np.uint8),
    "image": spaces.Box(0, 255, (40, 44, 3), np.uint8),
    "small_image": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "dict": spaces.Dict(
        {"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "direction": spaces.Discrete(4)}
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "discrete_from": spaces.Discrete(3, start=-4),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_discrete_from": spaces.MultiDiscrete([2, 3], start=[5, 1]),
    "multi_discrete_of_32_bits": spaces.MultiDiscrete([2, 3], dtype=np.int32),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,), np.float32),
}


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_every_observation_space_learns_acts_and_survives_saving(observation: str, action: str) -> None:
    check_spaces(OBSERVATIONS[observation], ACTIONS[action])


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_space_learns_acts_and_survives_saving(action: str) -> None:
    check_spaces(OBSERVATIONS["box"], ACTIONS[action])


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    model = ppo(vec(lambda: AnySpace(observation_space, action_space), 2), n_steps=8, batch_size=8)
    model.learn(32)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    assert model.env is not None
    loaded = MemoryPPO.load(file, env=model.env, device="cpu")
    observation: Any = model.env.reset()
    mine, state = model.predict(observation, deterministic=True)
    theirs, _ = loaded.predict(observation, deterministic=True)
    np.testing.assert_array_equal(mine, theirs)
    assert all(action_space.contains(one if isinstance(one, np.ndarray) else np.int64(one)) for one in mine)
    for low_level in (mine, model.policy.predict(observation, deterministic=True)[0]):
        assert low_level.dtype == action_space.dtype
    again, _ = model.predict(observation, state, episode_start=np.zeros(2, dtype=bool), deterministic=True)
    assert again.shape == mine.shape


@pytest.mark.parametrize("make", [ppo, a2c])
def test_acting_equals_learning(make: Any) -> None:
    """With unchanged weights the first minibatch's ratio is 1: across episode ends, deletion and resets."""
    env = make_vec_env("corridor-short", 8, seed=3, env_kwargs={"max_length": 6})
    model = make(env, random_shortening=True)
    rows = rows_of(model, 16 * 8 * 12)
    assert len(rows) == 12
    assert max(row["train/first_ratio_deviation"] for row in rows) < 1e-5
    assert rows[-1]["memory/layer1/deletions_per_step"] > 0.1
    assert rows[-1]["rollout/ep_len_mean"] < 40


@pytest.mark.parametrize("kind", ["transformer-xl", "adaptive-span", "compressive", "none"])
def test_acting_equals_learning_with_every_memory(kind: str) -> None:
    """The same for the others; those that learn no spans are neither charged nor shortened."""
    env = make_vec_env("corridor-short", 8, seed=3, env_kwargs={"max_length": 6})
    model = ppo(
        env,
        random_shortening=True,
        method="paper",
        penalty=PenaltySettings(weight=1e-4),
        policy_kwargs={"memory": kind, **FEW_MEMORIES},
    )
    rows = rows_of(model, 16 * 8 * 8)
    assert max(row["train/first_ratio_deviation"] for row in rows) < 1e-5
    assert rows[-1]["rollout/ep_len_mean"] < 40
    learns = kind == "adaptive-span"
    assert rows[-1].get("memory/penalty_weight") == (1e-4 if learns else None)
    assert (model.shortening.span_limit_B1 is not None) == learns
    if kind == "none":
        assert rows[-1]["memory/bytes_held"] == 8 * 8
        return
    assert rows[-1]["memory/layer1/retained_max"] <= {"compressive": 3 + 1 + 2}.get(kind, 44)
    assert rows[-1]["memory/layer1/deletions_per_step"] > 0.1
    histogram = rows[-1]["memory/layer2/span_histogram"]
    assert histogram.size == 16 * 8 * (2 if kind == "adaptive-span" else 1)


def test_truncation_bootstraps_from_the_final_observation_given_the_memory() -> None:
    """Reward 1 for ever, values known to be 10: no step has an advantage, whatever the time limit says."""
    model = ppo(vec(lambda: TimeLimit(Endless(), 3), 2), gamma=0.9, gae_lambda=0.7)
    with torch.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(10.0)
    model.policy.optimizer.param_groups[0]["lr"] = 0.0
    model.lr_schedule = lambda _: 0.0
    model.learn(32)
    assert float(model.rollout_buffer.episode_start_BT.float().mean()) == pytest.approx(1 / 3, abs=0.05)
    torch.testing.assert_close(model.rollout_buffer.advantages_BT, torch.zeros(2, 16), atol=1e-5, rtol=0)


def test_the_value_at_a_truncation_uses_the_memory_of_that_step() -> None:
    """The bonus equals what the policy says when it is fed the episode and then its last observation."""
    model = ppo(vec(lambda: TimeLimit(RepeatFirst(50), 4), 1), n_steps=4, batch_size=4, gamma=0.9)
    torch.nn.init.normal_(model.policy.value_net.weight, generator=torch.Generator().manual_seed(0))
    policy = copy.deepcopy(model.policy)  # as it acts in the first rollout
    model.learn(4)
    rollout = model.rollout_buffer
    state, no_reset = policy.initial_state(1), torch.zeros(1, dtype=torch.bool)
    for t in range(4):
        features = {name: part[:, t] for name, part in rollout.features.items()}
        state = policy.act(features, state, no_reset).state
    final = policy.encoder.preprocess(np.zeros((1, 2), np.float32))
    expected = 0.9 * float(policy.predict_values(final, state, no_reset))
    assert float(rollout.rewards_BT[0, 3]) == pytest.approx(expected, abs=1e-6)


def test_predict_follows_the_documented_loop_and_does_not_change_the_state() -> None:
    model = ppo(vec(RepeatFirst))
    observation = np.zeros((4, 2), np.float32)
    _, state = model.predict(observation, deterministic=True)
    before = {name: part.clone() for name, part in state.state_dict().items()}
    first, _ = model.predict(observation, state, episode_start=np.zeros(4, dtype=bool), deterministic=True)
    second, _ = model.predict(observation, state, episode_start=np.zeros(4, dtype=bool), deterministic=True)
    np.testing.assert_array_equal(first, second)
    assert all(torch.equal(part, before[name]) for name, part in state.state_dict().items())
    with pytest.raises(ValueError, match="remembers 4 environments, but 3"):
        model.predict(observation[:3], state)
    single, _ = model.predict(observation[0])
    assert single.shape == ()


def test_episode_start_forgets() -> None:
    model = ppo(vec(RepeatFirst))
    rng = np.random.default_rng(0)
    _, state = model.predict(rng.normal(size=(4, 2)).astype(np.float32))
    observation = rng.normal(size=(4, 2)).astype(np.float32)
    _, remembering = model.predict(observation, state, episode_start=np.zeros(4, dtype=bool))
    _, forgetting = model.predict(observation, state, episode_start=np.ones(4, dtype=bool))
    assert model.policy.transformer.compact(remembering).layers[0].num_slots > 0
    alive = [(layer.birth_BT > -1).sum(1).tolist() for layer in forgetting.layers]
    assert alive == [[1] * 4] * 2


def test_sb3_tools_work(tmp_path: Path) -> None:
    """`evaluate_policy`, callbacks, `learn` by id, `set_parameters`-free continuation."""
    model = ppo("CartPole-v1", n_steps=32, batch_size=32)

    class Count(BaseCallback):
        steps = 0

        def _on_step(self) -> bool:
            self.steps += 1
            return True

    count = Count()
    model.learn(64, callback=[count, CheckpointCallback(32, str(tmp_path))])
    assert count.steps == 64
    assert model.num_timesteps == 64
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 96
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=3)
    assert mean >= 3
    (saved, *_rest) = sorted(tmp_path.glob("*.zip"))
    assert MemoryPPO.load(saved, env=gym.make("CartPole-v1"), device="cpu").num_timesteps == 32


def test_evaluation_in_a_callback_does_not_change_training() -> None:
    """SB3's EvalCallback predicts while a rollout is collected and what is observed counts."""
    judge = EvalCallback(Monitor(gym.make("CartPole-v1")), eval_freq=10, n_eval_episodes=2, verbose=0)
    options: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "seed": 3}
    watched = ppo("CartPole-v1", **options).learn(128, callback=judge)
    alone = ppo("CartPole-v1", **options).learn(128)
    assert judge.last_mean_reward > 0
    for name, part in watched.policy.state_dict().items():
        assert torch.equal(part, alone.policy.state_dict()[name]), name


def test_loading_refuses_other_algorithms_and_spaces(tmp_path: Path) -> None:
    model = ppo(vec(RepeatFirst))
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="MemoryPPO; load it with that class"):
        MemoryA2C.load(tmp_path / "model")
    with pytest.raises(ValueError, match="observation_space of env"):
        MemoryPPO.load(tmp_path / "model", env=vec(Endless))
    changed = MemoryPPO.load(tmp_path / "model", custom_objects={"learning_rate": 1e-5}, device="cpu")
    assert changed.learning_rate == 1e-5
    scheduled = ppo(vec(RepeatFirst), clip_range=lambda progress: 0.2 * progress)
    scheduled.save(tmp_path / "scheduled")
    with pytest.raises(ValueError, match=r"clip_range of the saved model was .*custom_objects={'clip_range'"):
        MemoryPPO.load(tmp_path / "scheduled")
    assert MemoryPPO.load(tmp_path / "scheduled", clip_range=0.1, device="cpu").clip_range(1.0) == 0.1


@pytest.mark.parametrize(
    ("make", "kind", "method"),
    [
        (ppo, "expire-span", "counterfactual"),
        (a2c, "expire-span", "counterfactual"),
        (ppo, "expire-span", "paper"),
        (ppo, "compressive", "counterfactual"),
        (a2c, "adaptive-span", "counterfactual"),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(make: Any, kind: str, method: str, tmp_path: Path) -> None:
    """Weights after the same updates, bit for bit; everything that is random is on."""

    def fresh() -> MemoryOnPolicyAlgorithm:
        env = make_vec_env("corridor-short", 6, seed=1, env_kwargs={"max_length": 8})
        batch: dict[str, Any] = {"batch_size": 32} if make is ppo else {}
        batch["policy_kwargs"] = {**TINY, **FEW_MEMORIES, "memory": kind}
        model: MemoryOnPolicyAlgorithm = make(env, random_shortening=True, method=method, **batch)
        return model

    per_update = 16 * 6
    unbroken = fresh()
    unbroken.learn(per_update * 7)
    broken = fresh()
    broken.learn(per_update * 7, callback=StopAfter(4))
    assert broken.num_timesteps == per_update * 4
    broken.save(tmp_path / "state", with_training_state=True)
    torch.manual_seed(999)
    np.random.seed(999)  # noqa: NPY002
    env = make_vec_env("corridor-short", 6, seed=777, env_kwargs={"max_length": 8})
    resumed = type(broken).load(tmp_path / "state", env=env, device="cpu")
    resumed.learn(per_update * 3, reset_num_timesteps=False)
    assert resumed.num_timesteps == unbroken.num_timesteps
    for (name, mine), theirs in zip(
        unbroken.policy.state_dict().items(), resumed.policy.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert resumed.success_window.state_dict() == unbroken.success_window.state_dict()


def test_a_metric_that_some_episodes_lack_is_averaged_over_the_others() -> None:
    class Measured(AnySpace):
        """Every second episode says how long it took."""

        episode_metrics = ("time_to_goal",)
        episodes = 0

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            observation, reward, terminated, truncated, info = super().step(action)
            self.episodes += terminated or truncated
            if (terminated or truncated) and self.episodes % 2:
                info["time_to_goal"] = self.episodes
            return observation, reward, terminated, truncated, info

    def make() -> Measured:
        return Measured(spaces.Discrete(4), spaces.Discrete(2))

    env = GymnasiumVecEnv(SyncVectorEnv([make], autoreset_mode=AutoresetMode.SAME_STEP))
    rows = rows_of(ppo(env, n_steps=32, batch_size=32), 128)
    assert [row["episode/time_to_goal"] for row in rows][-1] == pytest.approx(np.mean(range(1, 19, 2)))


def test_a_nan_loss_stops_training_before_weights_change() -> None:
    model = ppo(vec(RepeatFirst))
    model.learn(64)
    before = {name: part.clone() for name, part in model.policy.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"loss became nan in update \d+, at step 64"):
        model.optimizer_step(torch.tensor(float("nan")))
    assert all(torch.equal(part, before[name]) for name, part in model.policy.state_dict().items())


class NotFinite(gym.ObservationWrapper[Any, Any, Any]):
    """One observation of one environment is not finite."""

    def __init__(self, value: float, *, in_dict: bool, at_step: int) -> None:
        numbers = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        super().__init__(AnySpace(spaces.Dict({"x": numbers}) if in_dict else numbers, spaces.Discrete(2)))
        self.value, self.left = value, at_step

    def observation(self, observation: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            number = observation["x"] if isinstance(observation, dict) else observation
            number[1] = self.value
        return observation


@pytest.mark.parametrize("in_dict", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_nonfinite_observation_stops_training_before_any_state_changes(value: float, in_dict: bool) -> None:
    """SB3's own environments check nothing; one such number would stay in the statistics for ever."""
    steps = iter([1000, 6, 1000])
    model = ppo(vec(lambda: NotFinite(value, in_dict=in_dict, at_step=next(steps)), count=3))
    what = r"the observation 'x'" if in_dict else "the observation"
    with pytest.raises(ValueError, match=f"{what} of environment 1 is not finite, at step 15"):
        model.learn(1000)
    assert bool(model.policy.encoder.seen_F.isfinite().all())
    observation: Any = np.zeros((2, 2), np.float32)
    observation[1, 0] = value
    with pytest.raises(ValueError, match=f"{what} of environment 1 is not finite"):
        model.predict({"x": observation} if in_dict else observation)


def test_predict_refuses_episode_start_of_another_length() -> None:
    model = ppo(vec(RepeatFirst))
    observation = np.stack([model.observation_space.sample() for _ in range(2)])
    with pytest.raises(ValueError, match="episode_start is of 1 environments, not of 2"):
        model.predict(observation, episode_start=np.array([True]))


@pytest.mark.parametrize("make", [ppo, a2c])
def test_all_that_is_logged_reaches_tensorboard(make: Any, tmp_path: Path) -> None:
    """Under the same names, in a folder that is called after the algorithm, as with SB3's own."""
    model = make(vec(RepeatFirst), tensorboard_log=str(tmp_path))
    recorder = Recorder()

    class Keeps(BaseCallback):
        def _on_training_start(self) -> None:
            self.logger.output_formats.append(recorder)

        def _on_step(self) -> bool:
            return True

    model.learn(128, callback=Keeps())
    folder = tmp_path / f"{type(model).__name__}_1"
    tags = EventAccumulator(str(folder)).Reload().Tags()
    assert {*tags["scalars"], *tags["histograms"]} == set().union(*recorder.rows)


def test_an_infinite_gradient_stops_training_before_weights_change() -> None:
    """The root of zero is zero, but its slope is not finite."""
    model = ppo(vec(RepeatFirst))
    model.learn(64)
    before = {name: part.clone() for name, part in model.policy.state_dict().items()}
    weight = model.policy.value_net.weight
    with pytest.raises(NonFiniteLossError, match=r"gradient became (nan|inf) in update \d+, at step 64"):
        model.optimizer_step((weight - weight.detach()).clamp_min(0.0).sqrt().sum())
    assert all(torch.equal(part, before[name]) for name, part in model.policy.state_dict().items())


def test_an_expired_memory_does_not_return_when_the_weights_change() -> None:
    """A rollout of short spans between two of long ones; too short for the free slots to be taken again."""
    env = vec(lambda: TimeLimit(Endless(), 1000))
    model = ppo(env, n_steps=4, batch_size=16, learning_rate=1e-12, method="none")

    def births_after_a_rollout_with(bias: float) -> set[int]:
        for layer in model.policy.transformer.layers:
            layer.retention.predictor.bias.data.fill_(bias)
        model.learn(16, reset_num_timesteps=False)
        assert model._memory is not None
        return {birth for layer in model._memory.layers for birth in layer.birth_BT.flatten().tolist()}

    for _ in range(5):
        long = births_after_a_rollout_with(20.0)
    assert long >= set(range(20))
    short = births_after_a_rollout_with(-20.0) - {NEVER}
    assert min(short) == 24 - TINY["ramp"] + 1  # the next step is 24
    assert births_after_a_rollout_with(20.0) - {NEVER} == set(range(min(short), 28))


def test_learning_continues_after_a_callback_stopped_a_rollout() -> None:
    """The observation kept is the environments' present one, so that learning can go on."""
    env = vec(RepeatFirst)

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 7

    model = ppo(env)
    model.learn(64, callback=Stop())
    assert model.num_timesteps == 28
    np.testing.assert_array_equal(model._last_obs, env.buf_obs[None])
    assert model._memory is not None and model._memory.clock_B.tolist() == [7] * 4
    model.learn(64, reset_num_timesteps=False)


def test_a_policy_can_be_saved_without_its_algorithm(tmp_path: Path) -> None:
    model = ppo(vec(RepeatFirst), policy_kwargs={"memory": "compressive", **FEW_MEMORIES})
    model.learn(64)
    model.policy.save(tmp_path / "policy.zip")
    policy = type(model.policy).load(tmp_path / "policy.zip", device="cpu")
    observation = model.env.reset()
    state = other = None
    for _ in range(9):
        mine, state = model.predict(observation, state, deterministic=True)
        theirs, other = policy.predict(observation, other, deterministic=True)
        np.testing.assert_array_equal(mine, theirs)


def test_set_parameters_reads_a_saved_file(tmp_path: Path) -> None:
    model, fresh = ppo(vec(RepeatFirst)), ppo(vec(RepeatFirst), seed=5)
    model.learn(64)
    model.save(tmp_path / "model")
    fresh.set_parameters(tmp_path / "model")
    mine, theirs = model.get_parameters(), fresh.get_parameters()
    assert all(torch.equal(part, theirs["policy"][name]) for name, part in mine["policy"].items())
    mine, theirs = mine["policy.optimizer"]["state"], theirs["policy.optimizer"]["state"]
    assert len(mine) > 10
    assert all(torch.equal(mine[key]["exp_avg"], theirs[key]["exp_avg"]) for key in mine)


def test_a_loaded_model_has_the_saved_arguments(tmp_path: Path) -> None:
    model = ppo(vec(RepeatFirst), gamma=0.7, stats_window_size=7, tensorboard_log=str(tmp_path / "tb"))
    model.save(tmp_path / "all")
    kept = MemoryPPO.load(tmp_path / "all", device="cpu", print_system_info=True, force_reset=True)
    assert (kept.gamma, kept._stats_window_size) == (0.7, 7)
    assert kept.tensorboard_log == str(tmp_path / "tb")
    model.save(tmp_path / "less", exclude=["gamma", "n_steps"], include=["n_steps"])
    less = MemoryPPO.load(tmp_path / "less", device="cpu")
    assert (less.gamma, less.n_steps) == (0.99, 16)
    with pytest.raises(ValueError, match="a model has no argument 'gama'"):
        model.save(tmp_path / "none", exclude=["gama"])


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a flat MultiDiscrete"):
        ppo(vec(lambda: AnySpace(spaces.Discrete(2), spaces.MultiDiscrete([[2, 3], [2, 2]]))))
    with pytest.raises(ValueError, match=r"batch_size \(24\) must be a multiple of n_steps \(16\)"):
        ppo(vec(RepeatFirst), batch_size=24)
    for name, value, allowed in (
        ("n_steps", 0, "at least 1"),
        ("batch_size", 0, "at least 1"),
        ("n_epochs", 0, "at least 1"),
        ("gamma", 2.0, r"in \[0, 1\]"),
        ("gae_lambda", -0.1, r"in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=rf"{name} must (be|lie) {allowed}, got {value}"):
            ppo(vec(RepeatFirst), **{name: value})
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        a2c(vec(RepeatFirst), n_steps=0)
    with pytest.raises(ValueError, match="policy must be MemoryPolicy or ExpireSpanPolicy, got 'MlpPolicy'"):
        MemoryPPO("MlpPolicy", vec(RepeatFirst))
    with pytest.raises(ValueError, match="'observation' has the space"):
        ObservationEncoder(spaces.Sequence(spaces.Discrete(2)), 8)


def test_a_bare_vector_environment_is_refused_with_what_to_do() -> None:
    """In a process of its own: here annotations are enforced, and would speak first."""
    program = """
import gymnasium, envs
from memory_suite import MemoryPPO
from memory_suite.envs.vec_env import GymnasiumVecEnv
twin = gymnasium.make_vec("MemorySuite/CorridorShort-v0", 2, vectorization_mode="vector_entry_point")
MemoryPPO("MemoryPolicy", GymnasiumVecEnv(twin), n_steps=8, batch_size=8).learn(16)
MemoryPPO("MemoryPolicy", twin)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.stderr.splitlines()[-1].startswith(
        "ValueError: env is a Gymnasium vector environment: wrap it"
    )


@pytest.mark.learning
@pytest.mark.parametrize("make", [ppo, a2c])
def test_learns_to_say_what_it_saw_first(make: Any) -> None:
    """Five steps back; without memory no policy exceeds 50%."""
    settings = {"learning_rate": 3e-3, "ent_coef": 0.01}
    extra = {"batch_size": 256, "n_epochs": 4} if make is ppo else {}
    model = make(vec(RepeatFirst, 32), **settings, **extra)
    model.learn(40_000)
    mean, _ = evaluate_policy(model, vec(RepeatFirst, 10), n_eval_episodes=200)
    assert mean > 0.95


@pytest.mark.learning
@pytest.mark.parametrize("kind", ["transformer-xl", "adaptive-span", "compressive"])
def test_other_memories_learn_it_too(kind: str) -> None:
    """The compressive one has to read it out of a mean of two."""
    few = {"memory_size": 3 if kind == "compressive" else 8, "compressed_size": 4, "compression_rate": 2}
    # At a constant rate a policy may lose a solved task again; one processor saw it at 40,000 steps.
    settings = {"learning_rate": lambda left: 3e-3 * left, "ent_coef": 0.01, "batch_size": 256, "n_epochs": 4}
    model = ppo(vec(RepeatFirst, 32), **settings, policy_kwargs={"memory": kind, **few})
    model.learn(40_000)
    mean, _ = evaluate_policy(model, vec(RepeatFirst, 10), n_eval_episodes=200)
    assert mean > 0.95


@pytest.mark.learning
def test_without_memory_the_same_policy_stays_at_chance() -> None:
    model = ppo(vec(RepeatFirst, 32), learning_rate=3e-3, batch_size=256, policy_kwargs={"memory": "none"})
    model.learn(40_000)
    mean, _ = evaluate_policy(model, vec(RepeatFirst, 10), n_eval_episodes=400)
    assert 0.4 < mean < 0.6
