"""Supervised streams of tokens that reward a long memory: object collision, copy, instruction, text.

`stream` < `generated` < `collision`, `copying`, `instruction`, `text` < `tasks` (streams by name). `oracle`
measures how long a window a stream needs. Imports only `envs.instruction`, for that task's text.
"""
