"""Initialization of linear layers."""

from __future__ import annotations

from torch import nn


def orthogonal(linear: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Initialize so that a layer keeps the scale of its input.

    torch's own initialization shrinks it by 1.7. What a policy has to find out is often the product of
    something remembered and something seen, and how soon it leaves that saddle depends on the scale.
    """
    nn.init.orthogonal_(linear.weight, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
