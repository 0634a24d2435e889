"""Initialization of linear layers."""

from __future__ import annotations

from torch import nn


def orthogonal(linear: nn.Linear, gain: float = 1.0) -> nn.Linear:
    """Initialize so that a layer keeps the scale of its input.

    torch's own initialization shrinks it by a factor of 1.7. A policy often has to learn the product of
    something remembered and something seen, and the scale decides how soon it leaves that saddle point.
    """
    nn.init.orthogonal_(linear.weight, gain)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear
