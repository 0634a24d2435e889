"""A run folder and what is written into it: checkpoints, metrics, logs; signals and the progress display.

Imports no other package of `runners`.
"""
