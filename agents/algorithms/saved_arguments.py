"""Constructor arguments of an algorithm as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from memory_suite.agents.model.settings import PenaltySettings
from memory_suite.agents.serialization.spaces import KIND

UNSAVED = "function"
"""kind of an argument that is the user's own function, which must be passed again when loading"""


def to_json(value: Any) -> Any:
    """Convert a constructor argument to plain types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, LinearSchedule):
        return {KIND: "linear", "start": value.start, "end": value.end, "end_fraction": value.end_fraction}
    if isinstance(value, FloatSchedule):
        return to_json(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, PenaltySettings):
        return {KIND: type(value).__name__, **asdict(value)}
    if (
        isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and hasattr(torch.optim, value.__name__)
    ):
        return {KIND: "optimizer", "name": value.__name__}
    if isinstance(value, torch.device):
        return str(value)
    return {KIND: UNSAVED, "name": repr(value)}


def from_json(value: Any) -> Any:
    """Convert back what `to_json` returned.

    Raises:
        ValueError: the argument was a function, which no file can hold. The message continues a sentence that
            begins with the argument's name.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    rest = {key: from_json(item) for key, item in value.items() if key != KIND}
    if kind is None:
        return rest
    if kind == "linear":
        return LinearSchedule(**rest)
    if kind == "optimizer":
        optimizer = getattr(torch.optim, str(rest["name"]), None)
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise ValueError(f"names an optimizer that torch does not have, {rest['name']}")
        return optimizer
    if kind == PenaltySettings.__name__:
        return PenaltySettings(**rest)
    raise ValueError(f"was {rest.get('name')}, which no file can hold")
