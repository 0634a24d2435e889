"""How much forgetting is worth: the weight alpha of the span penalty (equation 6) during training.

A penalty that is there from the first update teaches forgetting before there is anything to
remember: with no reward yet, Adam scales even the smallest penalty gradient up. So forgetting is a
constrained problem: spans as short as possible *once the worst class of episodes succeeds*.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from memory_suite.agents.model.retention.penalty import PenaltyForm, PenaltySpec


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanPenaltySettings:
    """How alpha is chosen."""

    kind: Literal["constraint", "fixed", "none"] = "constraint"
    form: PenaltyForm = "log"
    """see `agents.model.retention.penalty`"""
    cap_steps: float = 64.0
    """what one memory can cost at most, in steps, in the form "capped" """
    use_weight: float = 100.0
    """what the use of memories weighs against their cost (`agents.model.retention.penalty`); 0: it does not
    count, and the task teaches spans, as in the paper"""
    use_margin: float = 2.0
    """steps of span that use at an age asks for, per step of that age"""
    weight: float = 1e-4
    """alpha itself if fixed; its first ceiling under the constraint"""
    max_weight: float = 1e-3
    """the ceiling never rises above this"""
    growth: float = 1.03
    """factor on the ceiling per update while the constraint holds"""
    shrinkage: float = 0.9
    """factor on the ceiling per update while it does not"""
    target_success: float = 0.97
    """nothing is charged before the worst class of episodes succeeds more often than this"""

    def __post_init__(self) -> None:
        """Refuse what cannot work; raises ValueError."""
        if self.weight < 0.0:
            raise ValueError(f"penalty.weight must be at least 0, got {self.weight}")
        if self.kind == "constraint" and not 0.0 < self.weight <= self.max_weight:
            raise ValueError(
                f"penalty.weight ({self.weight}) must lie above 0 and not above max_weight "
                f'({self.max_weight}); choose the kind "none" to charge nothing'
            )
        if self.cap_steps <= 0.0:
            raise ValueError(f"penalty.cap_steps must be positive, got {self.cap_steps}")
        if self.use_weight < 0.0:
            raise ValueError(f"penalty.use_weight must be at least 0, got {self.use_weight}")
        if self.use_margin < 1.0:
            raise ValueError(f"penalty.use_margin must be at least 1, got {self.use_margin}")
        if self.growth < 1.0:
            raise ValueError(f"penalty.growth must be at least 1, got {self.growth}")
        if not 0.0 < self.shrinkage <= 1.0:
            raise ValueError(f"penalty.shrinkage must lie in (0, 1], got {self.shrinkage}")
        if not 0.0 <= self.target_success < 1.0:
            raise ValueError(f"penalty.target_success must lie in [0, 1), got {self.target_success}")


@dataclass(slots=True)
class SpanPenalty:
    """The weight over time.

    A ceiling creeps up while the constraint holds and falls faster while it does not. What follows from it
    depends on what keeps a memory that the task needs.

    Where use counts (`use_weight` above 0), alpha is 0 until the constraint has held for the first time:
    before that nothing is of use yet, and everything would be forgotten. From then on it is the ceiling,
    whatever happens to success: what is needed is held by its use, and an agent that fails since it holds
    too much is helped by forgetting.

    Where use does not count, alpha is the ceiling times the slack: how far the worst class lies above the
    target, from 0 (at the target) to 1 (it never fails). The slack acts at once, so a success rate
    that falls takes the pressure off before it reaches the target. A rule on the weight alone swings: spans
    answer many updates late. Below the target the slack, and with it alpha, is negative (down to minus the
    largest weight): remembering is subsidized until the class is back. The task alone brings a span that has
    become too short back only through its ramp, which is slow, or never happens once other memories stand in
    for it. No subsidy is paid before the constraint has held for the first time: until then there is
    nothing to bring back.
    """

    settings: SpanPenaltySettings = field(default_factory=SpanPenaltySettings)
    ceiling: float = -1.0
    """set from `settings.weight` at the start"""
    slack: float | None = None
    """how far the worst class lies above the target, -1 to 1; None: not known, so nothing is charged. Where
    use counts it is not needed and stays None"""
    has_held: bool = False
    """whether the constraint has ever held"""

    def __post_init__(self) -> None:
        """Start at the settings' weight."""
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
    def kind(self) -> PenaltySpec | None:
        """The penalty to compute, or None while nothing is charged and the task teaches spans."""
        settings = self.settings
        if settings.kind == "none" or (settings.kind == "fixed" and settings.weight == 0.0):
            return None
        if settings.use_weight:
            use_weight = settings.use_weight if self.weight > 0.0 else 0.0
            return PenaltySpec(settings.form, settings.cap_steps, use_weight, settings.use_margin)
        return PenaltySpec(settings.form, settings.cap_steps) if self.weight != 0.0 else None

    def update(self, worst_success: float | None) -> None:
        """Once per rollout.

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
        """What a checkpoint needs."""
        return {"ceiling": self.ceiling, "slack": self.slack, "has_held": self.has_held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.ceiling, self.slack = state["ceiling"], state["slack"]
        self.has_held = bool(state["has_held"])
