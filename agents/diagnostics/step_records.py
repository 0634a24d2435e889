"""What a step leaves for statistics, and how the records of all ranks become one.

Statistics decide: when training stops, how much forgetting is worth, when a task grows. So that all ranks
decide alike, each takes in the steps of all of them, in the order in which one rank would have.

Shape letters:
    B  environments of a rank
    N  environments of all ranks
    T  steps of a rollout
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory_suite.agents.diagnostics.cue_retention import PendingScore, StepScore, settled
from memory_suite.agents.distributed import DistributedContext
from memory_suite.agents.model.layer import StepReport


class OwnStep(NamedTuple):
    """One step of a rank's environments, as it lies on the device."""

    reports: list[StepReport]
    is_first_B: Tensor
    tag_B: Tensor
    score: PendingScore
    ended: list[dict[str, Any]]
    """infos of the episodes that ended, in the order of their environments"""


class StepRecord(NamedTuple):
    """One step of the environments of all ranks, all tensors on the host."""

    reports: list[StepReport]
    is_first_N: Tensor
    tag_N: Tensor
    score: StepScore
    ended: list[dict[str, Any]]


def of_all_ranks(steps: Sequence[OwnStep], ranks: DistributedContext) -> Iterator[StepRecord]:
    """The steps of a rollout on every rank; what lies on the device is fetched at once."""
    if not steps:
        return
    num_own = len(steps[0].is_first_B)
    parts_of_ranks = ranks.all_gather_object(_stacked(steps))
    arrays_TN = [np.concatenate(parts, 1) for parts in zip(*parts_of_ranks, strict=True)]
    scores_of_ranks = ranks.all_gather_object(settled([step.score for step in steps]))
    ended_of_ranks = ranks.all_gather_object([step.ended for step in steps])
    num_fields = len(StepReport._fields)
    for t in range(len(steps)):
        is_first_N, tag_N, *parts = [torch.from_numpy(array[t]) for array in arrays_TN]
        reports = [StepReport(*parts[at : at + num_fields]) for at in range(0, len(parts), num_fields)]
        yield StepRecord(
            reports,
            is_first_N,
            tag_N,
            _joined([scores[t] for scores in scores_of_ranks], num_own),
            [info for ended in ended_of_ranks for info in ended[t]],
        )


def _stacked(steps: Sequence[OwnStep]) -> list[np.ndarray]:
    """What a rank's steps say of each environment, as few arrays [T, B, ...]."""
    rows = [
        [step.is_first_B, step.tag_B, *(part for report in step.reports for part in report)] for step in steps
    ]
    return [torch.stack(parts).cpu().numpy() for parts in zip(*rows, strict=True)]


def _joined(scores: Sequence[StepScore], num_own: int) -> StepScore:
    """The scores of all ranks as that of one step."""
    ends = [
        end._replace(row=end.row + index * num_own)
        for index, score in enumerate(scores)
        for end in score.ends
    ]
    return StepScore(
        sum(score.asked for score in scores),
        sum(score.recalled for score in scores),
        sorted(ends, key=lambda end: (end.number, end.row)),
    )
