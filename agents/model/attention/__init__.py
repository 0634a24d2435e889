"""Attention kernels over memories that expire, relative positions and leave-one-out ablation.

Imports `store` and `retention`.
"""
