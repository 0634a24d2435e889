"""Files that hold no code: archives of tensors and JSON, random states, spaces.

Imports nothing else of `agents`.
"""
