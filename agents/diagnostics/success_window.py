"""Success of recent episodes, overall and in each class of episodes (such as corridor lengths)."""

from __future__ import annotations

from collections import deque

ALL = "all"
"""class of episodes whose environment names none"""
EPISODE_BASICS = frozenset({"r", "l", "t"})
"""keys that SB3 sets for every episode: return, length, time; the others are the environment's"""


class SuccessWindow:
    """Outcomes of the most recent episodes of each class."""

    def __init__(self, *, episodes_per_class: int = 100, min_episodes_per_class: int = 30) -> None:
        """Start empty.

        Args:
            episodes_per_class: number of recent episodes in the success rate of a class.
            min_episodes_per_class: smallest number of episodes for which a class has a success rate.
        """
        self.episodes_per_class = episodes_per_class
        self.min_episodes_per_class = min_episodes_per_class
        self._outcomes: dict[str, deque[bool]] = {}

    def record(self, success: bool, episode_class: str = ALL) -> None:
        """Add one finished episode."""
        if episode_class not in self._outcomes:
            self._outcomes[episode_class] = deque(maxlen=self.episodes_per_class)
        self._outcomes[episode_class].append(success)

    def expect(self, episode_classes: tuple[str, ...]) -> None:
        """Name classes that must have success rates before there is a worst class."""
        for name in episode_classes:
            self._outcomes.setdefault(name, deque(maxlen=self.episodes_per_class))

    def clear(self) -> None:
        """Discard all episodes and classes, for a new task."""
        self._outcomes.clear()

    def rates(self) -> dict[str, float]:
        """Success rate of every class that has enough episodes."""
        return {
            name: sum(outcomes) / len(outcomes)
            for name, outcomes in sorted(self._outcomes.items())
            if len(outcomes) >= self.min_episodes_per_class
        }

    def worst(self) -> float | None:
        """Success rate of the worst class; None until every known class has enough episodes."""
        rates = self.rates()
        return min(rates.values()) if rates and len(rates) == len(self._outcomes) else None

    def state_dict(self) -> dict[str, list[bool]]:
        """State for a checkpoint."""
        return {name: list(outcomes) for name, outcomes in self._outcomes.items()}

    def load_state_dict(self, state: dict[str, list[bool]]) -> None:
        """Restore the state of a checkpoint."""
        self._outcomes = {
            name: deque(outcomes, maxlen=self.episodes_per_class) for name, outcomes in state.items()
        }
