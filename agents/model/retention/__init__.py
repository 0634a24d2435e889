"""Retention rules, which decide how long a memory is kept, and penalties on spans. Imports `store`."""
