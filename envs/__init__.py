"""Environments that cannot be solved without memory. Importing this package registers them with Gymnasium.

Each of `corridor`, `portal` and `instruction` has `rules` (arguments and random draws), `env` (the readable
reference) and `vector` (its vectorized version, a `BatchedEnv`). `streams` holds supervised tasks on tokens.
`registration` lists the names; `make` creates environments by name; `vec_env` adapts any vector environment
to stable-baselines3, with `space_checks` and `worker_errors` to name the environment that failed.

Imports nothing else of `memory_suite`. Within `envs`, imports follow the order in `tests/test_layout.py`.
"""

from __future__ import annotations

from memory_suite.envs.registration import register_all

register_all()
