"""Success of recent episodes, overall and in each class of episodes (such as corridor lengths)."""

from __future__ import annotations

from collections import deque

ALL = "all"
"""class of an episode whose environment names none"""
EPISODE_BASICS = frozenset({"r", "l", "t"})
"""what stable-baselines3 says of every episode: return, length, time; the rest the environment measures"""


class SuccessWindow:
    """Outcomes of the last episodes of each class."""

    def __init__(self, *, episodes_per_class: int = 100, min_episodes_per_class: int = 30) -> None:
        """Start empty.

        Args:
            episodes_per_class: how many recent episodes of a class count.
            min_episodes_per_class: with fewer, a class has no rate yet, and there is no worst one.
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
        """Name classes that must have been seen before there is a worst one."""
        for name in episode_classes:
            self._outcomes.setdefault(name, deque(maxlen=self.episodes_per_class))

    def clear(self) -> None:
        """Forget all episodes and classes: the task has changed."""
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
        """What a checkpoint needs."""
        return {name: list(outcomes) for name, outcomes in self._outcomes.items()}

    def load_state_dict(self, state: dict[str, list[bool]]) -> None:
        """Continue from a checkpoint."""
        self._outcomes = {
            name: deque(outcomes, maxlen=self.episodes_per_class) for name, outcomes in state.items()
        }
