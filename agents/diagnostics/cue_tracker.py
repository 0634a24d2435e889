"""The cues in the present observations of a batch of environments, and whether their memories are held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.diagnostics.cue_retention import CueRetention, DeviceCueScore
from memory_suite.agents.model.layer import StepReport
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer


class CueTracker:
    """Feeds a `CueRetention` from the infos of environments, around each step of a policy.

    Call `observe` with the infos of a reset, then for each step `before_step`, the policy, the environments
    and `after_step`.
    """

    def __init__(self, score: CueRetention) -> None:
        """Track cues for this score; no environment has been reset yet."""
        self.score = score
        self.cue_B: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        """number of the cue in each environment's present observation; 0: none"""
        self.done_B: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        """number of the cue that each present observation needs for the last time; 0: none"""

    def observe(self, infos: Sequence[dict[str, Any]]) -> None:
        """Read the cue numbers of the present observations from their infos."""
        self.cue_B = info_numbers(infos, "cue")
        self.done_B = info_numbers(infos, "cue_done")

    def before_step(
        self,
        transformer: MemoryTransformer,
        memory: MemoryState,
        episode_start_B: NDArray[np.bool_],
        span_limit_B1: Tensor | None = None,
    ) -> None:
        """Look up which needed cues are held; arguments as `CueRetention.before_step`."""
        self.score.before_step(transformer, memory, episode_start_B, span_limit_B1)

    def after_step(
        self,
        transformer: MemoryTransformer,
        memory: MemoryState,
        reports: Sequence[StepReport],
        dones: NDArray[np.bool_],
        infos: Sequence[dict[str, Any]],
        *,
        playing_B: NDArray[np.bool_] | None = None,
        span_limit_B1: Tensor | None = None,
    ) -> DeviceCueScore:
        """Score the step, then observe the next cues.

        Args:
            transformer: reads the memory.
            memory: memory after the step.
            reports: reports of the step, one per layer.
            dones: [B], where the step was the last of its episode.
            infos: infos of the next observations, one per environment.
            playing_B: environments that count; None: all.
            span_limit_B1: upper bound of spans in the step.

        Returns:
            The score, still on the device; `cue_retention.to_host` fetches it.
        """
        pending = self.score.after_step(
            transformer, memory, reports, self.cue_B, self.done_B, dones, playing_B, span_limit_B1
        )
        self.observe(infos)
        return pending


def info_numbers(infos: Sequence[dict[str, Any]], key: str) -> NDArray[np.int64]:
    """The number under a key of each environment's info; 0 where there is none."""
    return np.fromiter((int(info.get(key, 0)) for info in infos), dtype=np.int64, count=len(infos))
