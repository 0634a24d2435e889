"""Several processes that train one model, each on its share of the data (`torchrun`).

Every rank computes gradients on its own rows; summed over ranks they are those of the whole batch, so all
ranks take the same step and keep equal weights. Without `torchrun` there is one rank, and nothing here
costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT_SECONDS = 600
"""A rank that waits so long for another gives up: the other has died, or hangs."""


class Ranks:
    """The processes of a run, seen from one of them; use it as a context manager."""

    def __init__(self) -> None:
        """Read what `torchrun` says; one rank without it."""
        self.index = int(os.environ.get("RANK", "0"))
        """of this process"""
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self._local_index = int(os.environ.get("LOCAL_RANK", "0"))
        self._group: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs, saves and judges."""
        return self.index == 0

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's own device: on GPUs, one each."""
        return torch.device("cuda", self._local_index) if chosen.type == "cuda" and self.count > 1 else chosen

    def connect(self, device: torch.device) -> None:
        """Meet the other ranks: over gloo on CPUs, over nccl on GPUs."""
        if self.count == 1:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_SECONDS))

    def close(self) -> None:
        """Part from the other ranks."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on each."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over ranks, all in one message."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order; on ranks other than the first an empty list."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, values)
        return values or []

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
