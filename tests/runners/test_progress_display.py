"""The display: right numbers, at the right rate, on any kind of output."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from memory_suite.runners.run.progress import ProgressDisplay, ProgressSnapshot

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def snapshot(steps: int) -> ProgressSnapshot:
    return ProgressSnapshot(
        steps=steps,
        success=0.934,
        worst_success=0.88,
        retained=(14.2, 3.0),
        possible=63.0,
        reliance=0.123,
        return_size=0.4567,
    )


def make(*, terminal: bool, start_steps: int = 0) -> tuple[ProgressDisplay, io.StringIO, Clock]:
    output, clock = io.StringIO(), Clock()
    console = Console(file=output, force_terminal=terminal, force_interactive=terminal, width=100)
    display = ProgressDisplay(3_000_000, console=console, clock=clock)
    display.start_at(start_steps)
    return display, output, clock


def test_without_a_terminal_a_line_every_ten_seconds() -> None:
    display, output, clock = make(terminal=False)
    with display:
        for second in range(1, 36):
            clock.seconds = float(second)
            display.update(snapshot(5_000 * second))
    lines = output.getvalue().splitlines()
    assert len(lines) == 5  # at 1, 11, 21, 31 s and where it ended
    assert lines[1] == (
        "55,000 of 3,000,000 steps | 5,000 steps/s, 9 min 49 s left | success 93.4%, 88.0% in the worst class"
        " | layer 1: 14.2 of 63.0 memories retained | layer 2: 3.0 of 63.0 memories retained"
        " | actions depend on memory: 12% | size of returns 0.457"
    )


def test_on_a_terminal_a_panel_four_times_a_second_at_most() -> None:
    display, output, clock = make(terminal=True)
    with display:
        for update in range(100):
            clock.seconds = update * 0.01
            display.update(snapshot(15_000 * update))
    text = output.getvalue()
    assert 4 <= text.count("steps/s") <= 6
    for part in (
        "1,485,000 of 3,000,000 steps",
        "49.5%",
        "[#####",
        "layer 1: 14.2 of 63.0",
        "88.0% in the worst",
    ):
        assert part in text


def test_before_anything_is_known() -> None:
    display, output, _ = make(terminal=False, start_steps=1000)
    with display:
        display.update(ProgressSnapshot(steps=1000))
        assert "speed not known yet | no episode has ended yet" in output.getvalue()
        display.update(ProgressSnapshot(steps=1000, success=0.5))
    assert "success 50.0%, too few episodes in some class" in output.getvalue()


def test_a_resumed_run_counts_only_its_own_steps_as_speed() -> None:
    display, output, clock = make(terminal=False, start_steps=1_000_000)
    with display:
        clock.seconds = 10.0
        display.update(snapshot(1_010_000))
    assert "1,000 steps/s, 33 min 10 s left" in output.getvalue()


def test_facts_notes_and_summary_are_printed_as_they_are() -> None:
    display, output, _ = make(terminal=False)
    path = "/runs/[bold]" + "x" * 150
    display.announce({"environment": "corridor-long", "run": path})
    display.note("[red] is no color")
    display.summary_table({"success": "99.2%"})
    assert output.getvalue().splitlines() == [
        "environment  corridor-long",
        f"run          {path}",
        "[red] is no color",
        "success  99.2%",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_ascii_output_stays_ascii(terminal: bool) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), force_terminal=terminal)
    display = ProgressDisplay(100, console=console)
    display.announce({"run": "caf\u00e9"})
    with display:
        display.update(snapshot(50))
    console.file.flush()
    assert b"caf\\xe9" in raw.getvalue()


def test_a_reader_that_goes_away_does_not_end_training() -> None:
    program = (
        "import sys, time\n"
        "from memory_suite.runners.run.progress import ProgressDisplay, ProgressSnapshot\n"
        "display = ProgressDisplay(100)\n"
        "with display:\n"
        "    for step in range(50):\n"
        "        display.note('x' * 10000)\n"
        "        display.update(ProgressSnapshot(steps=step))\n"
        "sys.stderr.write('trained')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "trained"
    process.stderr.close()
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("steps", "left"), [(2_000_000, "50 s left"), (1_000_000, "3 min 20 s left"), (10_000, "8 h 18 min left")]
)
def test_time_left(steps: int, left: str) -> None:
    display, output, clock = make(terminal=False)
    with display:
        clock.seconds = 100.0
        display.update(ProgressSnapshot(steps=steps))
    assert f" steps/s, {left} | " in output.getvalue()
