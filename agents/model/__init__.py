"""The transformer with memory. It knows nothing of reinforcement learning.

Order: `store` (what is remembered), `retention` (how long), `attention` (how it is read), `block_memories`,
`layer`, `transformer`, `sequence_model`. Imports nothing else of `agents` but `serialization` and
`distributed`.
"""
