"""The instruction world: find the messages in a flood of text and deliver each at the right moment.

`grammar` (lines and tokens) < `rules`, `page` (rendering) < `env` < `vector`. Imports `batched` and
`episode_classes` of `envs`, nothing else.
"""
