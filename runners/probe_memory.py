"""Exact counterfactuals of an episode: change the agent's memory and compare its decisions.

    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --sweep
    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --drop cue
    python runners/probe_memory.py --run runs/NAME --episode-seed 7 --swap cue=seed8:cue
    python runners/probe_memory.py --run runs/NAME --episodes 200

`docs/probing.md` explains the interventions and their results.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from dataclasses import asdict, dataclass
from typing import Any

from memory_suite.agents.episodes.probe import Effect
from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.rendering.effect_tables import effect_rows, survey_rows, sweep_rows
from memory_suite.runners.rendering.sweep_picture import draw_sweep
from memory_suite.runners.rendering.video import write_png
from memory_suite.runners.run.folder import write_json_atomically
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.training.probing import announce_time, make_probe, parse_edit, survey
from memory_suite.runners.training.trained_agent import AgentOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeCommand(AgentOptions):
    """Change the agent's memory within an episode and compare its decisions."""

    run: Path
    """run folder of the agent"""
    episode_seed: int = 0
    """seed of the environment and of the sampled actions"""
    sweep: bool = False
    """drop each retained memory in turn and rank them (the default)"""
    drop: str | None = None
    """remove memories: the step that wrote it, several as 0,1, or the word cue for all memories of a cue"""
    swap: str | None = None
    """exchange memories, as STEP=STEP, or take the right one from another episode, as STEP=RECORD:STEP, where
    RECORD is a file of record_episode.py, or seedN for the episode of that seed"""
    inject: str | None = None
    """insert a memory of another episode, as RECORD:STEP"""
    at: int | None = None
    """change the memory before this step; none: halfway from the last cue to the decision"""
    decision: int | None = None
    """compare the decision of this step; none: the last rewarded one"""
    layer: int | None = None
    """change only this layer, from 1; none: all"""
    episodes: int | None = None
    """number of episodes, with seeds from episode-seed on; counts how often a cue is ranked first, and how
    often the cue of another episode turns the decision"""
    out: Path = Path("probe.png")
    """picture of the sweep"""
    json: Path | None = None
    """also write the result to this file; none: beside the picture"""

    def __post_init__(self) -> None:
        """Validate."""
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
    """Play an episode, change its memory, compare decisions."""
    command = command_line.parse(ProbeCommand, argv)
    return exit_on_error(lambda: run(command))


def run(command: ProbeCommand) -> int:
    """Carry out the command.

    Raises:
        ValueError: an option is invalid for the run or the episode.
    """
    trained = command.open(command.run)
    display = ProgressDisplay(0)
    if command.episodes is not None:
        found = survey(
            trained,
            range(command.episode_seed, command.episode_seed + command.episodes),
            deterministic=command.deterministic,
            at=command.at,
            decision=command.decision,
        )
        display.summary_table(survey_rows(found))
        _write(command, found)
        return 0
    probe = make_probe(trained, command.episode_seed, command.deterministic)
    if any(change is not None for change in (command.drop, command.swap, command.inject)):
        edit = parse_edit(
            probe,
            trained,
            drop=command.drop,
            swap=command.swap,
            inject=command.inject,
            at=command.at,
            layer=command.layer,
        )
        effect = probe.ask([edit], at=command.at, decision=command.decision)[0]
        display.summary_table(effect_rows(probe.record, effect))
        _write(command, _effect_json(effect))
        return 0
    effects = probe.sweep(at=command.at, decision=command.decision, watch=announce_time(display))
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
    display.summary_table(sweep_rows(probe.record, effects, together))
    display.note(f"picture: {command.out}")
    return 0


def _effect_json(effect: Effect) -> dict[str, Any]:
    return asdict(effect) | {"births": list(effect.births), "value_change": effect.value_change}


def _write(command: ProbeCommand, result: dict[str, Any]) -> None:
    write_json_atomically(command.json or command.out.with_suffix(".json"), result)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
