"""What if the agent had forgotten this, or remembered something else? Exact counterfactuals of one episode.

    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --sweep
    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --drop cue
    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --swap cue=seed8:cue
    python runners/probe_memory.py --run runs/NAME --episodes 200

`docs/probing.md` says what is asked, and what was found.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from memory_suite.agents.episodes.probe import Content, Edit, Effect, Probe, exchange, insertion
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.configs import command_line
from memory_suite.configs.command_line import or_exit
from memory_suite.runners.rendering.panel import choice_name, favorite_action, title
from memory_suite.runners.rendering.sweep_picture import SHOWN, _small, draw_sweep
from memory_suite.runners.rendering.video import write_png
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay, duration
from memory_suite.runners.training.evaluation import wilson_interval
from memory_suite.runners.training.trained_agent import AgentOptions, TrainedAgent

TIMED = 4
"""memories of a sweep after which it is known how long the others take"""
OTHER_CUE = 1e-3
"""two cues are different ones if what is remembered of them differs by more than this"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeCommand(AgentOptions):
    """What if the agent had forgotten this, or remembered something else?"""

    run: Path
    """run folder of the agent"""
    episode_seed: int = 0
    """the episode: seeds the environment and the sampled actions"""
    sweep: bool = False
    """drop each retained memory in turn, and rank them"""
    drop: str | None = None
    """remove memories: the step that wrote it, several as 0,1, or the word cue for all that saw one"""
    swap: str | None = None
    """exchange memories, as STEP=STEP, or take the right one from another episode, as STEP=RECORD:STEP, where
    RECORD is a file of record_episode.py or seedN for the episode of that seed"""
    inject: str | None = None
    """insert a memory of another episode, as RECORD:STEP"""
    at: int | None = None
    """change the memory before this step; none: half way from the last cue to the decision"""
    decision: int | None = None
    """compare the decision of this step; none: the last one that was rewarded"""
    layer: int | None = None
    """change only this layer, from 1; none: all"""
    episodes: int | None = None
    """ask about so many episodes, from episode-seed on: is a cue first, does another's cue turn the agent?"""
    out: Path = Path("probe.png")
    """picture of the sweep"""
    json: Path | None = None
    """also write the result to this file; none: beside the picture"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        AgentOptions.__post_init__(self)
        command_line.check_seed(self.episode_seed, "episode_seed")
        command_line.check_output(self.out, "out")
        command_line.check_output(self.json)
        single = any(change is not None for change in (self.drop, self.swap, self.inject))
        if single + self.sweep + (self.episodes is not None) > 1:
            raise ValueError("sweep, episodes and a single change (drop, swap, inject) exclude each other")
        if self.episodes is not None and self.episodes < 2:
            raise ValueError(f"episodes must be at least 2, got {self.episodes}")


def main(argv: list[str] | None = None) -> int:
    """Play, change, compare."""
    command = command_line.parse(ProbeCommand, argv)
    return or_exit(lambda: run(command))


def run(command: ProbeCommand) -> int:
    """Do what the command says; ValueError says what is wrong with it."""
    trained = command.open(command.run)
    display = ProgressDisplay(0)
    if command.episodes is not None:
        found = survey(trained, range(command.episode_seed, command.episode_seed + command.episodes), command)
        display.summary_table(_survey_rows(found))
        _write(command, found)
        return 0
    probe = make_probe(trained, command.episode_seed, command.deterministic)
    if any(change is not None for change in (command.drop, command.swap, command.inject)):
        effect = probe.ask([_edit(command, probe, trained)], at=command.at, decision=command.decision)[0]
        display.summary_table(_effect_rows(probe.record, effect))
        _write(command, _effect_json(effect))
        return 0
    effects = probe.sweep(at=command.at, decision=command.decision, watch=_estimate(display))
    together = probe.together(at=command.at, decision=command.decision)
    if not effects:
        raise ValueError("nothing is retained at that step")
    write_png(draw_sweep(probe.record, effects, together), command.out)
    _write(
        command,
        {
            "ranking": [_effect_json(effect) for effect in effects],
            "all_cues": None if together is None else _effect_json(together),
        },
    )
    display.summary_table(_sweep_rows(probe.record, effects, together))
    display.note(f"picture: {command.out}")
    return 0


def _estimate(
    display: ProgressDisplay, clock: Callable[[], float] = time.monotonic
) -> Callable[[int, int], None]:
    """What watches a sweep: tells how many memories it drops and, after the first few, the time left."""
    began = 0.0

    def watch(answered: int, asked: int) -> None:
        nonlocal began
        if answered == 0 and asked:
            display.note(f"dropping {asked} memories in turn; each time the episode is played to its end")
        elif answered == 1:
            began = clock()  # before the first, all decisions were asked for at once
        elif answered == TIMED and answered < asked:
            seconds = (clock() - began) / (answered - 1) * (asked - answered)
            display.note(f"about {duration(seconds)} left")

    return watch


def make_probe(
    trained: TrainedAgent, seed: int, deterministic: bool = False, *, pictures: bool = True
) -> Probe:
    """Play the episode of a seed and prepare to ask about it."""
    record = trained.record(seed=seed, deterministic=deterministic, pictures=pictures)
    return Probe(trained.agent, trained.make_env(pictures=False), record)


def survey(trained: TrainedAgent, seeds: Sequence[int], command: ProbeCommand) -> dict[str, Any]:
    """Over many episodes: is a cue ranked first, and does exchanging the cues turn the decision?

    The cues of each episode are exchanged with those of the next one whose cue was another.
    """
    probes = [make_probe(trained, seed, command.deterministic, pictures=False) for seed in seeds]
    rows = []
    for index, probe in enumerate(probes):
        effects = probe.sweep(at=command.at, decision=command.decision, returns=False)
        cues = probe.cues(command.at)
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
            effect = probe.ask([edit], at=command.at, decision=command.decision, returns=False)[0]
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
    """The next episode whose cue was another one."""
    if not cues:
        return None
    ours = probe.content(cues[-1])
    for other in others:
        theirs = other.cues()
        if theirs and any(
            np.abs(a - b).max() > OTHER_CUE for a, b in zip(ours, other.content(theirs[-1]), strict=True)
        ):
            return other
    return None


def _edit(command: ProbeCommand, probe: Probe, trained: TrainedAgent) -> Edit:
    """What drop, swap and inject together ask for."""
    at = probe.moment if command.at is None else command.at
    drop = () if command.drop is None else _steps(command.drop, probe.record, probe.cues(at))
    replace: dict[int, Content] = {}
    insert: dict[int, Content] = {}
    if command.swap is not None:
        left, equals, right = command.swap.partition("=")
        if not equals:
            raise ValueError(f"swap must be STEP=STEP or STEP=RECORD:STEP, got {command.swap!r}")
        ours = _steps(left, probe.record, probe.cues(at))
        donor, theirs = _foreign(right, probe, trained)
        replace = exchange(probe.record, ours, donor, theirs).replace
        if donor is probe.record:  # within the episode both change places
            kept = set(probe.retained(at))
            back = exchange(probe.record, theirs, donor, ours).replace
            replace = {birth: content for birth, content in (back | replace).items() if birth in kept}
    if command.inject is not None:
        donor, theirs = _foreign(command.inject, probe, trained)
        if donor is probe.record:
            raise ValueError(f"inject must be RECORD:STEP, got {command.inject!r}")
        for birth in theirs:
            insert |= insertion(probe.record, min(birth, at - 1), donor, birth).insert
    return Edit(drop=drop, replace=replace, insert=insert, layer=command.layer)


def _foreign(words: str, probe: Probe, trained: TrainedAgent) -> tuple[EpisodeRecord, tuple[int, ...]]:
    """The record and the steps that RECORD:STEP, or STEP alone, names."""
    name, colon, steps = words.rpartition(":")
    if not colon:
        return probe.record, _steps(steps, probe.record, probe.cues())
    if name.startswith("seed") and name[4:].isdigit():
        record = trained.record(seed=int(name[4:]), pictures=False)
    else:
        record = EpisodeRecord.load(Path(name))
    cues = tuple(np.flatnonzero(record.cue_T).tolist())
    return record, _steps(steps, record, cues)


def _steps(words: str, record: EpisodeRecord, cues: tuple[int, ...]) -> tuple[int, ...]:
    """`3`, `0,1` or `cue` as steps."""
    if words == "cue":
        if not cues:
            raise ValueError("no cue is retained there; name a step")
        return cues
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError:
        raise ValueError(f"steps must be numbers such as 3 or 0,1, or the word cue, got {words!r}") from None


def _effect_json(effect: Effect) -> dict[str, Any]:
    return asdict(effect) | {"births": list(effect.births), "value_change": effect.value_change}


def _effect_rows(record: EpisodeRecord, effect: Effect) -> dict[str, object]:
    rows: dict[str, object] = {
        "episode": title(record),
        "changed": f"memory of step {', '.join(map(str, effect.births))}, before step {effect.edited_at}",
        "decision": f"of step {effect.decided_at} changes by {_small(effect.change)}"
        + (f" and turns to {favorite_action(record, effect.choice_after)}" if effect.turned else ""),
    }
    for index, (before, after) in enumerate(zip(effect.choice_before, effect.choice_after, strict=True)):
        names = len(effect.choice_before)
        name = choice_name(record, index % max(1, names))
        rows[f"  {name}"] = f"{before:.4f} to {after:.4f}"
    rows["value"] = f"{effect.value_before:.4f} to {effect.value_after:.4f}"
    rows["return"] = f"{effect.return_before:g} to {effect.return_after:g}"
    return rows


def _sweep_rows(
    record: EpisodeRecord, effects: Sequence[Effect], together: Effect | None
) -> dict[str, object]:
    rows: dict[str, object] = {"episode": title(record)}
    for rank, effect in enumerate(effects[:SHOWN], start=1):
        cue = " (cue)" if effect.is_cue else ""
        back = "" if effect.return_after is None else f", return {effect.return_after:g}"
        rows[f"{rank}. step {effect.births[0]}{cue}"] = f"decision changes by {_small(effect.change)}{back}"
    if together is not None:
        back = "" if together.return_after is None else f", return {together.return_after:g}"
        rows["all cues at once"] = f"decision changes by {_small(together.change)}{back}"
    return rows


def _survey_rows(found: dict[str, Any]) -> dict[str, object]:
    low, high = found["cue_first_ci95"]
    rows: dict[str, object] = {
        "episodes": found["episodes"],
        "cue ranked first": f"{found['cue_first']:.1%} (95% interval {low:.1%} to {high:.1%})",
    }
    if found["turned"] is not None:
        low, high = found["turned_ci95"]
        rows["another's cue turns it"] = (
            f"{found['turned']:.1%} of {found['exchanged']} (95% interval {low:.1%} to {high:.1%})"
        )
    return rows


def _write(command: ProbeCommand, result: dict[str, Any]) -> None:
    write_json_atomically(command.json or command.out.with_suffix(".json"), result)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
