"""Environments that cannot be solved without memory. Importing this package registers them with Gymnasium."""

from __future__ import annotations

from memory_suite.envs.registration import register_all

register_all()
