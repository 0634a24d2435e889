"""Whether memories of cues are kept until they are needed, and for how long after that.

The environment says which steps show something to be remembered: `info["cue"]` is the number of the cue in
sight (True counts as 1, 0 is none). A cue is *needed* from the step after it was first seen up to its *last
use*: the step whose `info["cue_done"]` names it or, if the environment does not tell, the last step of the
episode. (Numbers may be used again; a cue seen after its last use is a new one.) It is *held* at a step if
that step sees a memory of it, in any layer: one with m > 0 whose own step showed the cue.

recall          share of the pairs of a needed cue and a step that needs it in which the cue is held
premature rate  share of the needed cues that are no longer held at their last use
slack           for a cue that is held at its last use: number of later steps that would still see a memory of
                it, though the episode may be over by then; 0 is optimal
precision       (in `memory_metrics`) share of the pairs of a retained memory and a step that sees it in which
                the memory is of a cue

Arrays end in shape letters (see `agents.model`): B environments, N cue numbers, the first of which is 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from memory_suite.agents.model.layer import StepReport
from memory_suite.agents.model.retention.base import SMALLEST_MASK
from memory_suite.agents.model.store.state import MemoryState
from memory_suite.agents.model.transformer import MemoryTransformer


class CueOutcome(NamedTuple):
    """The last use of a cue that was needed."""

    number: int
    row: int
    held: bool
    """whether a memory of it was held then"""
    later_steps: int
    """number of later steps that would see a memory of it"""


class DeviceCueScore(NamedTuple):
    """The score of one step, part of it still on the device (see `to_host`)."""

    needed_BN: NDArray[np.bool_]
    used_BN: NDArray[np.bool_]
    """needed cues that the step used for the last time"""
    held_BN: Tensor
    later_steps: Tensor
    """[rows of `used_BN`, columns of `used_BN`], those with any True: number of later steps that would see a
    memory of the cue"""


class StepScore(NamedTuple):
    """The score of one step."""

    num_needed: int = 0
    """needed cues"""
    num_held: int = 0
    """those of them that were held"""
    outcomes: Sequence[CueOutcome] = ()
    """in the order of number and row"""


class CueRetention:
    """Counts cues needed, held, lost and kept too long, for a batch of environments."""

    def __init__(self, num_envs: int, *, recent_cues: int | None = None) -> None:
        """Start empty.

        Args:
            num_envs: number of environments, B.
            recent_cues: number of cues over which premature rate and slack are averaged; None: all.
        """
        self.needed_BN = np.zeros((num_envs, 1), dtype=bool)
        """cues seen whose last use is still to come"""
        self._held_BN: Tensor | None = None
        self._lost: deque[bool] = deque(maxlen=recent_cues)
        self._slack: deque[int] = deque(maxlen=recent_cues)
        self.num_needed = 0
        """pairs of a needed cue and a step"""
        self.num_held = 0
        """those of them in which the cue was held"""

    def before_step(
        self,
        transformer: MemoryTransformer,
        state: MemoryState,
        episode_start_B: NDArray[np.bool_],
        span_limit_B1: Tensor | None = None,
    ) -> None:
        """Call before the policy acts. Looks into the memory only if cues have several numbers.

        Args:
            transformer: reads the memory.
            state: memory before the step.
            episode_start_B: where the step begins an episode.
            span_limit_B1: upper bound of spans in the step.
        """
        self.needed_BN[episode_start_B] = False
        self._held_BN = None
        if self.needed_BN.shape[1] > 1:
            numbers = range(1, self.needed_BN.shape[1] + 1)
            later_BN = _visible_steps(transformer, state, numbers, span_limit_B1)
            continues_B = torch.as_tensor(~episode_start_B, device=state.clock_B.device)
            self._held_BN = (later_BN > 0) & continues_B.unsqueeze(1)

    def after_step(
        self,
        transformer: MemoryTransformer,
        state: MemoryState,
        reports: Sequence[StepReport],
        cue_B: NDArray[np.int64],
        done_B: NDArray[np.int64],
        ended_B: NDArray[np.bool_],
        playing_B: NDArray[np.bool_] | None = None,
        span_limit_B1: Tensor | None = None,
    ) -> DeviceCueScore:
        """Call after the policy and the environments acted.

        Args:
            transformer: reads the memory.
            state: memory after the step.
            reports: reports of the step, one per layer.
            cue_B: number of the cue that the step saw; 0: none.
            done_B: number of the cue that the step used for the last time; 0: none.
            ended_B: where the step was the last of its episode.
            playing_B: environments that count; None: all.
            span_limit_B1: upper bound of spans in the step.

        Returns:
            The score, without synchronizing with the device. `to_host` turns it into what `add` counts.
        """
        if not reports:
            empty = np.zeros((0, 0), dtype=bool)
            return DeviceCueScore(empty, empty, torch.zeros(0, 0), torch.zeros(0, 0))
        needed_BN = self.needed_BN if playing_B is None else self.needed_BN & playing_B[:, None]
        held_BN = self._held_BN
        if held_BN is None:  # all cues have number 1, and the reports count them
            cues_B = torch.stack([report.cues_B for report in reports]).sum(0)
            held_BN = (cues_B > 0).unsqueeze(1)
        used_BN = done_B[:, None] == np.arange(1, needed_BN.shape[1] + 1)
        used_BN |= ended_B[:, None]
        used_BN &= needed_BN
        later_steps = torch.zeros(0, 0)
        if used_BN.any():
            rows, columns = _used(used_BN)
            index = torch.as_tensor(rows, device=state.clock_B.device)
            row_limit = None if span_limit_B1 is None else span_limit_B1[index]
            later_steps = _visible_steps(transformer, state.select(index), (columns + 1).tolist(), row_limit)
        score = DeviceCueScore(needed_BN.copy(), used_BN, held_BN, later_steps)
        self.needed_BN &= ~used_BN
        self._see(cue_B)
        return score

    def add(self, score: StepScore) -> None:
        """Count a step."""
        self.num_needed += score.num_needed
        self.num_held += score.num_held
        for outcome in score.outcomes:
            self._lost.append(not outcome.held)
            if outcome.held:
                self._slack.append(outcome.later_steps)

    def _see(self, cue_B: NDArray[np.int64]) -> None:
        highest = int(cue_B.max(initial=0))
        if highest > self.needed_BN.shape[1]:
            extra = highest - self.needed_BN.shape[1]
            self.needed_BN = np.pad(self.needed_BN, ((0, 0), (0, extra)))
        rows = np.flatnonzero(cue_B > 0)
        self.needed_BN[rows, cue_B[rows] - 1] = True

    def recall(self) -> float | None:
        """Recall, as the module defines it; None if no cue was needed."""
        return self.num_held / self.num_needed if self.num_needed else None

    def premature_rate(self) -> float | None:
        """Premature rate, as the module defines it; None if no cue came to its last use."""
        return float(np.mean(self._lost)) if self._lost else None

    def slack_mean(self) -> float | None:
        """Mean slack in steps, as the module defines it; None if no cue was held at its last use."""
        return float(np.mean(self._slack)) if self._slack else None

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint."""
        return {
            "needed": self.needed_BN.copy(),
            "lost": list(self._lost),
            "slack": list(self._slack),
            "num_needed": self.num_needed,
            "num_held": self.num_held,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.needed_BN = np.array(state["needed"], dtype=bool)
        self._lost = deque(map(bool, state["lost"]), maxlen=self._lost.maxlen)
        self._slack = deque(map(int, state["slack"]), maxlen=self._slack.maxlen)
        self.num_needed, self.num_held = int(state["num_needed"]), int(state["num_held"])


def to_host(scores: Sequence[DeviceCueScore]) -> list[StepScore]:
    """Fetch the scores of steps from the device, in one transfer."""
    arrays = _fetch([part.long() for score in scores for part in (score.held_BN, score.later_steps)])
    fetched = []
    for score, held, later_steps in zip(scores, arrays[::2], arrays[1::2], strict=True):
        held_BN = held > 0
        rows, columns = _used(score.used_BN)
        outcomes = [
            CueOutcome(column + 1, row, bool(held_BN[row, column]), int(later_steps[r, c]))
            for c, column in enumerate(columns.tolist())
            for r, row in enumerate(rows.tolist())
            if score.used_BN[row, column]
        ]
        num_held = int((score.needed_BN & held_BN).sum())
        fetched.append(StepScore(int(score.needed_BN.sum()), num_held, outcomes))
    return fetched


def cat_needed(parts: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Concatenate `needed_BN` of several scores, padded to the highest cue number of any."""
    highest = max(needed_BN.shape[1] for needed_BN in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, highest - part.shape[1]))) for part in parts])


def _used(used_BN: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns with any True."""
    return np.flatnonzero(used_BN.any(1)), np.flatnonzero(used_BN.any(0))


@torch.no_grad()
def _visible_steps(
    transformer: MemoryTransformer,
    state: MemoryState,
    numbers: Sequence[int],
    span_limit_B1: Tensor | None,
) -> Int[Tensor, "B cues"]:
    """Number of later steps that would see a memory of each of these cues, per environment."""
    longest_BN = state.clock_B.new_zeros(state.batch_size, len(numbers))
    for layer, memory in zip(transformer.layers, state.layers, strict=False):
        remaining = layer.remaining(memory, state.clock_B, state.bounds(span_limit_B1))
        margin = layer.retention.ramp * (1.0 - SMALLEST_MASK)
        steps = torch.ceil(remaining + margin).clamp(min=0).long()
        if memory.slots.num_slots:
            of_numbers = [steps.masked_fill(memory.slots.cue_BT != number, 0).amax(1) for number in numbers]
            longest_BN = torch.maximum(longest_BN, memory.max_pages(torch.stack(of_numbers, 1)))
    return longest_BN


def _fetch(parts: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """Tensors of any shapes as arrays, fetched in one transfer."""
    flat = torch.cat([part.flatten() for part in parts]).cpu().numpy() if parts else np.zeros(0)
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]
