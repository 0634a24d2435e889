"""Progress display of a run: facts at the start, a live panel or log lines, and a final table."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

REFRESH_SECONDS = 0.25
"""The live panel is drawn at most this often."""

LINE_SECONDS = 10.0
"""Without a terminal, one log line is printed this often."""

_BAR_CELLS = 40
_RATE_UPDATES = 50


class Snapshot(Protocol):
    """Progress of a run after an update."""

    @property
    def steps(self) -> int:
        """Steps done, in the display's unit."""

    def lines(self) -> list[str]:
        """Further lines to show."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressSnapshot:
    """Progress of an agent's training after an update."""

    steps: int
    """environment steps so far"""
    episodes: tuple[float, float] | None = None
    """mean return and mean length of recent episodes; None: none has ended yet"""
    success: float | None = None
    """success rate of recent episodes; None: none has ended yet, or the environment does not tell"""
    worst_success: float | None = None
    """the same in the worst class of episodes; None: some class has too few"""
    retained: tuple[float, ...] = ()
    """mean number of memories retained, per layer"""
    possible: float = 0.0
    """mean number of memories that a policy which never forgets would retain"""
    reliance: float | None = None
    """how much actions depend on memory, 0 to 1; None: not measured"""
    return_size: float | None = None
    """size of returns, in units of reward; None: not known"""

    def lines(self) -> list[str]:
        """Success or return, memories retained, reliance on memory, and the size of returns."""
        lines = []
        if self.success is not None:
            worst = self.worst_success
            worst_text = (
                "too few episodes in some class" if worst is None else f"{worst:.1%} in the worst class"
            )
            lines.append(f"success {self.success:.1%}, {worst_text}")
        elif self.episodes is not None:
            mean_return, mean_length = self.episodes
            lines.append(f"return {mean_return:.4g}, {mean_length:.4g} steps an episode")
        else:
            lines.append("no episode has ended yet")
        lines.extend(
            f"layer {number}: {retained:.1f} of {self.possible:.1f} memories retained"
            for number, retained in enumerate(self.retained, start=1)
        )
        if self.reliance is not None:
            lines.append(f"actions depend on memory: {self.reliance:.0%}")
        if self.return_size is not None:
            lines.append(f"size of returns {self.return_size:.3g}")
        return lines


class ProgressDisplay:
    """A live panel on a terminal, plain lines elsewhere; use it as a context manager."""

    def __init__(
        self,
        total_steps: int,
        *,
        unit: str = "steps",
        rank: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show nothing yet.

        Args:
            total_steps: steps at which training ends.
            unit: name of a step.
            rank: rank of this process; rank 0 shows progress, the others only their errors.
            console: where to print; None: standard output.
            clock: seconds, for tests.
        """
        self.console = _PipeSafeConsole(highlight=False) if console is None else console
        self.console.quiet = self.console.quiet or rank > 0
        self._rank = rank
        self._total_steps = total_steps
        self._unit = unit
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque(maxlen=_RATE_UPDATES)
        self.start_at(0)
        self._name_width = 0
        self._last_shown_seconds = float("-inf")
        self._live: Live | None = None
        self._text = self._printed_text = "starting"

    def start_at(self, steps: int) -> None:
        """Measure the rate from now on; `steps` were done before a resume."""
        self._points.clear()
        self._points.append((self._clock(), steps))

    def announce(self, facts: Mapping[str, object]) -> None:
        """Print facts about the run, one a line, aligned with earlier ones."""
        self._name_width = max(self._name_width, *map(len, facts))
        self._print_rows(facts, self._name_width)

    def summary_table(self, rows: Mapping[str, object]) -> None:
        """Print the results of the run, one row a line."""
        self._print_rows(rows, max(map(len, rows), default=0))

    def note(self, message: str) -> None:
        """Print a sentence, above the panel if there is one; may be called from any thread."""
        self.console.print(self._printable(message), soft_wrap=True)

    def fault(self, message: str) -> None:
        """Print the error that ended this process, on any rank."""
        if self._rank == 0:
            self.note(message)
        else:
            sys.stderr.write(f"rank {self._rank}: {message}\n")

    def update(self, snapshot: Snapshot) -> None:
        """Show a snapshot, at most once per refresh interval."""
        now = self._clock()
        self._points.append((now, snapshot.steps))
        self._text = "\n".join(self._lines(snapshot))
        interval = LINE_SECONDS if self._live is None else REFRESH_SECONDS
        if now - self._last_shown_seconds < interval:
            return
        self._last_shown_seconds = now
        if self._live is None:
            self._print_text()
        else:
            self._live.update(self._panel(), refresh=True)

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_interactive and not self.console.is_dumb_terminal:
            self._live = Live(self._panel(), console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self._panel())
            self._live.stop()
            self._live = None
        elif self._text != self._printed_text:
            self._print_text()

    def _print_text(self) -> None:
        self._printed_text = self._text
        self.note(self._text.replace("\n", " | "))

    def _lines(self, snapshot: Snapshot) -> list[str]:
        done = f"{snapshot.steps:,} of {self._total_steps:,} {self._unit}"
        return [done, self._speed(snapshot.steps), *snapshot.lines()]

    def _speed(self, steps: int) -> str:
        (first_seconds, first_steps), (last_seconds, last_steps) = self._points[0], self._points[-1]
        if last_seconds <= first_seconds or last_steps <= first_steps:
            return "speed not known yet"
        steps_per_second = (last_steps - first_steps) / (last_seconds - first_seconds)
        left_seconds = max(0, self._total_steps - steps) / steps_per_second
        return f"{steps_per_second:,.0f} {self._unit}/s, {duration(left_seconds)} left"

    def _panel(self) -> Panel:
        share = min(1.0, self._points[-1][1] / self._total_steps)
        filled = int(share * _BAR_CELLS)
        bar = f"[{'#' * filled}{'-' * (_BAR_CELLS - filled)}] {share:.1%}"
        return Panel(Text(f"{bar}\n{self._text}"), title="training", title_align="left", expand=False)

    def _print_rows(self, rows: Mapping[str, object], width: int) -> None:
        for name, value in rows.items():
            self.note(f"{name:<{width}}  {value}")

    def _printable(self, text: str) -> Text:
        """The text, with characters that the terminal cannot encode escaped."""
        encoding = self.console.encoding
        return Text(text.encode(encoding, "backslashreplace").decode(encoding))


class _PipeSafeConsole(Console):
    """A console that survives a closed pipe (`| head`), so that training continues."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def counted(number: int, what: str) -> str:
    """Like "1 layer" or "2 layers"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """Seconds for people: `2 h 05 min`, `3 min 20 s`."""
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole_seconds:02d} s" if minutes else f"{whole_seconds} s"
