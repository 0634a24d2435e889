"""Display of a sweep: a live table on a terminal, one line for each event elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memory_suite.configs.command_line import Scalar
from memory_suite.runners.run.metrics_file import STEP_KEY
from memory_suite.runners.run.progress import ProgressDisplay, duration
from memory_suite.runners.sweeps.folder import Member, Sweep

WAITING, RUNNING, FINISHED, FAILED, STOPPED = "waiting", "running", "finished", "failed", "stopped"


class Watch:
    """Receives events from a backend and displays the members' progress; use it as a context manager.

    Progress is read from the members' files, so it is the same for all backends.
    """

    def __init__(self, sweep: Sweep, members: Sequence[Member], *, console: Console | None = None) -> None:
        """Finished members keep that state; the others wait."""
        self._sweep = sweep
        self._members = {member.name: member for member in members}
        self._display = ProgressDisplay(0, console=console)
        self.states = {member.name: FINISHED if sweep.is_finished(member) else WAITING for member in members}
        """state of each member"""
        self._began = time.monotonic()
        self._finished_before = self.count(FINISHED)
        self._started: dict[str, tuple[float, int]] = {}
        self._outcomes: dict[str, tuple[float | None, float]] = {}
        self._live: Live | None = None

    def left(self) -> list[Member]:
        """Unfinished members, in order."""
        return [member for name, member in self._members.items() if self.states[name] != FINISHED]

    def count(self, state: str) -> int:
        """Number of members in a state."""
        return sum(known == state for known in self.states.values())

    def started(self, name: str) -> None:
        """An attempt has begun."""
        step = self._sweep.checkpoint_step(name)
        self.states[name] = RUNNING
        self._started[name] = (time.monotonic(), step or 0)
        self._line(f"{name}: " + ("begins" if step is None else f"goes on from step {step:,}"))

    def finished(self, name: str) -> None:
        """A member has finished."""
        self.states[name] = FINISHED
        success, rows = self._outcome(name)
        shown = "" if success is None else f", success {success:.1%}"
        self._line(f"{name}: finished{shown}, {rows:.1f} rows held ({self.headline()})")

    def retrying(self, name: str, reason: str) -> None:
        """An attempt has failed and will be retried."""
        self.states[name] = WAITING
        self.note(f"{name}: {reason}; it will be tried again")

    def failed(self, name: str, reason: str) -> None:
        """A member is given up."""
        self.states[name] = FAILED
        self.note(f"{name}: given up, {reason}; see {self._sweep.log_file(name)}")

    def stopped(self, name: str) -> None:
        """A member has saved and exited on request."""
        self.states[name] = STOPPED
        self._line(f"{name}: saved at step {self._sweep.checkpoint_step(name) or 0:,}")

    def note(self, message: str) -> None:
        """Print a sentence, above the table if there is one."""
        self._display.note(message)

    def headline(self) -> str:
        """One line about all members."""
        finished = self.count(FINISHED)
        parts = [f"{finished} of {len(self.states)} finished"]
        parts += [f"{self.count(state)} {state}" for state in (RUNNING, FAILED, STOPPED) if self.count(state)]
        elapsed = time.monotonic() - self._began
        parts.append(f"{duration(elapsed)} so far")
        done = finished - self._finished_before
        left = len(self.states) - finished - self.count(FAILED)
        if done and left:
            parts.append(f"about {duration(elapsed / done * left)} left")
        return ", ".join(parts)

    def table(self) -> RenderableType:
        """The live table: running members, then finished members grouped over seeds."""
        now = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("running", "steps", "steps/s", "success", "rows held"):
            now.add_column(title, justify="left" if title == "running" else "right")
        for name, state in list(self.states.items()):
            if state == RUNNING:
                now.add_row(name, *self._progress(name))
        groups: dict[tuple[tuple[str, Scalar | None], ...], list[str]] = {}
        for name, member in self._members.items():
            group = tuple((column, value) for column, value in member.columns.items() if column != "seed")
            groups.setdefault(group, []).append(name)
        seeds = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("", "finished", "failed", "success", "rows held"):
            seeds.add_column(title, justify="left" if title == "" else "right")
        for group, names in groups.items():
            finished = [name for name in names if self.states[name] == FINISHED]
            failed = sum(self.states[name] == FAILED for name in names)
            if not finished and not failed:
                continue
            outcomes = [self._outcome(name) for name in finished]
            successes = [success for success, _ in outcomes if success is not None]
            seeds.add_row(
                " ".join(str(value) for _, value in group if value is not None),
                f"{len(finished)} of {len(names)}",
                str(failed or ""),
                f"{sum(successes) / len(successes):.1%}" if successes else "",
                f"{sum(rows for _, rows in outcomes) / len(outcomes):.1f}" if outcomes else "",
            )
        return Group(Text(self.headline(), style="bold"), now, Text(""), seeds)

    def __enter__(self) -> Watch:
        console = self._display.console
        self._display.note(self.headline())
        if console.is_interactive and not console.is_dumb_terminal:
            self._live = Live(
                console=console, get_renderable=self.table, refresh_per_second=2, transient=True
            )
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._display.note(self.headline())

    def _line(self, message: str) -> None:
        """Print a line, unless a live table already shows its content."""
        if self._live is None:
            self.note(message)

    def _progress(self, name: str) -> list[str]:
        row = self._sweep.last_update(name)
        if not row:
            return ["starting", "", "", ""]
        config = self._members[name].config
        if self._sweep.has_trained(name):
            return ["evaluating", "", "", ""]
        steps = int(row.get(STEP_KEY, 0))
        success = row.get("rollout/success_rate")
        rows = sum(
            value
            for key, value in row.items()
            if key.startswith("memory/layer") and key.endswith("/retained_mean") and value is not None
        )
        return [
            f"{steps:,} of {config.total_steps:,}",
            f"{row.get('time/fps') or 0:,.0f}",
            "" if success is None else f"{success:.1%}",
            f"{rows:.1f}",
        ]

    def _outcome(self, name: str) -> tuple[float | None, float]:
        """Success and rows held of a trained member."""
        if name not in self._outcomes:
            result: Mapping[str, Any] = json.loads(self._sweep.evaluation_file(name).read_bytes())
            self._outcomes[name] = (result["success_rate"], sum(result["retained_mean"]))
        return self._outcomes[name]
