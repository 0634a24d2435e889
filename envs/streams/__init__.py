"""Supervised streams of tokens that reward a long memory: object collision, copy, instruction, text."""
