"""What the commands that show or probe single episodes share: which run, which environment, which episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import gymnasium as gym

from agents.episode_record import EpisodeRecord
from agents.on_policy import MemoryOnPolicyAlgorithm
from agents.recording import record_episode
from configs.command_line import Scalar
from configs.schema import TrainConfig, from_yaml
from envs.names import resolve
from envs.vec_env import check_arguments
from runners.agent_factory import restore_agent
from runners.run_folder import RunFolder

RENDER_MODES = ("rgb_array", "ansi")
"""in the order of preference"""


@dataclass(frozen=True, slots=True)
class TrainedAgent:
    """An agent out of a run folder, and the environment it is to be seen in."""

    agent: MemoryOnPolicyAlgorithm
    config: TrainConfig
    env_name: str
    env_args: dict[str, Scalar]
    checkpoint: str
    """name of the checkpoint's file"""

    @classmethod
    def open(
        cls,
        run: Path,
        checkpoint: Literal["best", "latest"] = "best",
        *,
        env: str | None = None,
        env_args: Mapping[str, Scalar] | None = None,
        device: str = "cpu",
    ) -> TrainedAgent:
        """Read a checkpoint.

        Args:
            run: run folder.
            checkpoint: which of its checkpoints.
            env: another environment than the one trained on.
            env_args: its arguments; without `env` they replace some of those of the evaluation.
            device: where the policy computes.

        Raises:
            ValueError: the run has no checkpoint that can be loaded.
        """
        folder = RunFolder.open(run)
        config = from_yaml(folder.config_file)
        chosen = folder.best_checkpoint() if checkpoint == "best" else folder.latest_checkpoint()
        agent, _ = restore_agent(chosen, None, device)
        same = env is None or env == config.env
        arguments = {**(config.evaluation_env_args if same else {}), **(env_args or {})}
        return cls(agent, config, env or config.env, arguments, chosen.path.name)

    def make_env(self, *, pictures: bool = True) -> gym.Env[Any, Any]:
        """One environment; ValueError names what is wrong with its name or arguments."""
        return make_env(self.env_name, self.env_args, pictures=pictures)

    def record(
        self, *, seed: int, deterministic: bool = False, max_steps: int | None = None, pictures: bool = True
    ) -> EpisodeRecord:
        """Play and record the episode of a seed."""
        env = self.make_env(pictures=pictures)
        facts = {"env_name": self.env_name, "env_args": dict(self.env_args), "checkpoint": self.checkpoint}
        try:
            return record_episode(
                self.agent,
                env,
                seed=seed,
                deterministic=deterministic,
                max_steps=max_steps,
                frames=pictures,
                facts=facts,
            )
        finally:
            env.close()


class EpisodeChoice(Protocol):
    """What the commands that show an episode have in common; see their options."""

    @property
    def run(self) -> Path | None: ...
    @property
    def record(self) -> Path | None: ...
    @property
    def checkpoint(self) -> Literal["best", "latest"]: ...
    @property
    def seed(self) -> int: ...
    @property
    def deterministic(self) -> bool: ...
    @property
    def max_steps(self) -> int | None: ...
    @property
    def env(self) -> str | None: ...
    @property
    def env_args(self) -> Mapping[str, Scalar]: ...


def episode_of(choice: EpisodeChoice) -> EpisodeRecord:
    """The episode that a command asks for, read or played; ValueError says what is wrong with it."""
    if choice.record is not None:
        return EpisodeRecord.load(choice.record)
    assert choice.run is not None
    trained = TrainedAgent.open(choice.run, choice.checkpoint, env=choice.env, env_args=choice.env_args)
    return trained.record(seed=choice.seed, deterministic=choice.deterministic, max_steps=choice.max_steps)


def make_env(name: str, env_args: Mapping[str, Scalar], *, pictures: bool = True) -> gym.Env[Any, Any]:
    """One plain environment by short name or Gymnasium id.

    Args:
        name: see `envs.names.resolve`.
        env_args: its arguments.
        pictures: let it draw, as `rgb_array` if it can, else as text.

    Raises:
        ValueError: nobody knows the name, or the environment refuses an argument.
    """
    env_id = resolve(name)
    kwargs: dict[str, Any] = dict(env_args)
    spec = gym.spec(env_id)
    check_arguments(name, spec, kwargs)
    entry: Any = spec.entry_point
    creator = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    offered = getattr(creator, "metadata", {}).get("render_modes", [])
    mode = next((mode for mode in RENDER_MODES if mode in offered), None) if pictures else None
    try:
        return gym.make(env_id, render_mode=mode, disable_env_checker=True, **kwargs)
    except (ValueError, TypeError, ImportError, gym.error.Error) as error:
        raise ValueError(f"env: {name} refuses its arguments: {error}") from error
