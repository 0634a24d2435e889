"""What every test relies on: one torch thread, no screen, and property tests that repeat their examples."""

from __future__ import annotations

import os

import torch
from hypothesis import settings

if os.name != "posix":  # no fork, no such signals, no limits on the size of files
    collect_ignore = ["faults"]

os.environ["SDL_VIDEODRIVER"] = "dummy"  # windows open, but nowhere
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
