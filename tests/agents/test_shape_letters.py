"""One legend of shape letters for the package `agents`: every annotation uses it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import memory_suite.agents.model

AGENTS = Path(memory_suite.agents.model.__file__).resolve().parents[1]
MAX_LETTERS = 10


def legend() -> set[str]:
    """The letters that the docstring of `agents.model` explains, one a line."""
    return set(re.findall(r"^    ([A-Z])  ", memory_suite.agents.model.__doc__ or "", flags=re.MULTILINE))


def letters_of(path: Path) -> Iterator[tuple[int, str]]:
    """Single capitals in the shapes of jaxtyping annotations, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Tuple)
            and len(node.slice.elts) == 2
        ):
            shape = node.slice.elts[1]
            if isinstance(shape, ast.Constant) and isinstance(shape.value, str):
                for letter in re.findall(r"\b[A-Z]\b", shape.value):
                    yield node.lineno, letter


def test_the_legend_has_ten_letters_at_most() -> None:
    assert 5 <= len(legend()) <= MAX_LETTERS


def test_annotations_use_the_legend() -> None:
    unknown = {
        f"{path.relative_to(AGENTS)}:{line}: {letter}"
        for path in AGENTS.rglob("*.py")
        for line, letter in letters_of(path)
        if letter not in legend()
    }
    assert not unknown, sorted(unknown)


def test_every_letter_of_the_legend_is_used() -> None:
    used = {letter for path in AGENTS.rglob("*.py") for _, letter in letters_of(path)}
    assert legend() == used & legend()
