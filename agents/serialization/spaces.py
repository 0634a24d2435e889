"""Spaces as plain JSON types, so that a saved model contains no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

KIND = "__kind__"


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Convert a space to plain types; raises ValueError for kinds that agents do not support."""
    if isinstance(space, spaces.Box):
        return {
            KIND: "box",
            # Text, since JSON has no infinity.
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
    """Convert back what `encode_space` returned."""
    kind = plain[KIND]
    if kind == "box":
        dtype = np.dtype(plain["dtype"])
        low, high = (np.array(plain[side], dtype=str).astype(dtype) for side in ("low", "high"))
        return spaces.Box(low.reshape(plain["shape"]), high.reshape(plain["shape"]), dtype=dtype.type)
    if kind in ("discrete", "multi_discrete"):
        integer: Any = np.dtype(plain["dtype"]).type
        if kind == "discrete":
            return spaces.Discrete(plain["n"], start=plain["start"], dtype=integer)
        return spaces.MultiDiscrete(plain["nvec"], start=plain["start"], dtype=integer)
    if kind == "multi_binary":
        shape = plain["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "dict":
        return spaces.Dict({key: decode_space(part) for key, part in plain["spaces"].items()})
    raise ValueError(f"the file names an unknown kind of space: {kind!r}")


def describe_difference(one: spaces.Space[Any], other: spaces.Space[Any]) -> tuple[str, str]:
    """Two spaces as text for a message; bounds of each element only if nothing else differs."""
    brief, other_brief = _brief(one), _brief(other)
    return (brief, other_brief) if brief != other_brief else (str(one), str(other))


def _brief(space: spaces.Space[Any]) -> str:
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{name!r}: {_brief(part)}' for name, part in space.spaces.items())})"
    if isinstance(space, spaces.Box):
        return f"Box of shape {space.shape} and dtype {space.dtype}"
    return str(space)
