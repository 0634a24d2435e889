"""Small sizes of what `python -m tests.faults --full --only worlds` plays at length."""

from __future__ import annotations

import pytest

from memory_suite.envs.registration import REGISTRY
from tests.faults import worlds

SHORT = ["corridor-short", "portal-short", "instruction-short"]


@pytest.mark.parametrize("name", REGISTRY)
def test_both_twins_agree_whatever_is_done(name: str) -> None:
    worlds.do_anything(name, 8)


@pytest.mark.parametrize("name", SHORT)
def test_nothing_seen_later_tells_what_to_remember(name: str) -> None:
    worlds.nothing_visible(name, 200_000).check()
