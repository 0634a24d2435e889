"""Stores of memories (rows or pages of slots), the state of all layers, and the view of a block.

Imports nothing else of `agents`.
"""
