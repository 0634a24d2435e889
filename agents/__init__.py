"""Policies with memory, PPO and A2C that train them, and what is measured of them.

Sub-packages from the lowest floor up: `serialization` and `distributed`; `model`; `policy` and `diagnostics`;
`algorithms`; `episodes`. Each imports only floors below its own, and nothing of `envs`, `configs` or
`runners`.
The public names are exported by `memory_suite`.
"""
