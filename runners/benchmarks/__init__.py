"""Measurements of `runners/benchmark.py`, a module for each part."""
