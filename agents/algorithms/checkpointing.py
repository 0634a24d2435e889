"""Saving and loading of algorithms: one safe archive, with or without the state of training."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import get_system_info

from memory_suite.agents.algorithms.forgetting import Forgetting
from memory_suite.agents.algorithms.return_scale import ReturnScale
from memory_suite.agents.algorithms.saved_arguments import from_json, to_json
from memory_suite.agents.algorithms.span_shortening import RandomShortening
from memory_suite.agents.diagnostics.cue_retention import cat_needed
from memory_suite.agents.diagnostics.rollout_diagnostics import RolloutDiagnostics
from memory_suite.agents.diagnostics.success_window import SuccessWindow
from memory_suite.agents.distributed import DistributedContext, cat_rows, select_rows
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.policy.policy import MemoryPolicy
from memory_suite.agents.serialization.archive import ArchiveError, read_archive, write_archive
from memory_suite.agents.serialization.random_state import random_state, set_random_state
from memory_suite.agents.serialization.spaces import decode_space, describe_difference, encode_space
from memory_suite.agents.serialization.state_tree import flatten, unflatten

Self = TypeVar("Self", bound="CheckpointedAlgorithm")


class CheckpointedAlgorithm(OnPolicyAlgorithm):
    """An on-policy algorithm that is saved as a safe archive, never as a pickle.

    `save`, `load` and `set_parameters` are stable-baselines3's. With its training state a model continues bit
    for bit where it was saved.
    """

    SAVED_ARGUMENTS: ClassVar[tuple[str, ...]]
    """constructor arguments that a saved model contains"""
    policy: MemoryPolicy  # type: ignore[assignment]
    ranks: DistributedContext
    forgetting: Forgetting
    return_scale: ReturnScale
    shortening: RandomShortening
    success_window: SuccessWindow
    diagnostics: RolloutDiagnostics
    _memory: MemoryState | None

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
            exclude: constructor arguments to leave out; a loaded model has their defaults.
            include: constructor arguments to write although `exclude` names them.
            with_training_state: also write what an exact continuation needs: random generators, memory
                contents, environments, statistics.

        Raises:
            ValueError: `exclude` or `include` names an argument that the model does not have.
        """
        tree = self.state_tree(with_training_state=with_training_state)
        excluded, included = set(exclude or ()), set(include or ())
        for name in sorted(excluded | included):
            if name not in tree["settings"]:
                known = ", ".join(tree["settings"])
                raise ValueError(f"exclude, include: a model has no argument {name!r}; it has {known}")
        for name in excluded - included:
            del tree["settings"][name]
        tensors, data = flatten(tree)
        write_archive(_with_suffix(path), tensors, data)

    def set_parameters(
        self,
        load_path_or_dict: str | Path | BufferedIOBase | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """As SB3's; reads the weights and the optimizer's state of a file that `save` wrote."""
        if not isinstance(load_path_or_dict, dict):
            tree = unflatten(*read_archive(_with_suffix(load_path_or_dict)))
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
        """Load a model that `save` wrote; reading it runs no code.

        Args:
            path: the file, or a binary stream.
            env: environments to continue learning in; not needed for `predict`.
            device: device of the weights.
            custom_objects: constructor arguments by name, instead of the saved ones.
            print_system_info: print the versions of installed packages.
            force_reset: ignored, accepted for compatibility with SB3; a loaded model begins with a reset
                unless the file contains the training state.
            changes: the same as `custom_objects`, as in SB3.

        Raises:
            ArchiveError: the file is damaged, is not an archive, or another revision wrote it.
            ValueError: the file contains another algorithm, or its spaces differ from those of `env`.
        """
        if print_system_info:
            get_system_info()
        tree = unflatten(*read_archive(_with_suffix(path)))
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
        """Build the model that `state_tree` describes; arguments and errors as `load`."""
        if tree["algorithm"] != cls.__name__:
            raise ValueError(
                f"the saved model is a {tree['algorithm']}; load it with that class, not {cls.__name__}"
            )
        settings = {}
        for name, value in tree["settings"].items():
            if name not in replaced:
                try:
                    settings[name] = from_json(value)
                except ValueError as error:
                    raise ValueError(
                        f"{name} of the saved model {error}; give it again: custom_objects={{{name!r}: ...}}"
                    ) from None
        model = cls(
            "MemoryPolicy",
            env,  # type: ignore[arg-type]  # None: only to predict
            device=device,
            _init_setup_model=False,
            **{**settings, **replaced},
        )
        for name in ("observation_space", "action_space"):
            saved = decode_space(tree[name])
            if env is not None and getattr(model, name) != saved:
                here, there = describe_difference(getattr(model, name), saved)
                raise ValueError(f"the {name} of env is {here}, but the model was saved with {there}")
            setattr(model, name, saved)
        if env is None:
            model.n_envs = tree["n_envs"]
        model._setup_model()
        model.load_state_tree(tree)
        return model

    def state_tree(self, *, with_training_state: bool) -> dict[str, Any]:
        """The state of the model, as a tree of tensors, arrays and plain types.

        The tree does not depend on the number of ranks. All ranks must ask for the training state; rank 0
        gets it.
        """
        settings = {name: to_json(getattr(self, name)) for name in self.SAVED_ARGUMENTS}
        settings["stats_window_size"] = self._stats_window_size
        optimizer = self.policy.optimizer.state_dict()
        tree: dict[str, Any] = {
            "algorithm": type(self).__name__,
            "settings": settings,
            "observation_space": encode_space(self.observation_space),
            "action_space": encode_space(self.action_space),
            "n_envs": self.ranks.world_size * self.n_envs,
            "policy": dict(self.policy.state_dict()),
            "optimizer": {
                **optimizer,
                "state": {str(key): value for key, value in optimizer["state"].items()},
            },
            "counters": {name: getattr(self, name) for name in _COUNTERS},
            "forgetting": self.forgetting.state_dict(),
            "return_scale": self.return_scale.state_dict(),
        }
        if with_training_state:
            tree["training"] = self._training_state()
        return tree

    def load_state_tree(self, tree: dict[str, Any]) -> None:
        """Restore what `state_tree` returned, including the training state if there is one."""
        self.policy.load_state_dict(tree["policy"])
        self.policy.optimizer.load_state_dict(_optimizer_state(tree))
        for name, value in tree["counters"].items():
            setattr(self, name, value)
        self.forgetting.load_state_dict(tree["forgetting"])
        self.return_scale.load_state_dict(tree["return_scale"])
        if "training" in tree and self.env is not None:
            self._load_training_state(tree["training"])

    def _training_state(self) -> dict[str, Any]:
        assert self._memory is not None
        assert self.env is not None
        statistics = self.diagnostics.memory.state_dict()
        rows: dict[str, Any] = {
            "last_obs": self._last_obs,
            "last_episode_starts": self._last_episode_starts,
            "last_cues": self.diagnostics.cues.cue_B,
            "last_done_cues": self.diagnostics.cues.done_B,
            "shortening": self.shortening.state_dict(),
        }
        if self.resumes_exactly:
            rows["env"] = self.env.state_dict()  # type: ignore[attr-defined]
        memory = self._memory
        if self.ranks.is_distributed:
            shards = self.ranks.gather_object(
                (rows, memory.to("cpu"), self.diagnostics.memory.retention.needed_BN)
            )
            if not shards:
                return {}
            all_rows, memories, needed = zip(*shards, strict=True)
            rows, memory = cat_rows(list(all_rows)), MemoryState.cat(memories)
            statistics["retention"]["needed"] = cat_needed(needed)
        return {
            **rows,
            "memory": memory.state_dict(),
            "episodes": list(self.ep_info_buffer or []),
            "full_memory_returns": list(self.diagnostics.full_memory_returns),
            "successes": [bool(success) for success in self.ep_success_buffer or []],
            "success_window": self.success_window.state_dict(),
            "memory_statistics": statistics,
            "random": random_state(self.device),
        }

    def _load_training_state(self, state: dict[str, Any]) -> None:
        statistics = state["memory_statistics"]
        memory = MemoryState.from_state_dict(state["memory"])
        if self.ranks.is_distributed:
            own = self.ranks.rows(self.n_envs)
            of_rows = ("last_obs", "last_episode_starts", "last_cues", "last_done_cues", "shortening", "env")
            state = state | {name: select_rows(state[name], own) for name in of_rows if name in state}
            memory = memory.select(torch.arange(own.start, own.stop)).trimmed()
            retention = statistics["retention"]
            statistics = statistics | {"retention": retention | {"needed": retention["needed"][own]}}
        self.ep_info_buffer = deque(state["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(state["successes"], maxlen=self._stats_window_size)
        self.success_window.load_state_dict(state["success_window"])
        self.diagnostics.full_memory_returns.extend(state["full_memory_returns"])
        self.diagnostics.memory.load_state_dict(statistics)
        self.shortening.load_state_dict(state["shortening"])
        if "env" in state:
            self.env.load_state_dict(state["env"])  # type: ignore[union-attr]
            self._memory = memory.to(self.device)
            self._last_obs = state["last_obs"]
            self._last_episode_starts = state["last_episode_starts"]
            self.diagnostics.cues.cue_B = state["last_cues"]
            self.diagnostics.cues.done_B = state["last_done_cues"]
        # Last, since building environments and models may draw from the generators.
        set_random_state(state["random"], self.device)

    @property
    def resumes_exactly(self) -> bool:
        """Whether the environments can save their state, so that resumed runs equal uninterrupted ones."""
        return bool(getattr(self.env, "can_save_state", False))


_COUNTERS = (
    "num_timesteps",
    "rollouts_done",
    "_n_updates",
    "_episode_num",
    "_current_progress_remaining",
    "_total_timesteps",
)


def _optimizer_state(tree: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's state in a `state_tree`, with the integer keys that torch expects."""
    optimizer = tree["optimizer"]
    return {**optimizer, "state": {int(key): value for key, value in optimizer["state"].items()}}


def _with_suffix(path: str | Path | BufferedIOBase) -> Path | BufferedIOBase:
    """Add .zip to a path without a suffix, as SB3 does; streams are returned as they are."""
    if not isinstance(path, str | Path):
        return path
    return Path(path) if Path(path).suffix else Path(f"{path}.zip")
