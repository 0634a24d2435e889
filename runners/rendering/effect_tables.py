"""Effects of interventions on memories as rows of a printed table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_suite.agents.episodes.probe import ROUNDING, Effect
from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.rendering.labels import choice_name, episode_title, favorite_action

SHOWN_EFFECTS = 10
"""memories in the table and the picture of a sweep"""


def effect_rows(record: EpisodeRecord, effect: Effect) -> dict[str, object]:
    """The table of a single intervention."""
    rows: dict[str, object] = {
        "episode": episode_title(record),
        "changed": f"memory of step {', '.join(map(str, effect.births))}, before step {effect.edited_at}",
        "decision": f"of step {effect.decided_at} changes by {format_change(effect.change)}"
        + (f" and turns to {favorite_action(record, effect.choice_after)}" if effect.turned else ""),
    }
    for index, (before, after) in enumerate(zip(effect.choice_before, effect.choice_after, strict=True)):
        rows[f"  {choice_name(record, index)}"] = f"{before:.4f} to {after:.4f}"
    rows["value"] = f"{effect.value_before:.4f} to {effect.value_after:.4f}"
    rows["return"] = f"{effect.return_before:g} to {effect.return_after:g}"
    return rows


def sweep_rows(
    record: EpisodeRecord, effects: Sequence[Effect], together: Effect | None
) -> dict[str, object]:
    """The table of a sweep: the largest effects, and that of all cues at once."""
    rows: dict[str, object] = {"episode": episode_title(record)}
    for rank, effect in enumerate(effects[:SHOWN_EFFECTS], start=1):
        cue = " (cue)" if effect.is_cue else ""
        rows[f"{rank}. step {effect.births[0]}{cue}"] = _change_and_return(effect)
    if together is not None:
        rows["all cues at once"] = _change_and_return(together)
    return rows


def survey_rows(found: dict[str, Any]) -> dict[str, object]:
    """The table of a survey over many episodes."""
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


def format_change(number: float, *, signed: bool = False) -> str:
    """Format a change with three decimals, or one digit and an exponent if it is tiny; 0 within rounding."""
    if abs(number) <= ROUNDING:
        return "0"
    sign = "+" if signed else ""
    return f"{number:{sign}.3f}" if abs(number) >= 0.001 else f"{number:{sign}.0e}"


def _change_and_return(effect: Effect) -> str:
    text = f"decision changes by {format_change(effect.change)}"
    return text if effect.return_after is None else f"{text}, return {effect.return_after:g}"
