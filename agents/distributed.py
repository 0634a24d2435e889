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
"""A rank that waits so long for another gives up: the other has died, or hangs."""


class RankLostError(RuntimeError):
    """Another rank has ended, or has not answered in time."""


class Ranks:
    """The processes of a run, seen from one of them."""

    def __init__(self, index: int = 0, count: int = 1, local_index: int = 0) -> None:
        """Name this process; there is only one unless told otherwise.

        Args:
            index: of this process.
            count: of all processes.
            local_index: of this process among those of its machine.
        """
        self.index = index
        self.count = count
        self._local_index = local_index

    @classmethod
    def of_environment(cls) -> Ranks:
        """What `torchrun` says; one rank without it."""
        index, count, local = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return cls(int(index or 0), int(count or 1), int(local or 0))

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that logs, saves and judges."""
        return self.index == 0

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    def device(self, chosen: torch.device) -> torch.device:
        """This rank's own device: on GPUs, one each."""
        return (
            torch.device("cuda", self._local_index) if chosen.type == "cuda" and self.are_several else chosen
        )

    def connect(self, device: torch.device) -> None:
        """Meet the other ranks: over gloo for what lies in memory, over nccl for what lies on GPUs."""
        if not self.are_several:
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with _lost():
            dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_SECONDS))

    @staticmethod
    def leave(code: int) -> NoReturn:
        """End this process with an exit code.

        One of several ends at once, with what it has written: gloo's threads now and then abort an orderly
        exit (SIGABRT), after everything has been done.
        """
        if not dist.is_initialized():
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    # -- shares of rows ----------------------------------------------------------------------------

    def rows(self, num_own: int) -> slice:
        """Which of all rows are this rank's, if every rank has so many."""
        return slice(self.index * num_own, (self.index + 1) * num_own)

    def padded(self, own: Tensor) -> Tensor:
        """This rank's rows in their place among the rows of all ranks, which are zero here."""
        everybody = own.new_zeros(self.count * len(own), *own.shape[1:])
        everybody[self.rows(len(own))] = own
        return everybody

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all ranks, of which each has as many, on every rank."""
        if not self.are_several:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.count)]
        with _lost():
            dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    # -- what all ranks agree on -------------------------------------------------------------------

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, the same on each; `value` becomes it."""
        if self.are_several:
            with _lost():
                dist.all_reduce(value)
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Which of these are so on some rank."""
        if not self.are_several:
            return list(flags)
        return self.sum(torch.tensor(flags, dtype=torch.long)).bool().tolist()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over ranks, all in one message.

        A parameter that this rank did not use may have been used by another; what no rank used keeps no
        gradient.
        """
        if not self.are_several:
            return
        everything = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in everything]
        used = parts[0].new_tensor([p.grad is not None for p in everything])
        flat = self.sum(torch.cat([*(part.flatten() for part in parts), used]))
        *sums, used_by = torch.split(flat, [*(part.numel() for part in parts), len(parts)])
        for parameter, total, users in zip(everything, sums, used_by.tolist(), strict=True):
            if users:
                parameter.grad = total.view_as(parameter)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order; on ranks other than the first an empty list."""
        if not self.are_several:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        with _lost():
            dist.gather_object(value, values)
        return values or []

    def gather_everywhere(self, value: Any) -> list[Any]:
        """Every rank's value, in order, on every rank."""
        if not self.are_several:
            return [value]
        values: list[Any] = [None] * self.count
        with _lost():
            dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if not self.are_several:
            return value
        box = [value]
        with _lost():
            dist.broadcast_object_list(box)
        return box[0]

    def first(self, action: Callable[[], T]) -> T:
        """What an action of the first rank gives, on every rank; a ValueError is raised on every rank too."""
        result: T | None = None
        refused: ValueError | None = None
        if self.is_first:
            try:
                result = action()
            except ValueError as error:
                refused = error
        result, refused = self.share((result, refused))
        if refused is not None:
            raise refused
        return result

    def wait(self) -> None:
        """Until all ranks are here."""
        self.gather_everywhere(None)


ALONE = Ranks()
"""the only process"""


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
