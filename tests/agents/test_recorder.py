"""The record of an episode: against the equations, against the policy, and as a file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

import memory_suite.envs  # noqa: F401  (registers)
from memory_suite import MemoryPPO
from memory_suite.agents.episodes.record import (
    UNKNOWN_CELL,
    EpisodeFileError,
    EpisodeRecord,
    FrameStore,
    LayerRecord,
)
from memory_suite.agents.episodes.recorder import EpisodePlayer, record_episode
from memory_suite.agents.model.layer import MemoryLayer
from tests.agents.small_envs import AnySpace

SMALL = {"width": 16, "num_layers": 2, "num_heads": 2, "max_span": 40, "ramp": 4, "position_window": 3}


def lively_model(env: gym.Env[Any, Any], seed: int = 0, **policy: Any) -> MemoryPPO:
    """An untrained model whose memories have different spans and whose attention is not uniform."""
    model = MemoryPPO(
        "MemoryPolicy",
        env,
        n_steps=8,
        batch_size=8,
        seed=seed,
        device="cpu",
        policy_kwargs=SMALL | policy,
    )
    for layer in model.policy.transformer.layers:
        torch.nn.init.normal_(layer.retention.predictor.weight, std=1.5)
        if layer.position_window:
            torch.nn.init.normal_(layer.position_HPK)
        with torch.no_grad():
            for projection in (layer.query, layer.key, layer.value):
                projection.weight *= 3.0
    return model


def corridor(**arguments: Any) -> gym.Env[Any, Any]:
    return gym.make("MemorySuite/CorridorShort-v0", render_mode="rgb_array", **arguments)


@pytest.fixture(scope="module")
def record() -> EpisodeRecord:
    env = corridor(length=12)
    return record_episode(lively_model(env), env, seed=3)


def by_the_equations(layer: MemoryLayer, content_MD: Tensor, t: int) -> tuple[list[float], Tensor]:
    """Equations 1 to 4 for the query of step t: mask of each earlier memory, and attention [M, H]."""
    size, expire = layer.head_size, layer.retention
    query_D = layer.query(content_MD[t])
    masks, weights = [], []
    for i in range(t):
        logit = expire.predictor(content_MD[i]).item()
        remaining = expire.max_span / (1 + math.exp(-logit)) - (t - i)
        masks.append(max(0.0, min(1.0, 1 + remaining / expire.ramp)))
        row = []
        for head in range(layer.num_heads):
            part = slice(head * size, (head + 1) * size)
            key_K = layer.key(content_MD[i])[part]
            query_K = query_D[part] * size**-0.5
            score = query_K @ key_K
            if t - i <= layer.position_window:
                score = score + query_K @ layer.position_HPK[head, layer.position_window - (t - i)]
            row.append(masks[-1] * math.exp(score.item()))
        weights.append(row)
    attention_MH = torch.tensor(weights)
    assert layer.null_memory  # one of zeros, whose score is 0
    return masks, attention_MH / (attention_MH.sum(0) + 1.0)


def test_masks_and_attention_are_those_of_the_equations(record: EpisodeRecord) -> None:
    env = corridor(length=12)
    model = lively_model(env)
    assert 20 < record.num_steps < 80
    expired = 0
    for layer, recorded in zip(model.policy.transformer.layers, record.layers, strict=True):
        assert recorded.content_MD is not None
        content_MD = torch.as_tensor(recorded.content_MD)
        for t in range(1, record.num_steps):
            masks, attention_MH = by_the_equations(layer, content_MD, t)
            seen = recorded.at(t)
            assert seen.birth.tolist() == [i for i in range(t) if masks[i] > 1e-6]
            np.testing.assert_allclose(seen.mask, [m for m in masks if m > 1e-6], atol=1e-5)
            np.testing.assert_allclose(seen.attention, attention_MH[torch.tensor(masks) > 1e-6], atol=2e-3)
            np.testing.assert_allclose(seen.remaining, seen.span - (t - seen.birth), atol=1e-4)
            expired += t - len(seen.birth)
    assert expired > 100  # otherwise nothing of this was tested on memories that go


def test_pairs_and_steps_tell_the_same(record: EpisodeRecord) -> None:
    for layer in record.layers:
        steps, memories = layer.steps_of_pairs(), layer.memory_of_pairs()
        counts = layer.retained_counts(record.num_steps)
        for t in range(record.num_steps):
            seen = layer.at(t)
            assert counts[t] == len(seen.birth) == (steps == t).sum()
            assert (memories[steps == t] == seen.memory).all()
            assert (layer.mask_N[steps == t] == seen.mask).all()
        assert layer.retained_counts(record.num_steps)[0] == 0
        assert (layer.birth_M == np.arange(record.num_steps)).all()


def test_the_same_seed_gives_the_same_record_and_recording_changes_nothing(record: EpisodeRecord) -> None:
    env = corridor(length=12)
    model = lively_model(env)
    model.policy.set_training_mode(True)
    model.policy.encoder.collecting = True
    before = torch.get_rng_state()
    weights = {name: part.clone() for name, part in model.policy.state_dict().items()}
    again = record_episode(model, env, seed=3)
    assert (torch.get_rng_state() == before).all()
    assert model.policy.training and model.policy.encoder.collecting
    assert all(torch.equal(part, weights[name]) for name, part in model.policy.state_dict().items())
    assert again.facts == record.facts
    np.testing.assert_array_equal(again.action_T, record.action_T)
    np.testing.assert_array_equal(again.choice_TA, record.choice_TA)
    other = record_episode(model, env, seed=4)
    assert other.num_steps != record.num_steps or (other.action_T != record.action_T).any()


def test_steps_are_what_the_environment_and_the_policy_said(record: EpisodeRecord) -> None:
    """Replay the recorded actions: rewards, cells, pictures and cues are those of the steps."""
    env = corridor(length=12)
    _, info = env.reset(seed=3)
    for t in range(record.num_steps):
        assert record.cue_T[t] == int(info["cue"])
        assert tuple(record.cell_T1[t]) == env.unwrapped.agent_cell  # type: ignore[attr-defined]
        picture = record.frame(t)
        assert picture is not None
        np.testing.assert_array_equal(picture, env.render())  # type: ignore[arg-type]
        _, reward, terminated, truncated, info = env.step(record.action_T[t])
        assert record.reward_T[t] == reward
        assert (terminated or truncated) == (t == record.num_steps - 1)
    assert record.facts["return"] == pytest.approx(record.reward_T.sum())
    np.testing.assert_allclose(record.choice_TA.sum(1), 1.0, atol=1e-5)
    chosen = record.choice_TA[np.arange(record.num_steps), record.action_T]
    np.testing.assert_allclose(np.log(chosen), record.log_prob_T, atol=1e-5)


def test_the_picture_shows_the_agent_where_the_record_says() -> None:
    env = gym.make("MemorySuite/CorridorLong-v0", render_mode="rgb_array", length=100)
    record = record_episode(lively_model(env), env, seed=0, max_steps=150)
    tile = record.tile
    for t in range(record.num_steps):
        x, y = (record.cell_T1[t] - record.origin_T1[t]) * tile
        picture = record.frame(t)
        assert picture is not None
        red = picture[..., 0].astype(int) - picture[..., 1:].max(-1) > 100
        inside = red[y + 1 : y + tile - 1, x + 1 : x + tile - 1]
        assert inside.sum() > 30, "MiniGrid's agent is a red triangle"


def test_a_file_holds_everything(record: EpisodeRecord, tmp_path: Path) -> None:
    path = tmp_path / "episode.npz"
    record.save(path)
    loaded = EpisodeRecord.load(path)
    assert loaded.facts == record.facts
    for name in ("action_T", "reward_T", "value_T", "choice_TA", "cue_T", "cell_T1", "origin_T1", "frame_T1"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(record, name))
    for ours, theirs in zip(loaded.layers, record.layers, strict=True):
        for name in LayerRecord.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    for t in reversed(range(record.num_steps + 1)):
        np.testing.assert_array_equal(loaded.frame(t), record.frame(t))  # type: ignore[arg-type]
    loaded.save(tmp_path / "again.npz")
    assert EpisodeRecord.load(tmp_path / "again.npz").facts == record.facts


def test_numpy_and_json_are_enough_to_read_it(record: EpisodeRecord, tmp_path: Path) -> None:
    record.save(tmp_path / "episode.npz")
    file = np.load(tmp_path / "episode.npz", allow_pickle=False)
    facts = json.loads(file["episode.json"])
    assert (facts["format"], facts["version"], facts["num_layers"]) == ("memory-suite episode", 1, 2)
    first, last, offset = (file[f"layer2/{name}"] for name in ("first", "last", "offset"))
    memory = int(np.argmax(last - first))
    pairs = slice(offset[memory], offset[memory] + last[memory] - first[memory] + 1)
    for t, mask in zip(range(first[memory], last[memory] + 1), file["layer2/mask"][pairs], strict=True):
        seen = record.layers[1].at(t)
        assert seen.mask[list(seen.birth).index(memory)] == mask
    pictures = np.cumsum(file["frames/00000"], axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(pictures[file["frame"][5]], record.frame(5))  # type: ignore[arg-type]


def test_every_member_is_described(record: EpisodeRecord, tmp_path: Path) -> None:
    record.save(tmp_path / "episode.npz")
    file = np.load(tmp_path / "episode.npz")
    described = (Path(__file__).parents[2] / "docs" / "recording.md").read_text()
    for name in file.files:
        generic = name.replace("layer1/", "layerL/").replace("layer2/", "layerL/")
        assert f"`{generic}`" in described or name == "episode.json", name
    for name in json.loads(file["episode.json"]):
        assert f"`{name}`" in described, name


@pytest.mark.parametrize("damage", ["cut", "other", "later", "missing"])
def test_a_file_that_is_none_is_refused(damage: str, record: EpisodeRecord, tmp_path: Path) -> None:
    path = tmp_path / "episode.npz"
    if damage == "later":
        record.facts["version"] = 2  # written after our own, so it wins
    record.save(path)
    record.facts.pop("version", None)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    if damage == "other":
        np.savez(path, action=np.zeros(3))
    if damage == "missing":
        path.unlink()
    with pytest.raises(EpisodeFileError, match=r"episode\.npz"):
        EpisodeRecord.load(path)


def test_pictures_are_kept_once() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in range(70)]
    pictures += [rng.integers(0, 256, (7, 5, 3), dtype=np.uint8), *pictures[::-1]]
    store = FrameStore()
    numbers = [store.add(picture) for picture in pictures]
    assert len(store) == 71
    for number, picture in zip(numbers, pictures, strict=True):
        np.testing.assert_array_equal(store[number], picture)
    assert sum(len(chunk) for _, chunk in store.chunks()) == 71


@pytest.mark.parametrize(
    ("action_space", "size", "kind"),
    [
        (spaces.Discrete(3), 3, "probabilities"),
        (spaces.MultiDiscrete([2, 3]), 5, "probabilities"),
        (spaces.MultiBinary(4), 4, "probabilities"),
        (spaces.Box(-1.0, 1.0, (2,), np.float32), 4, "mean and deviation"),
    ],
)
def test_any_action_space(action_space: spaces.Space[Any], size: int, kind: str, tmp_path: Path) -> None:
    env = AnySpace(spaces.Box(-1.0, 1.0, (3,), np.float32), action_space)
    record = record_episode(lively_model(env), env, seed=1)
    assert record.facts["choice"] == kind
    assert record.choice_TA.shape == (7, size)
    assert (record.cell_T1 == UNKNOWN_CELL).all() and not record.knows_cells
    assert (record.frame_T1 == -1).all() and record.frame(0) is None
    record.save(tmp_path / "episode.npz")
    np.testing.assert_array_equal(EpisodeRecord.load(tmp_path / "episode.npz").action_T, record.action_T)


def test_other_environments_draw_too() -> None:
    cart_pole = gym.make("CartPole-v1", render_mode="rgb_array")
    record = record_episode(lively_model(cart_pole), cart_pole, seed=0)
    assert record.frame(0) is not None and not record.knows_cells and record.tile == 0
    mini_grid = gym.make("MiniGrid-Empty-5x5-v0", render_mode="rgb_array", max_steps=20)
    mini_grid = gym.wrappers.FilterObservation(mini_grid, ["image", "direction"])
    record = record_episode(lively_model(mini_grid), mini_grid, seed=0)
    assert record.knows_cells and record.tile == 32
    assert record.facts["action_names"][2] == "forward"


def test_large_pictures_are_made_smaller() -> None:
    env = gym.make("MiniGrid-Empty-16x16-v0", render_mode="rgb_array", max_steps=3)
    env = gym.wrappers.FilterObservation(env, ["image", "direction"])
    record = record_episode(lively_model(env), env, seed=0)
    assert record.frame(0).shape == (256, 256, 3) and record.tile == 16  # type: ignore[union-attr]
    env.reset(seed=0)
    means = env.render().reshape(256, 2, 256, 2, 3).mean((1, 3))  # type: ignore[union-attr]
    np.testing.assert_allclose(record.frame(0), means, atol=1.0)  # type: ignore[arg-type]


def test_lines_of_text_are_kept(tmp_path: Path) -> None:
    class Reader(AnySpace):
        render_mode = "ansi"

        def render(self) -> str:  # type: ignore[override]
            return f"line {self.t}"

    env = Reader(spaces.Discrete(4), spaces.Discrete(2))
    record = record_episode(lively_model(env), env, seed=0)
    record.save(tmp_path / "episode.npz")
    assert EpisodeRecord.load(tmp_path / "episode.npz").lines == [f"line {t}" for t in range(8)]


def test_a_memory_free_agent_can_be_recorded(tmp_path: Path) -> None:
    env = corridor(length=5)
    model = MemoryPPO(
        "MemoryPolicy", env, n_steps=8, batch_size=8, device="cpu", policy_kwargs={"memory": "none"}
    )
    record = record_episode(model, env, seed=0)
    record.save(tmp_path / "episode.npz")
    assert EpisodeRecord.load(tmp_path / "episode.npz").layers == []


def test_an_environment_of_other_spaces_is_refused() -> None:
    model = lively_model(corridor(length=5))
    with pytest.raises(ValueError, match="action space"):
        record_episode(model, AnySpace(model.observation_space, spaces.Discrete(7)))
    with pytest.raises(ValueError, match="observation space"):
        record_episode(model, AnySpace(spaces.Discrete(7), model.action_space))


def test_a_space_is_told_without_the_bounds_of_every_element_unless_only_they_differ() -> None:
    bounds = np.arange(50.0, dtype=np.float32)
    ours, wider = spaces.Box(-bounds, bounds), spaces.Box(-bounds, bounds + 1.0)
    model = lively_model(AnySpace(ours, spaces.Discrete(2)))
    pair = spaces.Dict({"far": ours, "near": spaces.Discrete(3)})
    with pytest.raises(ValueError, match="observation space") as refused:
        record_episode(model, AnySpace(pair, model.action_space))
    assert str(refused.value) == (
        "env has the observation space Dict('far': Box of shape (50,) and dtype float32, 'near': Discrete(3))"
        ", but the agent was trained with Box of shape (50,) and dtype float32"
    )
    with pytest.raises(ValueError, match="observation space") as refused:
        record_episode(model, AnySpace(wider, model.action_space))
    assert str(wider) in str(refused.value) and str(ours) in str(refused.value)


def test_players_share_chance_step_by_step() -> None:
    """What a player draws at step t depends on (seed, t) and the probabilities, not on what it did before."""
    model = lively_model(corridor(length=12))
    torch.nn.init.zeros_(model.policy.action_net.weight)  # the same probabilities whatever is seen
    free, forced = (EpisodePlayer(model, corridor(length=12), seed=9) for _ in range(2))
    drawn: list[tuple[int, int]] = []
    for step in range(30):
        drawn.append((int(free.decide()[1]), int(forced.decide()[1])))
        free.act(np.int64(2 * (step % 2)))  # to and fro
        forced.act(np.int64(2))
    assert len({ours for ours, _ in drawn}) == 4
    assert all(ours == theirs for ours, theirs in drawn)
