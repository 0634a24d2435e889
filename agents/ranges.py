"""Range checks of numbers. Importing them does not import torch."""

from __future__ import annotations

import math


def check(option: str, value: float | int, interval: str) -> None:
    """Check that a number lies in an interval such as "[0, 1)".

    Raises:
        ValueError: the number lies outside; the message names the option and the range.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if above and below:
        return
    if math.isinf(high):
        allowed = f"{'greater than' if interval[0] == '(' else 'at least'} {low:g}, and finite"
        if isinstance(value, int):
            allowed = allowed.removesuffix(", and finite")
        raise ValueError(f"{option} must be {allowed}, got {value}")
    raise ValueError(f"{option} must lie in {interval}, got {value}")


def check_optional(option: str, value: float | int | None, interval: str) -> None:
    """Like `check`, for an option that may be None."""
    if value is not None:
        check(option, value, interval)
