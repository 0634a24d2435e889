"""Data-parallel training of one model by several processes (`torchrun`).

Every rank computes gradients on its own rows. Summed over ranks they are the gradients of the whole batch, so
all ranks take the same optimizer step and keep equal weights. Random numbers are drawn for all rows on every
rank, from generators in the same state, and each rank uses those of its own rows. Random numbers therefore do
not depend on the number of ranks. With a single process every function here returns at once.
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
        """The device of this rank: every rank has a GPU of its own, if GPUs are chosen."""
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
        with _rank_lost_on_error():
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
        """Indices of this rank's rows among those of all ranks, if every rank has `num_own` rows."""
        return slice(self.rank * num_own, (self.rank + 1) * num_own)

    def padded(self, own: Tensor) -> Tensor:
        """This rank's rows at their indices among the rows of all ranks, which are zero."""
        padded = own.new_zeros(self.world_size * len(own), *own.shape[1:])
        padded[self.rows(len(own))] = own
        return padded

    def all_gather(self, own: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, on every rank; each rank has the same number of rows."""
        if not self.is_distributed:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.world_size)]
        with _rank_lost_on_error():
            dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    # -- what all ranks agree on -------------------------------------------------------------------

    def all_reduce_sum(self, value: Tensor) -> Tensor:
        """Sum over ranks, in place, on every rank."""
        if self.is_distributed:
            with _rank_lost_on_error():
                dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Which of these flags are true on any rank."""
        if not self.is_distributed:
            return list(flags)
        return self.all_reduce_sum(torch.tensor(flags, dtype=torch.long)).bool().tolist()

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, all in one message.

        A parameter that this rank did not use gets the gradient of those that did. A parameter that no rank
        used keeps no gradient.
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
        """Values of all ranks in order, on rank 0; an empty list on the others."""
        if not self.is_distributed:
            return [value]
        values: list[Any] | None = [None] * self.world_size if self.is_main else None
        with _rank_lost_on_error():
            dist.gather_object(value, values)
        return values or []

    def all_gather_object(self, value: Any) -> list[Any]:
        """Values of all ranks in order, on every rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        with _rank_lost_on_error():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of rank 0 on every rank."""
        if not self.is_distributed:
            return value
        box = [value]
        with _rank_lost_on_error():
            dist.broadcast_object_list(box)
        return box[0]

    def run_on_main(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0; its result is returned, or its ValueError raised, on every rank."""
        result: T | None = None
        failure: ValueError | None = None
        if self.is_main:
            try:
                result = action()
            except ValueError as error:
                failure = error
        result, failure = self.broadcast((result, failure))
        if failure is not None:
            raise failure
        return result

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.all_gather_object(None)


SINGLE_PROCESS = DistributedContext()
"""Context of a program that is not distributed."""


@contextmanager
def _rank_lost_on_error() -> Iterator[None]:
    """Raise torch's error about another rank as RankLostError."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise RankLostError(f"another process of this run has ended or does not answer ({reason})") from error


def cat_rows(states: list[Any]) -> Any:
    """Concatenate states of rows to one state of all rows.

    Arrays, tensors and lists have one entry for each row. Other values are equal in all states.
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
            return {key: cat_rows([state[key] for state in states]) for key in first}
    return first


def select_rows(state: Any, rows: slice) -> Any:
    """Select rows of a state as `cat_rows` returns it."""
    match state:
        case np.ndarray() | Tensor() | list():
            return state[rows]
        case Mapping():
            return {key: select_rows(value, rows) for key, value in state.items()}
    return state
