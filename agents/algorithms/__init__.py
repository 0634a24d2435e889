"""PPO and A2C for policies with memory, in the interface of stable-baselines3.

Imports `policy`, `diagnostics`, `model`, `serialization` and `distributed`.
"""
