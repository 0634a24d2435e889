"""The corridor: remember the color of an object until its door, any number of steps later.

`rules` < `env` < `vector`. Imports `batched`, `grid_world` and `episode_classes` of `envs`, nothing else.
"""
