"""Equality all the way down."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal in type, keys, shape, dtype and value, all the way down."""
    assert type(mine) is type(theirs)
    if isinstance(mine, dict):
        assert set(mine) == set(theirs)
        for key in mine:
            assert_same(mine[key], theirs[key])
    elif isinstance(mine, tuple | list):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == theirs.dtype
        if mine.dtype == object:
            assert_same(tuple(mine), tuple(theirs))
        else:
            np.testing.assert_array_equal(mine, theirs)
    else:
        assert mine == theirs
