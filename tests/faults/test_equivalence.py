"""Small sizes of what `python -m tests.faults --full --only equivalence` compares at length."""

from __future__ import annotations

from tests.faults import equivalence


def test_memory_equals_the_dense_reference_in_both_precisions() -> None:
    for figure in equivalence.memory_against_reference(10, seed=0):
        figure.check()


def test_nothing_leaks_through_the_policy() -> None:
    equivalence.leaks(30, seed=0).check()


def test_advantages_equal_a_double_loop_over_ends_and_limits() -> None:
    equivalence.advantages_against_double_loop(160, seed=0).check()
