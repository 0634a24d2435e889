"""The portal: a chain of rooms, in each of which one door leads on and the other back to the first room.

`rules` < `env` < `vector`. Imports `batched` and `grid_world` of `envs`, nothing else.
"""
