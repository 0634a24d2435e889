"""Errors of a sequence model by the distance of the token that answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from memory_suite.envs.streams.oracle import WINDOWS, errors_by_window
from memory_suite.envs.streams.stream import IGNORE, UNKNOWN, Block


class ErrorByDistance:
    """Losses by the distance of the needed token, in powers of 4, and errors of oracles with a window."""

    def __init__(self, chance_accuracy: float | None) -> None:
        """Start empty; a task with a known chance accuracy has an oracle (`envs.streams.oracle`)."""
        self._chance_accuracy = chance_accuracy
        self._sums: NDArray[np.float64] = np.zeros((2, 32))
        self._distances: list[NDArray[np.int32]] = []

    def add(self, block: Block, losses: torch.Tensor) -> None:
        """Add a block and the losses of its scored targets."""
        distance = block.distance[block.targets != IGNORE]
        known = distance != UNKNOWN
        power = np.ceil(np.log(np.maximum(distance[known], 1)) / np.log(4)).astype(np.int64)
        np.add.at(self._sums[0], power, losses.cpu().numpy()[known])
        np.add.at(self._sums[1], power, 1.0)
        self._distances.append(distance[known])

    def results(self) -> dict[str, str]:
        """Mean loss and number of targets of each range of distances that occurs; errors of oracles."""
        losses = {
            f"loss_up_to_{4**power:,}_tokens_back": f"{total / count:.4f} nats ({int(count):,} targets)"
            for power, (total, count) in enumerate(self._sums.T)
            if count
        }
        if self._chance_accuracy is None or not losses:
            return losses
        errors = errors_by_window(np.concatenate(self._distances), WINDOWS, 1.0 - self._chance_accuracy)
        oracles = {
            f"error_of_an_oracle_that_sees_{window:,}_tokens": f"{error:.2%}"
            for window, error in errors.items()
            if error
        }
        return losses | oracles
