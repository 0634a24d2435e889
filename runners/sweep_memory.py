"""Success against memory held: train every memory at every size, and draw one curve per memory.

    python runners/sweep_memory.py --env corridor-long --memory expire-span transformer-xl --sizes 16 32 64

Every option of train_agent.py that the sweep does not set may be given too, and holds for all runs.
Exit codes: 0 done; 2 a mistake in the options; 75 interrupted and saved (the same command goes on);
1 some run failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from memory_suite.agents.model.settings import MemoryKind
from memory_suite.configs import command_line
from memory_suite.configs.command_line import Scalar, exit_on_error
from memory_suite.runners.sweeps.command import run_sweep
from memory_suite.runners.sweeps.figures import draw_memory_curves
from memory_suite.runners.sweeps.folder import Member, Sweep
from memory_suite.runners.sweeps.options import SweepOptions, given_options, member_config

RESERVED = ("memory.kind", "memory.size", "memory.compressed_size", "memory.max_span")
INITIAL_SPAN_FRACTION = 0.5
"""spans start at half their maximum, since a preset's value fits only its own maximum"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepMemoryCommand(SweepOptions):
    """Success against memory held. Options of train_agent.py may be given too, for all runs."""

    memory: tuple[MemoryKind, ...] = ("expire-span", "transformer-xl", "compressive", "adaptive-span")
    """memories; "none", the memory-free baseline, has no size"""
    sizes: tuple[int, ...] = (16, 32, 64, 128, 256)
    """transformer-xl: memory.size. compressive: memory.size and memory.compressed_size, half of it each.
    expire-span and adaptive-span: memory.max_span, the longest span that can be learned"""

    def __post_init__(self) -> None:
        """Validate the options."""
        super(
            SweepMemoryCommand, self
        ).__post_init__()  # slots=True makes another class, which super() misses
        for size in self.sizes:
            if size < 1 or (size < 2 and "compressive" in self.memory):
                least = 2 if "compressive" in self.memory else 1
                raise ValueError(f"sizes must be at least {least}, got {size}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, write tables and figures."""
    command, training_words = command_line.parse_known(SweepMemoryCommand, argv)
    members = exit_on_error(lambda: make_members(command, training_words))
    sweep = Sweep(command.folder("memory", members[0].config.env))
    online = members[0].config.track == "online"
    return run_sweep(sweep, members, command, draw_memory_curves, online=online)


def make_members(command: SweepMemoryCommand, training_words: Sequence[str]) -> list[Member]:
    """Every memory at every size with seed 0, then with seed 1, and so on, so all curves advance together.

    Raises:
        ValueError: a training option is unknown or set by the sweep.
    """
    given = given_options(training_words, RESERVED)
    members: list[Member] = []
    for seed in range(command.seeds):
        for kind in dict.fromkeys(command.memory):
            preset = member_config(command, training_words, {"memory.kind": kind})
            for size in (None,) if kind == "none" else sorted(set(command.sizes)):
                settings = size_settings(kind, size, given, preset.memory.ramp)
                name = kind if size is None else f"{kind}-{size}"
                members.append(
                    Member(
                        name=f"{name}-seed{seed}",
                        columns={"memory": kind, "size": size, "seed": seed},
                        config=member_config(
                            command, training_words, {"memory.kind": kind, "seed": seed, **settings}
                        ),
                    )
                )
    return members


def size_settings(kind: MemoryKind, size: int | None, given: Collection[str], ramp: int) -> dict[str, Scalar]:
    """Options that set the size of a memory.

    Args:
        kind: kind of memory.
        size: size in steps; None only for "none".
        given: options that the user has set; they are kept.
        ramp: ramp of the preset.
    """
    if size is None:
        return {}
    match kind:
        case "transformer-xl":
            return {"memory.size": size}
        case "compressive":
            return {"memory.size": size - size // 2, "memory.compressed_size": size // 2}
        case _:
            chosen = {
                "memory.initial_span_fraction": INITIAL_SPAN_FRACTION,
                "memory.ramp": min(ramp, size),  # a ramp cannot be longer than the longest span
            }
            free = {option: value for option, value in chosen.items() if option not in given}
            return {"memory.max_span": size, **free}


if __name__ == "__main__":
    sys.exit(main())
