"""Words for an episode and its actions, as all pictures and pages show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from memory_suite.agents.episodes.record import EpisodeRecord


def episode_title(record: EpisodeRecord) -> str:
    """Environment, arguments, seed and outcome of an episode in one line."""
    facts = record.facts
    arguments = "".join(f", {key} {value}" for key, value in facts.get("env_args", {}).items())
    outcome = {True: ", success", False: ", failure", None: ""}[facts["is_success"]]
    return f"{facts.get('env_name') or facts['env']}{arguments}, seed {facts['seed']}{outcome}"


def taken_choices(record: EpisodeRecord, step: int) -> set[int]:
    """Indices into `choice_TA` of the action taken at a step."""
    action = np.asarray(record.action_T[step])
    size = record.choice_TA.shape[1]
    if action.ndim == 0:
        return {int(action)}
    if len(action) == size:  # MultiBinary: one entry per bit
        return set(np.flatnonzero(action).tolist())
    return set()  # MultiDiscrete: several choices side by side


def choice_name(record: EpisodeRecord, index: int) -> str:
    """Name of an entry of `choice_TA`."""
    names = record.facts["action_names"]
    return names[index] if names is not None and index < len(names) else f"action {index}"


def action_name(record: EpisodeRecord, step: int) -> str:
    """Name of the action taken at a step; numbers if it is not a single choice."""
    action = np.asarray(record.action_T[step])
    return choice_name(record, int(action)) if action.ndim == 0 and action.dtype.kind in "iu" else str(action)


def favorite_action(record: EpisodeRecord, choice: Sequence[float]) -> str:
    """Name of the most likely action."""
    return choice_name(record, int(np.argmax(choice))) if record.action_T.ndim == 1 else "act otherwise"
