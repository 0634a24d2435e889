"""Command-line programs: training, evaluation, sweeps, benchmarks.

The modules here are commands; the sub-packages hold what they share and import no command. From the lowest
floor up: `run` and `plotting`; `rendering`; `training`; `sequences` and `sweeps`; `benchmarks`. Everything of
`agents`, `envs` and `configs` may be imported.
"""

from __future__ import annotations

from pathlib import Path

import memory_suite

IMPORT_PATH = Path(memory_suite.__file__).resolve().parents[1]
"""directory that child processes need on PYTHONPATH to import `memory_suite`"""
