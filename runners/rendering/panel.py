"""The panel interface and the geometry that panels share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memory_suite.agents.episodes.record import EpisodeRecord

Picture = NDArray[np.uint8]


WIDTH = 1280


MARGIN = 28


GAP = 14


AXIS_LEFT = 134
"""where the time axis begins, leaving room for labels"""


EXPIRED_STEPS = 3
"""a memory that expired within so many steps is outlined"""


TEXT_LINES = 12


class _Panel(ABC):
    """Part of a picture, over its whole width or a part of it."""

    left = MARGIN
    top = 0
    width = WIDTH - 2 * MARGIN
    height = 0
    offset = 0
    """how far below the top of its row it begins"""

    def prepare(self, image: Image.Image) -> None:  # noqa: B027  (most have something, not all)
        """Draw what is the same at every step."""

    @abstractmethod
    def draw(self, image: Image.Image, step: int) -> None:
        """Draw what belongs to a step."""


def title(record: EpisodeRecord) -> str:
    """Which episode this is."""
    facts = record.facts
    arguments = "".join(f", {key} {value}" for key, value in facts.get("env_args", {}).items())
    outcome = {True: ", success", False: ", failure", None: ""}[facts["is_success"]]
    return f"{facts.get('env_name') or facts['env']}{arguments}, seed {facts['seed']}{outcome}"


def taken_choices(record: EpisodeRecord, step: int) -> set[int]:
    """Which entries of `choice_TA` the action of a step stands for."""
    action = np.asarray(record.action_T[step])
    size = record.choice_TA.shape[1]
    if action.ndim == 0:
        return {int(action)}
    if len(action) == size:  # one bit each
        return set(np.flatnonzero(action).tolist())
    return set()  # several choices side by side


def choice_name(record: EpisodeRecord, index: int) -> str:
    """What an entry of `choice_TA` is called."""
    names = record.facts["action_names"]
    return names[index] if names is not None and index < len(names) else f"action {index}"


def favorite_action(record: EpisodeRecord, choice: Sequence[float]) -> str:
    """Name of the most likely action, for display."""
    return choice_name(record, int(np.argmax(choice))) if record.action_T.ndim == 1 else "act otherwise"
