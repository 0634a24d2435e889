"""Several processes that train one model, each on its share of the data (`torchrun`).

Every rank computes gradients on its own rows; summed over ranks they are those of the whole batch, so all
ranks take the same step and keep equal weights. Whatever is random is drawn for all rows on every rank, from
generators in the same state, and each rank takes the part of its own rows: what is drawn does not depend on
the number of ranks. With one rank nothing here costs anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

TIMEOUT_SECONDS = 600
"""Seconds after which a rank that waits for another gives up: the other has died, or hangs."""


class RankLostError(RuntimeError):
    """Another rank has ended, or has not answered in time."""


class DistributedContext:
    """The process group of a run, seen from one of its ranks."""

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0) -> None:
        """Describe this process.

        Args:
            rank: number of this process.
            world_size: number of processes.
            local_rank: number of this process among those of its machine.
        """
        self.rank = rank
        self.world_size = world_size
        self._local_rank = local_rank

    @classmethod
    def from_env(cls) -> DistributedContext:
        """The context that `torchrun` describes; a single process without it."""
        rank, world_size, local_rank = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(int(rank or 0), int(world_size or 1), int(local_rank or 0))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs, saves, records videos and evaluates."""
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's own device: on GPUs, one each."""
        return (
            torch.device("cuda", self._local_rank)
            if chosen.type == "cuda" and self.is_distributed
            else chosen
        )

    def init_process_group(self, device: torch.device) -> None:
        """Join the process group: gloo for tensors on the CPU, nccl for those on GPUs."""
        if not self.is_distributed:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _lost():
            dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_SECONDS))

    @staticmethod
    def exit(code: int) -> NoReturn:
        """Exit this process with a code.

        A rank of several exits at once, after flushing its output: gloo's threads sometimes abort an orderly
        exit (SIGABRT).
        """
        if not dist.is_initialized():
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # -- shares of rows ----------------------------------------------------------------------------

    def rows(self, num_own: int) -> slice:
        """Which of all rows are this rank's, if every rank has so many."""
        return slice(self.rank * num_own, (self.rank + 1) * num_own)

    def padded(self, own: Tensor) -> Tensor:
        """This rank's rows in their place among the rows of all ranks, which are zero here."""
        padded = own.new_zeros(self.world_size * len(own), *own.shape[1:])
        padded[self.rows(len(own))] = own
        return padded

    def all_gather(self, own: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, on every rank; each rank has the same number of rows."""
        if not self.is_distributed:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        with _lost():
            dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    # -- what all ranks agree on -------------------------------------------------------------------

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place, on every rank."""
        if self.is_distributed:
            with _lost():
                dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Which of these flags are true on any rank."""
        if not self.is_distributed:
            return list(flags)
        return self.all_reduce_sum(torch.tensor(flags, dtype=torch.long)).bool().tolist()

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, all in one message.

        A parameter that this rank did not use may have been used by another; what no rank used keeps no
        gradient.
        """
        if not self.is_distributed:
            return
        all_parameters = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in all_parameters]
        used = parts[0].new_tensor([p.grad is not None for p in all_parameters])
        flat = self.all_reduce_sum(torch.cat([*(part.flatten() for part in parts), used]))
        *sums, used_by = torch.split(flat, [*(part.numel() for part in parts), len(parts)])
        for parameter, total, users in zip(all_parameters, sums, used_by.tolist(), strict=True):
            if users:
                parameter.grad = total.view_as(parameter)

    def gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in order; on ranks other than the first an empty list."""
        if not self.is_distributed:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        with _lost():
            dist.gather_object(value, values)
        return values or []

    def all_gather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in order, on every rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _lost():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0 on every rank."""
        if not self.is_distributed:
            return value
        box = [value]
        with _lost():
            dist.broadcast_object_list(box)
        return box[0]

    def run_on_main(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0; its result is returned, or its ValueError raised, on every rank."""
        result: T | None = None
        refused: ValueError | None = None
        if self.is_main:
            try:
                result = action()
            except ValueError as error:
                refused = error
        result, refused = self.broadcast((result, refused))
        if refused is not None:
            raise refused
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_gather_object(None)


SINGLE_PROCESS = DistributedContext()
"""context of a program that is not distributed"""


@contextmanager
def _lost() -> Iterator[None]:
    """What torch says when another rank is gone, as an error of its own."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RankLostError(f"another process of this run has ended or does not answer ({reason})") from error


def joined_rows(states: list[Any]) -> Any:
    """One state of all rows from states of some rows each.

    Arrays, tensors and lists have one entry for each row; of anything else all states have the same.
    """
    first = states[0]
    match first:
        case np.ndarray():
            return np.concatenate(states)
        case Tensor():
            return torch.cat([state.cpu() for state in states])
        case list():
            return [entry for state in states for entry in state]
        case Mapping():
            return {key: joined_rows([state[key] for state in states]) for key in first}
    return first


def chosen_rows(state: Any, rows: slice) -> Any:
    """Some rows of a state as `joined_rows` takes it."""
    match state:
        case np.ndarray() | Tensor() | list():
            return state[rows]
        case Mapping():
            return {key: chosen_rows(value, rows) for key, value in state.items()}
    return state
