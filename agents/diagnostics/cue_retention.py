"""Was every cue kept until it was needed, and for how long after that?

The environment says which steps show something to be remembered: `info["cue"]` is the number of the cue in
sight (True counts as 1, 0 is none). A cue is *needed* from the step after it was first seen up to its *last
use*: the step whose `info["cue_done"]` names it or, if the environment does not tell, the last step of the
episode. (Numbers may be used again; a cue seen after its last use is a new one.) It is *held* at a step if
that step sees a memory of it, in any layer: one with m > 0 whose own step showed the cue.

recall          of all pairs of a needed cue and a step that needs it, the share in which it is held
premature rate  of all cues that were needed, the share that is no longer held at the last use
slack           of a cue that is held at its last use: steps after that for which a memory of it would still
                be seen, though the episode may be over by then; 0 is perfect thrift
precision       (elsewhere) of all pairs of a retained memory and a step that sees it, the share that are cues

Shape letters:
    B  environments
    W  slots of a layer's store
    C  cue numbers
    U  those of them that a step uses for the last time      R  environments that do
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


class CueEnd(NamedTuple):
    """The last use of a cue that was needed."""

    number: int
    row: int
    held: bool
    """whether it was held then"""
    later_steps: int
    """for how many of the next steps some memory of it will be seen"""


class PendingScore(NamedTuple):
    """What a step says about cues, as long as the device has not been asked for it (see `settled`)."""

    needed_BC: NDArray[np.bool_]
    used_BC: NDArray[np.bool_]
    """needed cues that the step used for the last time"""
    held_BC: Tensor
    later_RU: Tensor
    """for how many of the next steps some memory of these cues will be seen, in these rows"""


class StepScore(NamedTuple):
    """What a step says about cues."""

    asked: int = 0
    """needed cues"""
    recalled: int = 0
    """those of them that were held"""
    ends: Sequence[CueEnd] = ()
    """in the order of number and row"""


class RetentionScore:
    """Counts cues needed, held, lost and kept too long, for a batch of environments."""

    def __init__(self, num_envs: int, *, recent_cues: int | None = None) -> None:
        """Start empty.

        Args:
            num_envs: B.
            recent_cues: average premature rate and slack over so many last cues; None: over all.
        """
        self.needed_BC = np.zeros((num_envs, 1), dtype=bool)
        """cues seen whose last use is still to come; column 0 is of cue number 1"""
        self._held_BC: Tensor | None = None
        self._lost: deque[bool] = deque(maxlen=recent_cues)
        self._slack: deque[int] = deque(maxlen=recent_cues)
        self.asked = 0
        """pairs of a needed cue and a step"""
        self.recalled = 0
        """those of them in which it was held"""

    @property
    def needed_B(self) -> NDArray[np.bool_]:
        """Where the present step needs some cue."""
        return np.asarray(self.needed_BC.any(1))

    def before_step(
        self,
        transformer: MemoryTransformer,
        state: MemoryState,
        is_first_B: NDArray[np.bool_],
        limit_B1: Tensor | None = None,
    ) -> None:
        """To be called before the policy acts; looks into the memory only if cues have several numbers."""
        self.needed_BC[is_first_B] = False
        self._held_BC = None
        if self.needed_BC.shape[1] > 1:
            numbers = range(1, self.needed_BC.shape[1] + 1)
            later_BC = _visible_steps(transformer, state, numbers, limit_B1)
            goes_on_B = torch.as_tensor(~is_first_B, device=state.clock_B.device)
            self._held_BC = (later_BC > 0) & goes_on_B.unsqueeze(1)

    def after_step(
        self,
        transformer: MemoryTransformer,
        state: MemoryState,
        reports: Sequence[StepReport],
        cue_B: NDArray[np.int64],
        done_B: NDArray[np.int64],
        ended_B: NDArray[np.bool_],
        playing_B: NDArray[np.bool_] | None = None,
        limit_B1: Tensor | None = None,
    ) -> PendingScore:
        """To be called after the policy and the environments acted.

        It does not wait for the device. `settled` makes of what it gives what `add` counts.

        Args:
            transformer: whose memory it is.
            state: after the step.
            reports: of the step.
            cue_B: number of the cue that the step saw; 0: none.
            done_B: number of the cue that the step used for the last time; 0: none.
            ended_B: where the step was the last of its episode.
            playing_B: environments that count; None: all.
            limit_B1: of spans in the step.
        """
        if not reports:
            nothing = np.zeros((0, 0), dtype=bool)
            return PendingScore(nothing, nothing, torch.zeros(0, 0), torch.zeros(0, 0))
        needed_BC = self.needed_BC if playing_B is None else self.needed_BC & playing_B[:, None]
        held_BC = self._held_BC
        if held_BC is None:  # all cues are number 1: what the reports count
            tagged_B = torch.stack([report.cues_B for report in reports]).sum(0)
            held_BC = (tagged_B > 0).unsqueeze(1)
        used_BC = done_B[:, None] == np.arange(1, needed_BC.shape[1] + 1)
        used_BC |= ended_B[:, None]
        used_BC &= needed_BC
        later_RU = torch.zeros(0, 0)
        if used_BC.any():
            row_R, column_U = _used(used_BC)
            rows = torch.as_tensor(row_R, device=state.clock_B.device)
            limit_R1 = None if limit_B1 is None else limit_B1[rows]
            later_RU = _visible_steps(transformer, state.select(rows), (column_U + 1).tolist(), limit_R1)
        pending = PendingScore(needed_BC.copy(), used_BC, held_BC, later_RU)
        self.needed_BC &= ~used_BC
        self._see(cue_B)
        return pending

    def add(self, score: StepScore) -> None:
        """Count a step."""
        self.asked += score.asked
        self.recalled += score.recalled
        for end in score.ends:
            self._lost.append(not end.held)
            if end.held:
                self._slack.append(end.later_steps)

    def _see(self, cue_B: NDArray[np.int64]) -> None:
        most = int(cue_B.max(initial=0))
        if most > self.needed_BC.shape[1]:
            extra = most - self.needed_BC.shape[1]
            self.needed_BC = np.pad(self.needed_BC, ((0, 0), (0, extra)))
        rows = np.flatnonzero(cue_B > 0)
        self.needed_BC[rows, cue_B[rows] - 1] = True

    def recall(self) -> float | None:
        """See the module; None if no cue was needed."""
        return self.recalled / self.asked if self.asked else None

    def premature_rate(self) -> float | None:
        """See the module; None if no cue came to its last use."""
        return float(np.mean(self._lost)) if self._lost else None

    def slack_mean(self) -> float | None:
        """See the module, in steps; None if no cue was held at its last use."""
        return float(np.mean(self._slack)) if self._slack else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "needed": self.needed_BC.copy(),
            "lost": list(self._lost),
            "slack": list(self._slack),
            "asked": self.asked,
            "recalled": self.recalled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.needed_BC = np.array(state["needed"], dtype=bool)
        self._lost = deque(map(bool, state["lost"]), maxlen=self._lost.maxlen)
        self._slack = deque(map(int, state["slack"]), maxlen=self._slack.maxlen)
        self.asked, self.recalled = int(state["asked"]), int(state["recalled"])


def settled(pending: Sequence[PendingScore]) -> list[StepScore]:
    """The scores of steps, fetched from the device at once."""
    parts = _on_host([part.long() for step in pending for part in (step.held_BC, step.later_RU)])
    scores = []
    for step, held, later_RU in zip(pending, parts[::2], parts[1::2], strict=True):
        held_BC = held > 0
        row_R, column_U = _used(step.used_BC)
        ends = [
            CueEnd(column + 1, row, bool(held_BC[row, column]), int(later_RU[r, u]))
            for u, column in enumerate(column_U.tolist())
            for r, row in enumerate(row_R.tolist())
            if step.used_BC[row, column]
        ]
        recalled = int((step.needed_BC & held_BC).sum())
        scores.append(StepScore(int(step.needed_BC.sum()), recalled, ends))
    return scores


def joined_needs(needs: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """`needed_BC` of several scores as that of one; each knows no higher number than it has seen."""
    most = max(needed_BC.shape[1] for needed_BC in needs)
    return np.concatenate([np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in needs])


def _used(used_BC: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows and the columns in which something is used."""
    return np.flatnonzero(used_BC.any(1)), np.flatnonzero(used_BC.any(0))


@torch.no_grad()
def _visible_steps(
    transformer: MemoryTransformer, state: MemoryState, numbers: Sequence[int], limit_B1: Tensor | None
) -> Int[Tensor, "B U"]:
    """For how many of the next steps some memory of these cues will be seen, per environment."""
    longest_BU = state.clock_B.new_zeros(state.batch_size, len(numbers))
    for layer, memory in zip(transformer.layers, state.layers, strict=False):
        remaining_FS = layer.remaining(memory, state.clock_B, limit_B1)
        margin = layer.retention.ramp * (1.0 - SMALLEST_MASK)
        steps_FS = torch.ceil(remaining_FS + margin).clamp(min=0).long()
        if memory.slots.num_slots:
            tag_FS = memory.slots.cue_BT
            of_each = [steps_FS.masked_fill(tag_FS != number, 0).amax(1) for number in numbers]
            longest_BU = torch.maximum(longest_BU, memory.max_pages(torch.stack(of_each, 1)))
    return longest_BU


def _on_host(parts: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """Tensors of any shapes, fetched in one transfer."""
    flat = torch.cat([part.flatten() for part in parts]).cpu().numpy() if parts else np.zeros(0)
    ends = np.cumsum([part.numel() for part in parts])
    return [piece.reshape(part.shape) for piece, part in zip(np.split(flat, ends[:-1]), parts, strict=True)]
