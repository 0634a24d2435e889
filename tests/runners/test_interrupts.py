"""Signals: the first asks, the second insists, and afterwards everything is as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with GracefulStop() as stop:
        assert not stop.stop_requested
        os.kill(os.getpid(), number)
        assert stop.stop_requested
        assert stop.stop_signal is number
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 here")
def test_sigusr1_asks_to_save_and_go_on() -> None:
    with GracefulStop() as stop:
        assert not stop.take_save_request()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.take_save_request()
        assert not stop.take_save_request()
        assert not stop.stop_requested


PROGRAM = """
import sys, time
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
patient = sys.argv[1] == "patient"
with GracefulStop() as stop:
    print("ready", flush=True)
    while not (patient and stop.stop_requested):
        time.sleep(0.01)
sys.exit(EXIT_SAVED)
"""


@pytest.mark.parametrize(
    ("manner", "signals", "code"),
    [
        ("patient", [signal.SIGTERM], EXIT_SAVED),
        ("patient", [signal.SIGINT], EXIT_SAVED),
        ("busy", [signal.SIGINT, signal.SIGINT], 130),
        ("busy", [signal.SIGINT, signal.SIGTERM], 143),
    ],
)
def test_exit_codes(manner: str, signals: list[signal.Signals], code: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, manner], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ}
    )
    assert process.stdout is not None
    process.stdout.readline()
    for number in signals:
        process.send_signal(number)
        time.sleep(0.1)
    assert process.wait(timeout=10) == code
    process.stdout.close()
