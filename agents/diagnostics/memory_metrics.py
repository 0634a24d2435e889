"""Metrics of the memory over a rollout; docs/metrics.md describes each."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.diagnostics.cue_retention import CueRetention
from memory_suite.agents.model.layer import StepReport
from memory_suite.agents.model.settings import TransformerSettings
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer

RECENT_EPISODES = 100
"""number of episodes (or cues) over which precision, recall and retention are averaged, as in SB3"""


class MemoryStatistics:
    """Counts retained, fading and deleted memories, and memories of cues, per layer."""

    def __init__(
        self, num_envs: int, settings: TransformerSettings, *, counted_N: NDArray[np.bool_] | None = None
    ) -> None:
        """Start empty.

        Args:
            num_envs: number of environments of this rank, whose memories `retention` reads.
            settings: settings of the transformer.
            counted_N: which environments of the added steps count; None: all, those of this rank.
        """
        self._num_own = num_envs
        self._counted_N = torch.from_numpy(np.ones(num_envs, dtype=bool) if counted_N is None else counted_N)
        self._num_envs = int(self._counted_N.sum())
        self._num_layers = settings.num_layers if settings.remembers else 0
        self.reset()

    def reset(self) -> None:
        """Start over, with every environment at the start of an episode."""
        shape = (self._num_envs,)
        self._possible_B = torch.zeros(shape, dtype=torch.long)
        self._cue_seen_B = torch.zeros(shape, dtype=torch.bool)
        # Per episode: steps with memories, sum of precision, steps after a cue, sum of recall.
        self._sums_B4 = torch.zeros(*shape, 4)
        self._precision: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._recall: deque[float] = deque(maxlen=RECENT_EPISODES)
        self.retention = CueRetention(self._num_own, recent_cues=RECENT_EPISODES)
        self.begin_rollout()

    def begin_rollout(self) -> None:
        """Discard the counts of the last rollout."""
        self._reports: list[list[StepReport]] = []
        self._episode_start: list[Tensor] = []
        self._possible: list[Tensor] = []

    def add(
        self, reports: list[StepReport], episode_start_N: Bool[Tensor, " N"], cue_N: Int[Tensor, " N"]
    ) -> None:
        """Add one step of all environments; all tensors are on the CPU."""
        counted_N = self._counted_N
        episode_start_B, cue_B = episode_start_N[counted_N], cue_N[counted_N]
        reports = [StepReport(*(part[counted_N] for part in report)) for report in reports]
        self._possible_B = torch.where(episode_start_B, 0, self._possible_B)
        if bool(episode_start_B.any()):
            self._finish_episodes(episode_start_B)
        if reports:
            retained_B = torch.stack([r.retained_B for r in reports]).sum(0)
            cues_B = torch.stack([r.cues_B for r in reports]).sum(0)
            holds_B = retained_B > 0
            self._sums_B4 += torch.stack(
                [
                    holds_B,
                    cues_B / retained_B.clamp_min(1),
                    self._cue_seen_B,
                    self._cue_seen_B & (cues_B > 0),
                ],
                1,
            )
        self._cue_seen_B |= cue_B > 0
        self._reports.append(reports)
        self._episode_start.append(episode_start_B)
        self._possible.append(self._possible_B)
        self._possible_B = self._possible_B + 1

    def _finish_episodes(self, episode_start_B: Tensor) -> None:
        """Add the episodes that ended before this step."""
        for num_holding, precision, num_after_cue, recall in self._sums_B4[episode_start_B].tolist():
            if num_holding and num_after_cue:
                self._precision.append(precision / num_holding)
                self._recall.append(recall / num_after_cue)
        self._sums_B4[episode_start_B] = 0.0
        self._cue_seen_B &= ~episode_start_B

    def retained_means(self) -> list[float]:
        """Mean number of retained memories per layer, over the last rollout."""
        if not self._reports:
            return []
        return [
            torch.stack([reports[layer].retained_B for reports in self._reports]).float().mean().item()
            for layer in range(self._num_layers)
        ]

    def possible_mean(self) -> float:
        """Mean number of memories that would be retained without forgetting, over the last rollout."""
        return torch.stack(self._possible).float().mean().item() if self._possible else 0.0

    def metrics(self) -> dict[str, float | np.ndarray]:
        """Metrics of the last rollout by name in the log."""
        result: dict[str, float | np.ndarray] = {}
        if not self._reports or not self._num_layers:
            return result
        possible_BT = torch.stack(self._possible, 1).float()
        same_episode_BT = ~torch.stack(self._episode_start, 1)[:, 1:]
        result["memory/possible_mean"] = possible_BT.mean().item()
        for layer in range(self._num_layers):
            steps = [reports[layer] for reports in self._reports]
            retained_BT = torch.stack([r.retained_B for r in steps], 1).float()
            on_ramp_BT = torch.stack([r.on_ramp_B for r in steps], 1).float()
            span_BTG = torch.stack([r.span_BG for r in steps], 1)
            deleted_BT = (retained_BT[:, :-1] + 1 - retained_BT[:, 1:])[same_episode_BT]
            name = f"memory/layer{layer + 1}"
            result[f"{name}/retained_mean"] = retained_BT.mean().item()
            result[f"{name}/retained_max"] = retained_BT.max().item()
            result[f"{name}/retained_share"] = (retained_BT.sum() / possible_BT.sum().clamp_min(1)).item()
            result[f"{name}/on_ramp_share"] = (on_ramp_BT.sum() / retained_BT.sum().clamp_min(1)).item()
            result[f"{name}/deletions_per_step"] = deleted_BT.mean().item() if deleted_BT.numel() else 0.0
            result[f"{name}/span_mean"] = span_BTG.mean().item()
            result[f"{name}/span_max"] = span_BTG.max().item()
            result[f"{name}/span_histogram"] = span_BTG.flatten().numpy()
        retained = sum(torch.stack([r.retained_B for r in reports]).sum().item() for reports in self._reports)
        possible = possible_BT.sum().item() * self._num_layers
        result["memory/attention_saved"] = 1.0 - retained / max(possible, 1.0)
        if self._precision:
            result["memory/precision"] = float(np.mean(self._precision))
            result["memory/recall"] = float(np.mean(self._recall))
        lost, slack = self.retention.premature_rate(), self.retention.slack_mean()
        if lost is not None:
            result["memory/premature_rate"] = lost
        if slack is not None:
            result["memory/slack_mean"] = slack
        return result

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "possible": self._possible_B,
            "cue_seen": self._cue_seen_B,
            "sums": self._sums_B4,
            "precision": torch.tensor(list(self._precision), dtype=torch.float64),
            "recall": torch.tensor(list(self._recall), dtype=torch.float64),
            "retention": self.retention.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self._possible_B, self._cue_seen_B, self._sums_B4 = (
            state["possible"],
            state["cue_seen"],
            state["sums"],
        )
        self._precision = deque(state["precision"].tolist(), maxlen=RECENT_EPISODES)
        self._recall = deque(state["recall"].tolist(), maxlen=RECENT_EPISODES)
        self.retention.load_state_dict(state["retention"])


@torch.no_grad()
def retained_ages(
    transformer: MemoryTransformer, state: MemoryState, span_limit_B1: Tensor | None
) -> dict[str, np.ndarray]:
    """Ages, in steps, of the memories that the next step sees, by name in the log."""
    ages = {}
    for number, (layer, memory) in enumerate(zip(transformer.layers, state.layers, strict=False), start=1):
        seen = layer.seen(memory, state.clock_B, state.bounds(span_limit_B1))
        age = memory.expand_to_pages(state.clock_B).unsqueeze(1) - memory.slots.birth_BT
        ages[f"memory/layer{number}/age_histogram"] = age[seen].cpu().numpy()
    return ages
