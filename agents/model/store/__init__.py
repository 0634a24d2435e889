"""Stores of memories: rows or pages of slots, and the state of all layers.

Imports nothing else of `agents`.
"""
