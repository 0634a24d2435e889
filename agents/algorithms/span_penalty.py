"""The weight alpha of the span penalty (equation 6) during training.

A penalty from the first update on teaches forgetting before there is anything to remember: without reward,
Adam scales up even the smallest gradient of the penalty. Training therefore solves a constrained problem:
spans as short as possible, subject to success in the worst class of episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from memory_suite.agents.model.settings import PenaltySettings, PenaltySpec
from memory_suite.agents.ranges import check


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanPenaltySettings(PenaltySettings):
    """Cost of memories: the span penalty (equation 6) and how its weight alpha is chosen."""

    kind: Literal["constraint", "fixed", "none"] = "constraint"
    """"constraint": alpha is 0 until the worst class of episodes succeeds (and stays 0 where episodes do not
    report success: choose "none" there); "fixed": alpha is `weight`; "none": there is no penalty"""
    use_weight: float = 100.0
    """weight of the usefulness of memories relative to their cost. A memory whose span is too short pays this
    times log(target / span) per nat (KL) by which the action distribution changes without it; nothing else
    lengthens spans. 0: usefulness does not count, and spans learn from the task loss on their ramp, as in the
    paper"""
    weight: float = 1e-4
    """alpha itself with the kind "fixed"; its first ceiling with "constraint" """
    max_weight: float = 1e-3
    """upper bound of the ceiling under the constraint"""
    growth: float = 1.03
    """factor on the ceiling, per update while the constraint holds"""
    shrinkage: float = 0.9
    """factor on the ceiling, per update while the constraint is violated"""
    target_success: float = 0.97
    """the constraint: success rate that the worst class of episodes must exceed. When it no longer does,
    alpha falls back towards `weight`; with `use_weight` 0 it becomes negative, a subsidy of remembering"""

    def __post_init__(self) -> None:
        """Validate the settings."""
        PenaltySettings.__post_init__(self)  # super() fails in a dataclass with slots
        check("penalty.max_weight", self.max_weight, "[0, inf)")
        check("penalty.growth", self.growth, "[1, inf)")
        check("penalty.shrinkage", self.shrinkage, "(0, 1]")
        check("penalty.target_success", self.target_success, "[0, 1)")
        if self.kind == "constraint" and self.weight > self.max_weight:
            raise ValueError(
                f"penalty.weight ({self.weight}) must not exceed penalty.max_weight ({self.max_weight})"
            )
        if self.kind == "constraint" and self.weight == 0.0:  # growth cannot change 0
            raise ValueError("penalty.weight must lie above 0; choose penalty.kind=none to charge nothing")


@dataclass(slots=True)
class SpanPenalty:
    """Alpha as a function of the success rates so far.

    A ceiling grows slowly while the constraint holds and shrinks faster while it is violated. How alpha
    follows from it depends on whether the penalty has a usefulness term.

    With that term (`use_weight` above 0) alpha is 0 until the constraint has held for the first time: before
    that no memory is useful yet, and all would be forgotten. Afterwards alpha is the ceiling, whatever the
    success rate: the usefulness term protects the memories that the task needs, and forgetting helps an agent
    that fails because it holds too many.

    Without that term alpha is the ceiling times the slack: how far the worst class lies above the target,
    from 0 (at the target) to 1 (it never fails). The slack acts at once, so a falling success rate reduces
    the penalty before it reaches the target. A rule on the weight alone oscillates, because spans respond
    many updates late. Below the target the slack is negative, and so is alpha (down to minus the largest
    weight): remembering is subsidized until the class has recovered. The task loss alone lengthens a span
    that has become too short only through its ramp, which is slow, or not at all once other memories replace
    it. There is no subsidy before the constraint has held for the first time: until then there is nothing to
    recover.
    """

    settings: SpanPenaltySettings = field(default_factory=SpanPenaltySettings)
    ceiling: float = -1.0
    """upper bound of alpha, initially `settings.weight`"""
    slack: float | None = None
    """how far the worst class lies above the target, -1 to 1; None: unknown, and alpha is 0. Always None with
    a usefulness term"""
    has_held: bool = False
    """whether the constraint has ever held"""

    def __post_init__(self) -> None:
        """Set the ceiling to the settings' weight."""
        if self.ceiling < 0.0:
            self.ceiling = self.settings.weight

    @property
    def weight(self) -> float:
        """Alpha for the next update; negative: a subsidy."""
        if self.settings.kind == "fixed":
            return self.settings.weight
        if self.settings.use_weight:
            return self.ceiling if self.has_held else 0.0
        if not self.has_held or self.slack is None:
            return 0.0
        return self.slack * (self.ceiling if self.slack > 0.0 else self.settings.max_weight)

    @property
    def spec(self) -> PenaltySpec | None:
        """The penalty to compute; None while there is none and spans learn from the task loss."""
        settings = self.settings
        if settings.kind == "none" or (settings.kind == "fixed" and settings.weight == 0.0):
            return None
        return settings.spec(self.weight)

    def update(self, worst_success: float | None) -> None:
        """Update alpha; call once per rollout.

        Args:
            worst_success: success rate of the worst class of recent episodes, in [0, 1]; None while
                some class has too few episodes to tell.
        """
        settings = self.settings
        if settings.kind != "constraint":
            return
        above = None if worst_success is None else worst_success - settings.target_success
        if not settings.use_weight:
            self.slack = None if above is None else max(-1.0, above / (1.0 - settings.target_success))
        if above is None:
            return
        if above > 0.0:
            self.has_held = True
            self.ceiling = min(settings.max_weight, self.ceiling * settings.growth)
        else:
            self.ceiling = max(settings.weight, self.ceiling * settings.shrinkage)

    def state_dict(self) -> dict[str, float | bool | None]:
        """State for a checkpoint."""
        return {"ceiling": self.ceiling, "slack": self.slack, "has_held": self.has_held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.ceiling, self.slack = state["ceiling"], state["slack"]
        self.has_held = bool(state["has_held"])
