"""Constructor arguments and spaces as plain JSON types, so that a saved model holds no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from agents.span_penalty import SpanPenaltySettings

KIND = "__kind__"
UNSAVED = "function"
"""kind of an argument that is a function of the user's: it must be given again when loading"""


def encode(value: Any) -> Any:
    """A constructor argument as plain types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, LinearSchedule):
        return {KIND: "linear", "start": value.start, "end": value.end, "end_fraction": value.end_fraction}
    if isinstance(value, FloatSchedule):
        return encode(value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return value.val
    if isinstance(value, SpanPenaltySettings):
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


def decode(value: Any) -> Any:
    """The argument that `encode` wrote.

    Raises:
        ValueError: it was a function, which no file can hold. The message goes on from the argument's name.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(KIND)
    rest = {key: decode(item) for key, item in value.items() if key != KIND}
    if kind is None:
        return rest
    if kind == "linear":
        return LinearSchedule(**rest)
    if kind == "optimizer":
        optimizer = getattr(torch.optim, str(rest["name"]), None)
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise ValueError(f"names an optimizer that torch does not have, {rest['name']}")
        return optimizer
    if kind == SpanPenaltySettings.__name__:
        return SpanPenaltySettings(**rest)
    raise ValueError(f"was {rest.get('name')}, which no file can hold")


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space as plain types; raises ValueError for kinds that the agents do not take."""
    if isinstance(space, spaces.Box):
        return {
            KIND: "box",
            # As text, since JSON has no infinity.
            "low": [str(bound) for bound in space.low.reshape(-1).tolist()],
            "high": [str(bound) for bound in space.high.reshape(-1).tolist()],
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return {KIND: "discrete", "n": int(space.n), "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            KIND: "multi_discrete",
            "nvec": space.nvec.tolist(),
            "start": np.asarray(space.start).tolist(),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.MultiBinary):
        return {KIND: "multi_binary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {KIND: "dict", "spaces": {key: encode_space(part) for key, part in space.spaces.items()}}
    raise ValueError(f"a model with the space {space} cannot be saved")


def decode_space(plain: Mapping[str, Any]) -> spaces.Space[Any]:
    """The space that `encode_space` wrote."""
    kind = plain[KIND]
    if kind == "box":
        dtype = np.dtype(plain["dtype"])
        low, high = (np.array(plain[side], dtype=str).astype(dtype) for side in ("low", "high"))
        return spaces.Box(low.reshape(plain["shape"]), high.reshape(plain["shape"]), dtype=dtype.type)
    if kind in ("discrete", "multi_discrete"):
        integer: Any = np.dtype(plain.get("dtype", np.int64)).type  # files of older versions do not say
        if kind == "discrete":
            return spaces.Discrete(plain["n"], start=plain["start"], dtype=integer)
        return spaces.MultiDiscrete(plain["nvec"], start=plain["start"], dtype=integer)
    if kind == "multi_binary":
        shape = plain["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "dict":
        return spaces.Dict({key: decode_space(part) for key, part in plain["spaces"].items()})
    raise ValueError(f"the file names an unknown kind of space: {kind!r}")


def told_apart(one: spaces.Space[Any], other: spaces.Space[Any]) -> tuple[str, str]:
    """Two spaces for a message, without the bounds of every element if they differ otherwise."""
    brief, other_brief = _brief(one), _brief(other)
    return (brief, other_brief) if brief != other_brief else (str(one), str(other))


def _brief(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{name!r}: {_brief(part)}' for name, part in space.spaces.items())})"
    if isinstance(space, spaces.Box):
        return f"Box of shape {space.shape} and dtype {space.dtype}"
    return str(space)
