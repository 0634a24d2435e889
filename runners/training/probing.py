"""Interventions on the memory of a trained agent: edits in words, and surveys over many episodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memory_suite.agents.episodes.probe import Content, Edit, Probe, exchange, insertion
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.run.progress import ProgressDisplay, duration
from memory_suite.runners.training.evaluation import wilson_interval
from memory_suite.runners.training.trained_agent import TrainedAgent

TIMED_MEMORIES = 4
"""memories of a sweep after which the time left is estimated"""
MIN_CUE_DISTANCE = 1e-3
"""two cues are different if the contents of their memories differ by more than this"""


def announce_time(
    display: ProgressDisplay, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """Make a callback of a sweep that prints its size and, after the first memories, the time left."""
    start = 0.0

    def watch(answered: int, asked: int) -> None:
        nonlocal start
        if answered == 0 and asked:
            display.note(f"dropping {asked} memories in turn; each time the episode is played to its end")
        elif answered == 1:
            start = clock()  # the first takes longer: it includes the decisions of all memories
        elif answered == TIMED_MEMORIES and answered < asked:
            seconds = (clock() - start) / (answered - 1) * (asked - answered)
            display.note(f"about {duration(seconds)} left")

    return watch


def make_probe(
    trained: TrainedAgent, seed: int, deterministic: bool = False, *, pictures: bool = True
) -> Probe:
    """Play the episode of a seed and prepare interventions on it."""
    record = trained.record(seed=seed, deterministic=deterministic, pictures=pictures)
    return Probe(trained.agent, trained.make_env(pictures=False), record)


def survey(
    trained: TrainedAgent,
    seeds: Sequence[int],
    *,
    deterministic: bool = False,
    at: int | None = None,
    decision: int | None = None,
) -> dict[str, Any]:
    """Count how often a cue is ranked first, and how often exchanged cues turn the decision.

    The cues of each episode are exchanged with those of the next episode that has a different cue.

    Args:
        trained: agent and environment.
        seeds: one episode for each.
        deterministic: play the most likely actions.
        at: step before which the memory is changed; None: as `Probe` chooses.
        decision: step whose decision is compared; None: as `Probe` chooses.
    """
    probes = [make_probe(trained, seed, deterministic, pictures=False) for seed in seeds]
    rows = []
    for index, probe in enumerate(probes):
        effects = probe.sweep(at=at, decision=decision, returns=False)
        cues = probe.cues(at)
        row: dict[str, Any] = {
            "seed": probe.record.facts["seed"],
            "retained": len(effects),
            "first": effects[0].births[0] if effects else None,
            "cue_first": bool(effects and effects[0].is_cue and effects[0].change > 0.0),
            "change": effects[0].change if effects else 0.0,
            "next_change": effects[1].change if len(effects) > 1 else 0.0,
            "turned": None,
        }
        donor = _donor([*probes[index + 1 :], *probes[:index]], probe, cues)
        if donor is not None:
            edit = exchange(probe.record, cues, donor.record, donor.cues())
            effect = probe.ask([edit], at=at, decision=decision, returns=False)[0]
            row |= {
                "turned": effect.turned,
                "donor": donor.record.facts["seed"],
                "exchange_change": effect.change,
            }
        rows.append(row)
    first = [row["cue_first"] for row in rows]
    turned = [row["turned"] for row in rows if row["turned"] is not None]
    return {
        "episodes": len(rows),
        "cue_first": float(np.mean(first)),
        "cue_first_ci95": wilson_interval(sum(first), len(first)),
        "exchanged": len(turned),
        "turned": float(np.mean(turned)) if turned else None,
        "turned_ci95": wilson_interval(sum(turned), len(turned)) if turned else None,
        "rows": rows,
    }


def _donor(others: Sequence[Probe], probe: Probe, cues: tuple[int, ...]) -> Probe | None:
    """The first of the other episodes that has a different cue."""
    if not cues:
        return None
    ours = probe.content(cues[-1])
    for other in others:
        theirs = other.cues()
        if theirs and any(
            np.abs(a - b).max() > MIN_CUE_DISTANCE
            for a, b in zip(ours, other.content(theirs[-1]), strict=True)
        ):
            return other
    return None


def parse_edit(
    probe: Probe,
    trained: TrainedAgent,
    *,
    drop: str | None = None,
    swap: str | None = None,
    inject: str | None = None,
    at: int | None = None,
    layer: int | None = None,
) -> Edit:
    """Combine interventions in words, such as `cue` or `cue=seed8:cue`, into one edit.

    Args:
        probe: the episode.
        trained: agent that plays the episodes of other seeds.
        drop: STEPS to remove.
        swap: STEPS=STEPS or STEPS=RECORD:STEPS to exchange.
        inject: RECORD:STEPS to insert.
        at: step before which the memory is changed; None: as the probe chooses.
        layer: number of the layer to change, from 1; None: all.

    Raises:
        ValueError: the words cannot be understood, or name memories that do not exist.
    """
    at = probe.moment if at is None else at
    dropped = () if drop is None else _parse_steps(drop, probe.record, probe.cues(at))
    replace: dict[int, Content] = {}
    insert: dict[int, Content] = {}
    if swap is not None:
        left, equals, right = swap.partition("=")
        if not equals:
            raise ValueError(f"swap must be STEP=STEP or STEP=RECORD:STEP, got {swap!r}")
        ours = _parse_steps(left, probe.record, probe.cues(at))
        donor, theirs = _parse_donor(right, probe, trained)
        replace = exchange(probe.record, ours, donor, theirs).replace
        if donor is probe.record:  # within one episode the memories change places
            retained = set(probe.retained(at))
            back = exchange(probe.record, theirs, donor, ours).replace
            replace = {birth: content for birth, content in (back | replace).items() if birth in retained}
    if inject is not None:
        donor, theirs = _parse_donor(inject, probe, trained)
        if donor is probe.record:
            raise ValueError(f"inject must be RECORD:STEP, got {inject!r}")
        for birth in theirs:
            insert |= insertion(probe.record, min(birth, at - 1), donor, birth).insert
    return Edit(drop=dropped, replace=replace, insert=insert, layer=layer)


def _parse_donor(words: str, probe: Probe, trained: TrainedAgent) -> tuple[EpisodeRecord, tuple[int, ...]]:
    """The record and the steps of RECORD:STEPS; the probe's own record if there are only STEPS."""
    name, colon, steps = words.rpartition(":")
    if not colon:
        return probe.record, _parse_steps(steps, probe.record, probe.cues())
    if name.startswith("seed") and name[4:].isdigit():
        record = trained.record(seed=int(name[4:]), pictures=False)
    else:
        record = EpisodeRecord.load(Path(name))
    cues = tuple(np.flatnonzero(record.cue_T).tolist())
    return record, _parse_steps(steps, record, cues)


def _parse_steps(words: str, record: EpisodeRecord, cues: tuple[int, ...]) -> tuple[int, ...]:
    """Parse `3`, `0,1` or `cue`."""
    if words == "cue":
        if not cues:
            raise ValueError("no cue is retained there; name a step")
        return cues
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise ValueError(f"steps must be numbers such as 3 or 0,1, or the word cue, got {words!r}") from None
