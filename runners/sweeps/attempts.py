"""Scheduler of attempts: starts, retries and stops them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from memory_suite.configs.command_line import EXIT_USAGE
from memory_suite.runners.run.signals import GracefulStop
from memory_suite.runners.sweeps.folder import Member, Sweep
from memory_suite.runners.sweeps.watch import Watch

POLL_SECONDS = 0.2


class Attempt(Protocol):
    """A process that trains a member, somewhere."""

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""

    @property
    def reason(self) -> str:
        """How it ended, in words."""

    def stop(self) -> None:
        """Ask it to save and leave."""


def run_attempts(
    sweep: Sweep,
    start: Callable[[Sweep, str], Attempt],
    watch: Watch,
    stop: GracefulStop,
    *,
    workers: int | None,
    retries: int,
    poll_seconds: float = POLL_SECONDS,
) -> None:
    """Run attempts until every member has finished, failed too often, or a stop is requested.

    Args:
        sweep: the folder.
        start: starts an attempt at the member of a name.
        watch: receives events and knows which members are unfinished.
        stop: when requested, running attempts save and exit, and no new ones start.
        workers: number of attempts at a time; None: all.
        retries: number of consecutive attempts without progress after which a member is given up.
        poll_seconds: time between two polls of the attempts.
    """
    waiting = deque(watch.left())
    running: dict[str, _Running] = {}
    in_vain = {member.name: 0 for member in waiting}
    stopping = False
    while waiting or running:
        if stop.stop_requested and not stopping:
            stopping = True
            waiting.clear()
            watch.note("stopping: every member saves and exits; rerun the same command to continue")
            for attempt in running.values():
                attempt.process.stop()
        while waiting and (workers is None or len(running) < workers):
            member = waiting.popleft()
            watch.started(member.name)
            reached = sweep.progress(member)
            running[member.name] = _Running(member, start(sweep, member.name), reached)
        for name, attempt in list(running.items()):
            if attempt.process.exit_code is None:
                continue
            del running[name]
            got_further = sweep.progress(attempt.member) > attempt.reached_before
            in_vain[name] = 0 if got_further else in_vain[name] + 1
            if sweep.is_finished(attempt.member):
                watch.finished(name)
            elif stopping:
                watch.stopped(name)
            elif attempt.process.exit_code == EXIT_USAGE or in_vain[name] >= retries:
                watch.failed(name, attempt.process.reason)
            else:
                watch.retrying(name, attempt.process.reason)
                waiting.append(attempt.member)
        if running:
            time.sleep(poll_seconds)


class _Running(NamedTuple):
    member: Member
    process: Attempt
    reached_before: tuple[int, int]
