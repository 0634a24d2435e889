"""The adapter to stable-baselines3: endings, statistics, faults that are named, exact continuation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor

from memory_suite.envs.errors import EnvFailedError
from memory_suite.envs.make import make_vec_env
from memory_suite.envs.registration import REGISTRY, resolve
from memory_suite.envs.vec_env import GymnasiumVecEnv

Observation = np.ndarray


class Counter(gym.Env[Any, Any]):
    """Observes how many steps the episode has lasted; ends after `length`, misbehaves at `fault_step`."""

    def __init__(
        self, length: int = 3, fault: Any = None, fault_step: int = 5, truncates: bool = False
    ) -> None:
        self.observation_space = spaces.Box(0.0, 100.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.length, self.fault, self.fault_step, self.truncates = length, fault, fault_step, truncates
        self.total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {"cue": True}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        self.total += 1
        observation, reward = np.array([self.t], np.float32), float(self.t)
        if self.fault is not None and self.total == self.fault_step:
            if self.fault == "raise":
                raise RuntimeError("out of cheese")
            observation, reward = self.fault(observation, reward)
        end = self.t == self.length
        info: dict[str, Any] = {"cue": False}
        if end:
            info |= {"is_success": True, "episode_class": "all"}
        return observation, reward, end and not self.truncates, end and self.truncates, info


def wrapped(*envs: Counter, seed: int | None = None) -> GymnasiumVecEnv:
    makers: list[Any] = [lambda env=env: env for env in envs]
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), seed=seed)


@pytest.mark.parametrize("truncates", [False, True])
def test_infos_at_the_end_of_an_episode(truncates: bool) -> None:
    env = wrapped(Counter(3, truncates=truncates), Counter(5))
    env.reset()
    assert [info["cue"] for info in env.reset_infos] == [True, True]
    for _ in range(2):
        observation, _, dones, infos = env.step(np.zeros(2, dtype=np.int64))
        assert not dones.any()
        assert not infos[0]["cue"]
    observation, rewards, dones, infos = env.step(np.zeros(2, dtype=np.int64))
    assert observation[:, 0].tolist() == [0.0, 3.0], "the new episode's first observation"
    assert rewards.tolist() == [3.0, 3.0]
    assert rewards.dtype == np.float32
    assert dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"].tolist() == [3.0]
    assert infos[0]["TimeLimit.truncated"] is truncates
    assert infos[0]["episode"]["r"] == 6.0
    assert infos[0]["episode"]["l"] == 3
    assert infos[0]["is_success"]
    assert infos[0]["episode_class"] == "all"
    assert infos[0]["cue"], "of the new observation"
    assert not infos[0]["terminal_info"]["cue"], "of the last one"
    assert "episode" not in infos[1]


def test_every_step_belongs_to_an_episode() -> None:
    """Three-step episodes: every third step ends one, none is a dummy."""
    env = wrapped(Counter(3))
    env.reset()
    ends = [bool(env.step(np.zeros(1, dtype=np.int64))[2][0]) for _ in range(9)]
    assert ends == [False, False, True] * 3


def test_other_autoreset_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="SAME_STEP"):
        GymnasiumVecEnv(SyncVectorEnv([Counter]))


FAULTS: dict[str, tuple[Any, str]] = {
    "raise": (
        "raise",
        r"raised RuntimeError: out of cheese in environment 1 of 2, seed 11 at step 5.*action 1",
    ),
    "nan": (lambda o, r: (o * np.nan, r), r"observation is nan at element 0.*in environment 1 of 2, seed 11"),
    "infinite": (lambda o, r: (o * np.inf, r), r"observation is inf .*outside \[0\.0, 100\.0\]"),
    "outside": (lambda o, r: (o + 1e30, r), "outside"),
    "reward": (
        lambda o, r: (o, np.nan),
        r"the reward is nan in environment 1 of 2, seed 11 at step 5.*action 1",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_name_environment_seed_step_and_action(fault: str) -> None:
    broken, message = FAULTS[fault]
    env = wrapped(Counter(100), Counter(100, fault=broken), seed=10)
    env.reset()
    for _ in range(4):
        env.step(np.ones(2, dtype=np.int64))
    with pytest.raises(EnvFailedError, match=message):
        env.step(np.ones(2, dtype=np.int64))


@pytest.mark.parametrize("when", ["reset", "step"])
def test_errors_name_the_source_line_that_raised(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own innermost one, neither that of a library that it calls nor that of Gymnasium's wrappers."""

    def broken(self: Any, action: Any = None, *, seed: Any = None, options: Any = None) -> Any:
        return np.broadcast_to(np.zeros(2), 3)

    monkeypatch.setattr(Counter, when, broken)
    gym.register("MemorySuiteTest/Raising-v0", Counter)
    try:
        env = make_vec_env("MemorySuiteTest/Raising-v0", 2, seed=10)
    finally:
        del gym.registry["MemorySuiteTest/Raising-v0"]
    if when == "step":
        env.reset()
    with pytest.raises(EnvFailedError) as fault:
        env.reset() if when == "reset" else env.step(np.zeros(2, dtype=np.int64))
    assert str(fault.value).startswith("an environment raised ValueError: operands could not be broadcast")
    assert "in environment 0 of 2, seed 10 " in str(fault.value)
    place = f"{__file__}:{broken.__code__.co_firstlineno + 1}, in {broken.__qualname__}"
    assert str(fault.value).endswith(f" (raised at {place})")


class Shaped(Counter):
    """Says one thing of its observations and rewards, and does another from the third step on."""

    def __init__(self, observation: Any, reward: Any = 1.0) -> None:
        super().__init__(100, fault=lambda o, r: (observation, reward), fault_step=3)


@pytest.mark.parametrize(
    ("observation", "reward", "message"),
    [
        (np.zeros(2, np.float32), 1.0, r"the observation has the shape \(2,\) and dtype float32"),
        (np.float32(0.0), 1.0, r"the observation has the shape \(\) and dtype float32"),
        (np.zeros((1, 1), np.float32), 1.0, r"the observation has the shape \(1, 1\)"),
        (np.zeros(1, complex), 1.0, r"dtype complex128, its space says \(1,\) and float32"),
        (np.zeros(1, np.float32), None, "the reward is None, not a number"),
        (np.zeros(1, np.float32), 1e30, r"the reward is 1e\+30, larger than 1e\+18"),
    ],
)
def test_a_space_mismatch_names_its_environment(observation: Any, reward: Any, message: str) -> None:
    """A batch would stretch or flatten it without a word, or name its last environment."""
    faulty = iter([True, False])
    gym.register(
        "MemorySuiteTest/Shaped-v0", lambda: Shaped(observation, reward) if next(faulty) else Counter()
    )
    try:
        env = make_vec_env("MemorySuiteTest/Shaped-v0", 2, seed=10)
    finally:
        del gym.registry["MemorySuiteTest/Shaped-v0"]
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(EnvFailedError, match=rf"{message}.*in environment 0 of 2, seed 10 at step 3"):
        env.step(np.zeros(2, dtype=np.int64))


def test_infinite_values_are_errors_in_unbounded_spaces_too() -> None:
    broken = Counter(100, fault=lambda o, r: (o * np.inf, r), fault_step=1)
    broken.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    env = wrapped(broken)
    env.reset()
    with pytest.raises(EnvFailedError, match="observation is inf"):
        env.step(np.zeros(1, dtype=np.int64))


@pytest.mark.parametrize("truncates", [False, True])
def test_final_observations_are_checked(truncates: bool) -> None:
    """It is never returned as an observation, but a truncated episode is valued by it."""
    broken = Counter(3, fault=lambda o, r: (o * np.nan, r), fault_step=3, truncates=truncates)
    env = wrapped(Counter(100), broken, seed=10)
    env.reset()
    for _ in range(2):
        env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(
        EnvFailedError, match=r"last observation is nan .*environment 1 of 2, seed 11 at step 3"
    ):
        env.step(np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize("in_dict", [False, True])
@pytest.mark.parametrize(
    "given", [lambda o: o.astype(np.float64), lambda o: o.tolist(), lambda o: o.astype(np.int64)]
)
def test_final_observations_are_cast_to_their_space(given: Any, in_dict: bool) -> None:
    """A batch's arrays cast what is written into them; this one is not."""

    def casual(env: Counter) -> gym.Env[Any, Any]:
        space = env.observation_space
        if in_dict:
            space = spaces.Dict({"count": space})
        return gym.wrappers.TransformObservation(
            env, lambda o: {"count": given(o)} if in_dict else given(o), space
        )

    env = GymnasiumVecEnv(
        SyncVectorEnv([lambda: casual(Counter(2))] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    env.reset()
    for _ in range(2):
        _, _, dones, infos = env.step(np.zeros(2, dtype=np.int64))
    assert dones.all()
    last = infos[1]["terminal_observation"]
    last = last["count"] if in_dict else last
    assert last.dtype == np.float32
    assert last.tolist() == [2.0]


def test_a_final_observation_of_another_shape_names_its_environment() -> None:
    def strange(env: Counter) -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(
            env, lambda o: np.zeros(2, np.float32) if o >= 2 else o, env.observation_space
        )

    makers = [lambda: Counter(100), lambda: strange(Counter(2))]
    env = GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), seed=4)
    env.reset()
    env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(
        EnvFailedError, match=r"last observation has the shape \(2,\).*environment 1 of 2, seed 5"
    ):
        env.step(np.zeros(2, dtype=np.int64))


def test_errors_name_the_part_of_a_dict() -> None:
    def nested(env: Counter) -> gym.Env[Any, Any]:
        space = spaces.Dict({"count": env.observation_space, "kind": spaces.Discrete(2)})
        return gym.wrappers.TransformObservation(env, lambda o: {"count": o, "kind": 1}, space)

    makers = [lambda: nested(Counter(2)), lambda: nested(Counter(9, fault=lambda o, r: (o - 50, r)))]
    env = GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP))
    assert set(env.reset()) == {"count", "kind"}
    for _ in range(4):
        _, _, dones, infos = env.step(np.zeros(2, dtype=np.int64))
    assert dones.tolist() == [True, False]
    assert infos[0]["terminal_observation"]["count"].tolist() == [2.0]
    with pytest.raises(EnvFailedError, match=r"observation 'count' is -45\.0 .*environment 1 of 2"):
        env.step(np.zeros(2, dtype=np.int64))


@pytest.mark.parametrize(
    ("space", "good", "bad", "message"),
    [
        (spaces.Discrete(3, start=2), np.int64(4), np.int64(5), r"is 5 at element 0, outside \[2, 4\]"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 2]), np.array([1, 3]), r"is 3 at .*, outside \[0, 2\]"),
        (
            spaces.MultiBinary(2),
            np.array([0, 1], np.int8),
            np.array([0, 2], np.int8),
            r"is 2 at element 1, outside \[0, 1\]",
        ),
    ],
)
def test_categories_outside_their_space_are_errors(
    space: spaces.Space[Any], good: Any, bad: Any, message: str
) -> None:
    """An encoder would take them for the category of another part."""

    def answering(env: Counter) -> gym.Env[Any, Any]:
        return gym.wrappers.TransformObservation(env, lambda o: bad if o > 2 else good, space)

    makers = [lambda: answering(Counter(9))] * 2
    env = GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP), seed=0)
    env.reset()
    env.step(np.zeros(2, dtype=np.int64))
    env.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(EnvFailedError, match=f"{message}, in environment 0 of 2"):
        env.step(np.zeros(2, dtype=np.int64))


def test_a_constructor_that_raises_is_reported() -> None:
    def broken(**_: Any) -> gym.Env[Any, Any]:
        raise KeyError("data file")

    gym.register("MemorySuiteTest/Broken-v0", broken)
    try:
        with pytest.raises(ValueError, match=r"could not create .*Broken-v0: KeyError: 'data file'"):
            make_vec_env("MemorySuiteTest/Broken-v0", 2)
    finally:
        del gym.registry["MemorySuiteTest/Broken-v0"]


def test_infos_hold_plain_values() -> None:
    """They end up in JSON."""
    env = make_vec_env("corridor-short", 4, seed=0)
    env.reset()
    infos = env.reset_infos
    ends = []
    for _ in range(40):
        _, _, dones, infos = env.step(np.array([info["oracle_action"] for info in infos]))
        ends += [infos[index] for index in np.flatnonzero(dones)]
    assert ends
    for end in ends:
        assert end["is_success"] is True
        assert end["episode_class"] == "3-20"
        json.dumps({name: value for name, value in end.items() if name != "terminal_observation"})


@pytest.mark.parametrize("name", ["MiniGrid-MemoryS13-v0", "minigrid:MiniGrid-MemoryS13-v0"])
def test_ids_of_other_packages_work(name: str) -> None:
    assert resolve(name) == "MiniGrid-MemoryS13-v0"
    assert make_vec_env(name, 2, seed=0).reset()["image"].shape == (2, 7, 7, 3)


@pytest.mark.parametrize(
    "program",
    [
        "import gymnasium; gymnasium.make('memory_suite:MemorySuite/CorridorLong-v0').reset()",
        "import gymnasium, memory_suite; gymnasium.make('MemorySuite/CorridorLong-v0').reset()",
        "import gymnasium, memory_suite.envs; gymnasium.make('MemorySuite/CorridorLong-v0').reset()",
        "import sys, memory_suite; assert not {'minigrid', 'torch'} & {*sys.modules}",
        "from memory_suite.envs.registration import resolve; resolve('MiniGrid-MemoryS13-v0')",
    ],
)
def test_registration_in_a_fresh_process(program: str) -> None:
    """Importing the package registers its environments and imports neither MiniGrid nor torch."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)


def test_the_module_of_an_id_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import gymnasium\ngymnasium.register('FromModule-v0', entry_point='nowhere:Env')\n"
    (tmp_path / "registers_one.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert resolve("registers_one:FromModule-v0") == "FromModule-v0"
    finally:
        gym.registry.pop("FromModule-v0", None)
        sys.modules.pop("registers_one", None)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("from gymnasium import Enf", "ImportError: cannot import name 'Enf' from 'gymnasium'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_module_that_cannot_be_imported_is_reported(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"the module 'broken_module' of .* cannot be imported: ") as refused:
        resolve("broken_module:Mine/Cue-v0")
    assert said in str(refused.value)
    with pytest.raises(
        ValueError, match=r"the module 'broken_module_2' of .* does not exist or is not installed"
    ):
        resolve("broken_module_2:Mine/Cue-v0")


def test_pictures_are_one_for_each_environment_and_one_mosaic() -> None:
    env = make_vec_env("corridor-short", 4, seed=0, render_mode="rgb_array")
    env.reset()
    images = env.get_images()
    assert len(images) == 4
    mosaic = env.render("rgb_array")
    assert images[0] is not None
    assert mosaic is not None
    assert mosaic.shape == (2 * images[0].shape[0], 2 * images[0].shape[1], 3)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.envs.registration.EnvSpec("Missing-v0", entry_point="no_such_package:Env")
    monkeypatch.setitem(gym.registry, "Missing-v0", spec)
    with pytest.raises(ValueError, match=r"could not create Missing-v0: .*no_such_package"):
        make_vec_env("Missing-v0", 2)


def test_short_names_make_the_vectorized_version_and_any_id_works() -> None:
    assert make_vec_env("corridor-short", 3, seed=0).can_save_state
    cart = make_vec_env("CartPole-v1", 2, seed=0)
    assert not cart.can_save_state
    assert cart.reset().shape == (2, 4)
    assert cart.env_is_wrapped(Monitor) == [True, True], "episode statistics are kept by the adapter"
    assert cart.env_is_wrapped(gym.wrappers.TimeLimit) == [False, False]
    assert make_vec_env("corridor-long", 2).get_attr("episode_classes")[0][-1] == "120-200"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("corridor-lnog", {}, "did you mean 'corridor-long'.*corridor-short"),
        ("nothing-like-it", {}, "Known names: corridor-short"),
        ("no_such_module:Env-v0", {}, "the module 'no_such_module' of .* does not exist"),
        ("json:Env-v0", {}, "unknown environment 'json:Env-v0'"),
        (
            "corridor-long",
            {"lenght": 3},
            r"corridor-long has no argument .lenght.; it has length",
        ),
        ("corridor-long", {"length": 1}, "length must be at least view_size"),
        ("CartPole-v1", {"gravity": 3}, "CartPole-v1 has no argument .gravity."),
    ],
)
def test_mistakes_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_vec_env(name, 2, env_kwargs=arguments)


@pytest.mark.parametrize("name", REGISTRY)
def test_short_names_resolve(name: str) -> None:
    assert resolve(name) == REGISTRY[name].id
    assert resolve(REGISTRY[name].id) == REGISTRY[name].id


def test_statistics_and_environments_continue_exactly() -> None:
    env = make_vec_env("corridor-short", 4, seed=1)
    env.reset()
    actions = np.random.default_rng(0).integers(4, size=(200, 4))
    for row in actions[:60]:
        env.step(row)
    state = env.state_dict()
    other = make_vec_env("corridor-short", 4, seed=50)
    other.reset()
    other.load_state_dict(state)
    for row in actions[60:]:
        mine, theirs = env.step(row), other.step(row)
        for a, b in zip(mine[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(mine[3], theirs[3], strict=True):
            assert a.get("episode", {}).get("l") == b.get("episode", {}).get("l")
