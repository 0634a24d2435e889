"""Exceptions about environments."""

from __future__ import annotations


class EnvFailedError(RuntimeError):
    """An environment violated its contract; the message names the environment, its seed and the step."""


class SpaceMismatchError(EnvFailedError):
    """An environment returned a value of another shape or type than its spaces declare."""
