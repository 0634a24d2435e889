"""Object collision written straight from its rules, one frame and one particle after another."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple


class Frame(NamedTuple):
    """What one frame shows and asks."""

    cells: list[tuple[int, int]]
    colors: list[int]
    asked: tuple[int, int]
    target: int | None
    """quadrant; None: not scored"""
    age: int | None
    """frames since the collision that is asked about"""
    easy: bool


def frames(rng: random.Random, easy_question: str) -> Iterator[Frame]:
    """A stream of frames without end."""
    places = [[rng.uniform(0, 15), rng.uniform(0, 15)] for _ in range(2)]
    velocities = [[rng.gauss(0, 0.5), rng.gauss(0, 0.5)] for _ in range(2)]
    colors = [rng.randrange(5) for _ in range(2)]
    last: dict[tuple[int, int], tuple[int, tuple[int, int]]] = {}
    latest: tuple[int, int] | None = None
    number = 0
    while True:
        for particle in range(2):
            while not all(
                0 < place + speed < 15
                for place, speed in zip(places[particle], velocities[particle], strict=True)
            ):
                velocities[particle] = [rng.gauss(0, 0.5), rng.gauss(0, 0.5)]
            for axis in range(2):
                places[particle][axis] += velocities[particle][axis]
            if rng.random() < 0.05:
                colors[particle] = rng.randrange(5)
        cells = [(round(place[0]), round(place[1])) for place in places]
        if cells[0] == cells[1]:
            latest = (colors[0], colors[1])
            last[latest] = (number, cells[0])
        easy = rng.random() < 0.4 and latest is not None
        if not easy:
            asked = (rng.randrange(5), rng.randrange(5))
        elif easy_question == "latest":
            assert latest is not None
            asked = latest
        else:
            asked = (colors[0], colors[1])
        target = age = None
        if asked in last:
            when, (row, column) = last[asked]
            target = 2 * (row >= 8) + (column >= 8)
            age = number - when
        yield Frame(cells, list(colors), asked, target, age, easy)
        number += 1
