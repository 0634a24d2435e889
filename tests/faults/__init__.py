"""Faults done on purpose to real trainings, and what must be left afterwards.

A short set runs with the other tests; `python -m tests.faults --full` runs the long one and writes its
figures into docs/reliability.md.
"""
