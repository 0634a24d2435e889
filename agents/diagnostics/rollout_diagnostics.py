"""Measurements while an algorithm collects rollouts: memories, cues and outcomes of episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.diagnostics.cue_tracker import CueTracker
from memory_suite.agents.diagnostics.memory_metrics import RECENT_EPISODES, MemoryStatistics
from memory_suite.agents.diagnostics.step_records import LocalStep, gather_steps
from memory_suite.agents.diagnostics.success_window import ALL, SuccessWindow
from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.layer import StepReport
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer

EPISODE_KEYS = ("episode", "is_success", "episode_class")
"""keys of the info of an episode's last step that describe the whole episode"""
FULL_MEMORY = "full_memory"
"""key that says whether all memories of the episode were kept"""


class RolloutDiagnostics:
    """Records the steps of a rollout on the device, and adds all of them to the statistics at once.

    Adding each step by itself would synchronize with the GPU at each step.
    """

    def __init__(
        self,
        transformer: MemoryTransformer,
        success_window: SuccessWindow,
        ranks: DistributedContext,
        *,
        full_memory_N: NDArray[np.bool_],
    ) -> None:
        """Start empty.

        Args:
            transformer: the transformer whose memories are measured.
            success_window: receives the outcomes of episodes.
            ranks: process group; statistics are those of all ranks.
            full_memory_N: environments of all ranks that keep all memories; statistics leave them out.
        """
        num_own = len(full_memory_N) // ranks.world_size
        self._full_memory_B = full_memory_N[ranks.rows(num_own)]
        self.full_memory_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        """returns of recent episodes in which all memories were kept"""
        self._transformer = transformer
        self._ranks = ranks
        self.success_window = success_window
        self.memory = MemoryStatistics(num_own, transformer.settings, counted_N=~full_memory_N)
        self.cues = CueTracker(self.memory.retention)
        self._steps: list[LocalStep] = []

    def reset(self, infos: Sequence[dict[str, Any]]) -> None:
        """Begin new episodes in all environments, with the infos of their resets."""
        self.memory.reset()
        self.cues = CueTracker(self.memory.retention)
        self.cues.observe(infos)
        self._steps = []

    def begin_rollout(self) -> None:
        """Discard the counts of the last rollout."""
        self.memory.begin_rollout()

    def before_step(
        self, memory: MemoryState, episode_start_B: NDArray[np.bool_], span_limit_B1: Tensor | None
    ) -> None:
        """Call before the policy acts."""
        self.cues.before_step(self._transformer, memory, episode_start_B, span_limit_B1)

    def record(
        self,
        reports: list[StepReport],
        memory: MemoryState,
        episode_start_B: Tensor,
        dones: NDArray[np.bool_],
        infos: Sequence[dict[str, Any]],
        span_limit_B1: Tensor | None,
    ) -> None:
        """Record a step, after the policy and the environments acted.

        Args:
            reports: reports of the step, one per layer.
            memory: memory after the step.
            episode_start_B: where the step was the first of an episode.
            dones: [B], where it was the last of an episode.
            infos: infos of the environments.
            span_limit_B1: upper bound of spans in the step.
        """
        cue_B = torch.as_tensor(self.cues.cue_B, device=episode_start_B.device)
        score = self.cues.after_step(
            self._transformer,
            memory,
            reports,
            dones,
            infos,
            playing_B=~self._full_memory_B,
            span_limit_B1=span_limit_B1,
        )
        ended = [
            {name: infos[row][name] for name in EPISODE_KEYS if name in infos[row]}
            | {FULL_MEMORY: bool(self._full_memory_B[row])}
            for row in np.flatnonzero(dones).tolist()
        ]
        self._steps.append(LocalStep(reports, episode_start_B, cue_B, score, ended))

    def flush(self) -> list[dict[str, Any]]:
        """Add the recorded steps of all ranks to the statistics.

        Returns:
            The `EPISODE_KEYS` of the episodes that ended, in the order of time, except those in which all
            memories were kept.
        """
        steps, self._steps = self._steps, []
        ended = []
        for record in gather_steps(steps, self._ranks):
            self.memory.add(record.reports, record.episode_start_N, record.cue_N)
            self.memory.retention.add(record.score)
            ended.extend(record.ended)
        full = [info for info in ended if info[FULL_MEMORY]]
        ended = [info for info in ended if not info[FULL_MEMORY]]
        self.full_memory_returns.extend(info["episode"]["r"] for info in full if "episode" in info)
        for info in ended:
            if "is_success" in info:
                self.success_window.record(bool(info["is_success"]), str(info.get("episode_class", ALL)))
        return ended
