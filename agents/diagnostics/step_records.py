"""Records of steps for statistics, and how the records of all ranks are merged.

Statistics decide when training stops, how much forgetting is rewarded and when a task becomes harder. So that
all ranks decide alike, each adds the steps of all ranks, in the order in which a single process would.

Tensors of the environments of all ranks end in N, those of one rank's environments in B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory_suite.agents.diagnostics.cue_retention import DeviceCueScore, StepScore, to_host
from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.layer import StepReport


class LocalStep(NamedTuple):
    """One step of this rank's environments; tensors are on the device."""

    reports: list[StepReport]
    episode_start_B: Tensor
    cue_B: Tensor
    score: DeviceCueScore
    ended: list[dict[str, Any]]
    """infos of the episodes that ended, in the order of their environments"""


class StepRecord(NamedTuple):
    """One step of the environments of all ranks, all tensors on the host."""

    reports: list[StepReport]
    episode_start_N: Tensor
    cue_N: Tensor
    score: StepScore
    ended: list[dict[str, Any]]


def gather_steps(steps: Sequence[LocalStep], ranks: DistributedContext) -> Iterator[StepRecord]:
    """Fetch steps from the device, all at once, and merge those of all ranks, on every rank."""
    if not steps:
        return
    num_own = len(steps[0].episode_start_B)
    parts_of_ranks = ranks.all_gather_object(_stacked(steps))
    arrays_TN = [np.concatenate(parts, 1) for parts in zip(*parts_of_ranks, strict=True)]
    scores_of_ranks = ranks.all_gather_object(to_host([step.score for step in steps]))
    ended_of_ranks = ranks.all_gather_object([step.ended for step in steps])
    num_fields = len(StepReport._fields)
    for t in range(len(steps)):
        episode_start_N, cue_N, *parts = [torch.from_numpy(array[t]) for array in arrays_TN]
        reports = [StepReport(*parts[at : at + num_fields]) for at in range(0, len(parts), num_fields)]
        yield StepRecord(
            reports,
            episode_start_N,
            cue_N,
            _merge_scores([scores[t] for scores in scores_of_ranks], num_own),
            [info for ended in ended_of_ranks for info in ended[t]],
        )


def _stacked(steps: Sequence[LocalStep]) -> list[np.ndarray]:
    """The tensors of steps, stacked into arrays [time, environments, ...]."""
    rows = [
        [step.episode_start_B, step.cue_B, *(part for report in step.reports for part in report)]
        for step in steps
    ]
    return [torch.stack(parts).cpu().numpy() for parts in zip(*rows, strict=True)]


def _merge_scores(scores: Sequence[StepScore], num_own: int) -> StepScore:
    """Merge the scores of one step of all ranks, each of `num_own` environments."""
    outcomes = [
        outcome._replace(row=outcome.row + rank * num_own)
        for rank, score in enumerate(scores)
        for outcome in score.outcomes
    ]
    return StepScore(
        sum(score.num_needed for score in scores),
        sum(score.num_held for score in scores),
        sorted(outcomes, key=lambda outcome: (outcome.number, outcome.row)),
    )
