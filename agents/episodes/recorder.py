"""Play one reproducible episode and record the agent's memory at every step.

    from memory_suite.agents.episodes.recorder import record_episode

    env = gymnasium.make("MemorySuite/CorridorLong-v0", render_mode="rgb_array")
    record = record_episode(model, env, seed=7)
    record.save(Path("episode.npz"))

Works with any model of this package and any Gymnasium environment. An environment may provide the position of
its agent and the section of the world in its picture (docs/recording.md). Recording uses random generators of
its own, so it is possible during training.

Arrays end in the letters of `agents.episodes.record`, tensors of the policy in those of `agents.model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage

from memory_suite.agents.algorithms.on_policy import MemoryOnPolicyAlgorithm
from memory_suite.agents.diagnostics.cue_tracker import info_numbers
from memory_suite.agents.episodes.record import UNKNOWN_CELL, EpisodeRecord, FrameStore, LayerRecord
from memory_suite.agents.model.layer import MemoryDetail
from memory_suite.agents.policy.policy import MemoryPolicy, PolicyStep
from memory_suite.agents.serialization.spaces import describe_difference

Agent = MemoryOnPolicyAlgorithm | MemoryPolicy

PROBABILITIES = "probabilities"
MEAN_AND_DEVIATION = "mean and deviation"
MAX_FRAME_PIXELS = 240_000
"""larger pictures are reduced by 2, 4, ... (CartPole's 600 x 400 is just small enough)"""
_SEED_STRIDE = 1_000_003
"""step t of an episode with seed s samples with the generator seed s * _SEED_STRIDE + t"""


class EpisodePlayer:
    """One episode, step by step: `decide`, then `act`, until `over`.

    The same seed gives the same episode. The action of step t is sampled with random numbers that depend on
    the seed and t alone, so two players that differ in one memory or action share all other random numbers.
    """

    def __init__(
        self, agent: Agent, env: gym.Env[Any, Any], *, seed: int, deterministic: bool = False
    ) -> None:
        """Begin the episode.

        Args:
            agent: a model or its policy; it is not changed.
            env: the environment; it is reset with `seed`.
            seed: seed of the environment and of the sampled actions.
            deterministic: take the most likely action instead of sampling.

        Raises:
            ValueError: the environment's spaces are not those of the agent.
        """
        self.policy = agent if isinstance(agent, MemoryPolicy) else agent.policy
        self.env = env
        self.seed = seed
        self.deterministic = deterministic
        self.state = self.policy.initial_state(1)
        """the memory; it may be edited between two steps"""
        self.step = 0
        self.episode_return = 0.0
        self.over = self.terminated = self.truncated = False
        self.observation, self.info = env.reset(seed=seed)
        _check_spaces(self.policy, env)

    @property
    def cue(self) -> int:
        """Number of the cue in sight; 0: none."""
        return int(info_numbers([self.info], "cue")[0])

    def decide(self, details: list[MemoryDetail] | None = None) -> tuple[PolicyStep, Any]:
        """Act with the policy; returns its output and the action for the environment. Updates the memory."""
        policy = self.policy
        with self._undisturbed():
            tensor, _ = policy.obs_to_tensor(self.observation)
            policy_step = policy.act(
                policy.encoder.preprocess(tensor),
                self.state,
                torch.tensor([self.step == 0], device=policy.device),
                cue_B=torch.tensor([self.cue], device=policy.device),
                deterministic=self.deterministic,
                details=details,
            )
        self.state = policy_step.state
        return policy_step, policy.to_env(policy_step.actions)[0]

    def act(self, action: Any) -> float:
        """Step the environment with an action; returns the reward."""
        self.observation, reward, self.terminated, self.truncated, self.info = self.env.step(action)
        self.step += 1
        self.episode_return += float(reward)
        self.over = self.terminated or self.truncated
        return float(reward)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Restore global random state, the policy's mode and its running statistics afterwards."""
        policy = self.policy
        devices = [policy.device] if policy.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), policy.watching():
            torch.manual_seed((self.seed * _SEED_STRIDE + self.step) % 2**63)
            yield


def record_episode(
    agent: Agent,
    env: gym.Env[Any, Any],
    *,
    seed: int = 0,
    deterministic: bool = False,
    max_steps: int | None = None,
    frames: bool = True,
    contents: bool = True,
    facts: dict[str, Any] | None = None,
) -> EpisodeRecord:
    """Play one episode and record it.

    Args:
        agent: a model, or its policy.
        env: one environment; if it has a `render_mode`, its pictures or lines of text are recorded.
        seed: seed of the environment and of the sampled actions.
        deterministic: take the most likely action instead of sampling.
        max_steps: largest number of steps; None: until the episode ends.
        frames: record pictures.
        contents: record the content h_i of each memory, which probes need.
        facts: further facts for the record, of plain types.

    Raises:
        ValueError: the environment's spaces are not those of the agent.
    """
    player = EpisodePlayer(agent, env, seed=seed, deterministic=deterministic)
    writer = _Writer(player, keep_frames=frames, keep_contents=contents)
    while not player.over and (max_steps is None or player.step < max_steps):
        writer.look()
        details: list[MemoryDetail] = []
        policy_step, action = player.decide(details)
        writer.remember(policy_step, action, details)
        writer.reward.append(player.act(action))
    writer.look()
    return writer.finish(facts or {})


class _Writer:
    """Collects the record of an episode step by step."""

    def __init__(self, player: EpisodePlayer, *, keep_frames: bool, keep_contents: bool) -> None:
        self._player = player
        self._keep_frames = keep_frames
        self._keep_contents = keep_contents
        self._frames = FrameStore()
        self._lines: list[str] = []
        self._places: list[tuple[int, int, int, int]] = []
        self._frame_numbers: list[int] = []
        self._tile = 0
        self._action: list[NDArray[Any]] = []
        self._value: list[float] = []
        self._log_prob: list[float] = []
        self._choice: list[NDArray[np.float32]] = []
        self._choice_kind = PROBABILITIES
        self._cue: list[int] = []
        self._span: list[list[float]] = []
        self._seen: list[list[tuple[NDArray[Any], ...]]] = []
        self._content: list[list[NDArray[np.float32]]] = []
        self.reward: list[float] = []

    def look(self) -> None:
        """Record the picture or line of text before a step, or after the last one."""
        player = self._player
        picture: Any = player.env.render() if player.env.render_mode is not None else None
        line = getattr(player.env.unwrapped, "line", picture if isinstance(picture, str) else None)
        if line is not None:
            self._lines.append(str(line))
        number = -1
        cell, origin, tile = place_of(player.env)
        if self._keep_frames and isinstance(picture, np.ndarray) and picture.ndim == 3:
            factor = _reduction(picture, tile)
            number = self._frames.add(_reduced(picture[:, :, :3], factor))
            tile //= factor
        self._frame_numbers.append(number)
        self._tile = tile or self._tile
        self._places.append((*cell, *origin))

    def remember(self, policy_step: PolicyStep, action: Any, details: list[MemoryDetail]) -> None:
        """Record the output of the policy, and the memories it saw."""
        self._choice_kind, choices = choices_of(policy_step.distribution)
        self._choice.append(choices[0])
        self._action.append(np.asarray(action))
        self._value.append(policy_step.values_B.item())
        self._log_prob.append(policy_step.log_prob_B.item())
        self._cue.append(self._player.cue)
        self._span.append([report.span_BG.max().item() for report in policy_step.reports])
        seen = []
        for detail in details:
            alive = (detail.mask_BT[0] > 0.0).cpu().numpy()
            arrays = (detail.birth_BT[0], detail.span_BT[0], detail.mask_BT[0], detail.attention_BHT[0].T)
            seen.append(tuple(array.cpu().numpy()[alive] for array in arrays))
        self._seen.append(seen)
        if self._keep_contents:
            step = self._player.step
            rows = []
            for layer in self._player.state.layers:
                store = layer.to_rows()
                slot = int((store.birth_BT[0] == step).nonzero()[0])
                rows.append(store.h_BTD[0, slot].cpu().numpy().astype(np.float32))
            self._content.append(rows)

    def finish(self, facts: dict[str, Any]) -> EpisodeRecord:
        """Build the record."""
        player = self._player
        policy = player.policy
        settings = policy.transformer.settings
        places = np.array(self._places, dtype=np.int32)
        outcome = {name: player.info[name] for name in ("is_success", "episode_class") if name in player.info}
        names = action_names(player.env)
        return EpisodeRecord(
            facts={
                "env": _env_id(player.env),
                "seed": player.seed,
                "deterministic": player.deterministic,
                "num_steps": player.step,
                "return": player.episode_return,
                "terminated": player.terminated,
                "truncated": player.truncated,
                "is_success": bool(outcome["is_success"]) if "is_success" in outcome else None,
                "episode_class": str(outcome["episode_class"]) if "episode_class" in outcome else None,
                "choice": self._choice_kind,
                "action_names": names,
                "ramp": settings.ramp,
                "max_span": settings.max_span,
                "num_heads": settings.num_heads,
                "tile": self._tile,
                **facts,
            },
            action_T=np.array(self._action),
            reward_T=np.array(self.reward, dtype=np.float32),
            value_T=np.array(self._value, dtype=np.float32),
            log_prob_T=np.array(self._log_prob, dtype=np.float32),
            choice_TA=np.array(self._choice, dtype=np.float32),
            cue_T=np.array(self._cue, dtype=np.int32),
            cell_T1=places[:, :2],
            origin_T1=places[:, 2:],
            frame_T1=np.array(self._frame_numbers, dtype=np.int32),
            layers=[self._layer(number) for number in range(len(self._seen[0]))],
            frames=self._frames,
            lines=self._lines if len(self._lines) == len(self._places) else None,
        )

    def _layer(self, number: int) -> LayerRecord:
        """Sort what each step saw by memory."""
        num_steps = len(self._seen)
        counts = [len(seen[number][0]) for seen in self._seen]
        step_N = np.repeat(np.arange(num_steps), counts)
        birth_N, span_N, mask_N, attention_NH = (
            np.concatenate([seen[number][part] for seen in self._seen]) for part in range(4)
        )
        order = np.lexsort((step_N, birth_N))
        step_N, birth_N = step_N[order], birth_N[order]
        birth_M = np.arange(num_steps)
        start, end = np.searchsorted(birth_N, birth_M, "left"), np.searchsorted(birth_N, birth_M, "right")
        first_M = birth_M + 1
        assert (step_N - birth_N == np.arange(len(birth_N)) - start[birth_N] + 1).all()  # seen without a gap
        content = [rows[number] for rows in self._content] if self._content else None
        return LayerRecord(
            birth_M=birth_M.astype(np.int32),
            span_M=np.array([spans[number] for spans in self._span], dtype=np.float32),
            first_M=first_M.astype(np.int32),
            last_M=(first_M + (end - start) - 1).astype(np.int32),
            offset_M=start.astype(np.int64),
            remaining_N=(span_N[order] - (step_N - birth_N)).astype(np.float32),
            mask_N=mask_N[order].astype(np.float32),
            attention_NH=attention_NH[order].astype(np.float16),
            content_MD=None if content is None else np.array(content, dtype=np.float32),
        )


def choices_of(distribution: Distribution) -> tuple[str, NDArray[np.float32]]:
    """Kind and parameters [B, A] of the distribution of actions; see `EpisodeRecord.choice_TA`."""
    inner: Any = distribution.distribution
    if isinstance(distribution, CategoricalDistribution | BernoulliDistribution):
        parts, kind = [inner.probs], PROBABILITIES
    elif isinstance(distribution, MultiCategoricalDistribution):
        parts, kind = [part.probs for part in inner], PROBABILITIES
    else:
        assert isinstance(distribution, DiagGaussianDistribution)
        parts, kind = [inner.mean, inner.stddev], MEAN_AND_DEVIATION
    return kind, torch.cat([part.detach() for part in parts], 1).cpu().numpy().astype(np.float32)


def place_of(env: gym.Env[Any, Any]) -> tuple[tuple[int, int], tuple[int, int], int]:
    """The agent's position and the section of the world in the picture, if the environment provides them.

    Returns:
        World cell (x, y) of the agent, world cell in the upper left corner of the picture, and pixels per
        cell (0: the picture does not show cells).
    """
    base: Any = env.unwrapped
    if hasattr(base, "agent_cell"):
        x, y = base.agent_cell
        left, top = getattr(base, "frame_origin", (0, 0))
        return (int(x), int(y)), (int(left), int(top)), int(getattr(base, "frame_tile", 0))
    if getattr(base, "agent_pos", None) is not None and hasattr(base, "tile_size"):  # MiniGrid
        x, y = base.agent_pos
        tile = 0 if getattr(base, "agent_pov", False) else int(base.tile_size)
        return (int(x), int(y)), (0, 0), tile
    return (UNKNOWN_CELL, UNKNOWN_CELL), (0, 0), 0


def action_names(env: gym.Env[Any, Any]) -> list[str] | None:
    """Names of the actions, if the environment provides them."""
    base: Any = env.unwrapped
    if hasattr(base, "action_names"):
        return [str(name) for name in base.action_names]
    actions = getattr(base, "actions", None)  # MiniGrid: an IntEnum
    if actions is not None and hasattr(actions, "__members__"):
        return [name.replace("_", " ") for name in actions.__members__]
    return None


def _reduction(picture: NDArray[np.uint8], tile: int) -> int:
    """Integer factor by which a picture is reduced, such that a cell is a whole number of pixels."""
    factor = 1
    while picture.shape[0] * picture.shape[1] > MAX_FRAME_PIXELS * factor**2 and tile % (2 * factor) == 0:
        factor *= 2
    return factor


def _reduced(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of blocks; a remainder at the right and at the bottom is cut off."""
    if factor == 1:
        return picture
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    blocks = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    return (blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def _env_id(env: gym.Env[Any, Any]) -> str:
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def _check_spaces(policy: MemoryPolicy, env: gym.Env[Any, Any]) -> None:
    if env.action_space != policy.action_space:
        theirs, ours = describe_difference(env.action_space, policy.action_space)
        raise ValueError(f"env has the action space {theirs}, but the agent was trained with {ours}")
    if policy.observation_space not in (env.observation_space, _channels_first(env.observation_space)):
        theirs, ours = describe_difference(env.observation_space, policy.observation_space)
        raise ValueError(f"env has the observation space {theirs}, but the agent was trained with {ours}")


def _channels_first(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """The space with images transposed, as SB3 does for policies."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: _channels_first(part) for name, part in space.spaces.items()})
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space
