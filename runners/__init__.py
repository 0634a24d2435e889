"""Who drives whom: training, evaluation, and the files, mirrors and displays around them."""

from __future__ import annotations

from pathlib import Path

import memory_suite

IMPORT_PATH = Path(memory_suite.__file__).resolve().parents[1]
"""directory that child processes need on PYTHONPATH to import `memory_suite`"""
