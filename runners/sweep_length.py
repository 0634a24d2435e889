"""Success of agents trained on one range of lengths and tested on another, as a heat map.

    python runners/sweep_length.py --env corridor-long --train-lengths 3-50 3-200 --test-lengths 3-50 200 1000

Every option of train_agent.py that the sweep does not set may be given too, and holds for all runs.
Exit codes: 0 done; 2 a mistake in the options; 75 interrupted and saved (the same command goes on);
1 some run failed.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memory_suite.agents.model.settings import MemoryKind
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import Scalar, exit_on_error
from memory_suite.envs.registration import resolve
from memory_suite.runners.sweeps.command import run_sweep
from memory_suite.runners.sweeps.figures import draw_length_maps
from memory_suite.runners.sweeps.folder import Member, Sweep, SweepError, TestSetting
from memory_suite.runners.sweeps.options import SweepOptions, given_options, member_config

LENGTH_ARGUMENTS = {
    "Corridor": ("min_length", "max_length"),
    "Instruction": ("min_lines", "num_lines"),
    "Portal": ("rooms",),
}
"""by prefix of the environment's id: its arguments for the shortest and the longest length, or for both"""

FIXED_LENGTH = "length"
"""argument of corridors that overrides the shortest and longest length, so a sweep must not set it"""

Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepLengthCommand(SweepOptions):
    """Success by lengths trained and tested on. Options of train_agent.py may be given too, for all runs."""

    memory: tuple[MemoryKind, ...] = ("expire-span",)
    """memories; one heat map each"""
    train_lengths: tuple[str, ...] = ("3-20", "3-50", "3-100", "3-200")
    """ranges to train on, such as 3-200; 200 alone is 200-200"""
    test_lengths: tuple[str, ...] = ("3-20", "50", "100", "200", "400", "800")
    """ranges to test on"""
    length_args: tuple[str, ...] = ()
    """environment arguments for the shortest and longest length, or one argument for a fixed length; none:
    known for the environments of this suite"""

    def __post_init__(self) -> None:
        """Validate the options."""
        super(
            SweepLengthCommand, self
        ).__post_init__()  # slots=True makes another class, which super() misses
        for name in ("train_lengths", "test_lengths"):
            for text in getattr(self, name):
                _range(name, text)
        if len(self.length_args) > 2:
            raise ValueError(f"length_args must be one or two names, got {' '.join(self.length_args)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test, write tables and figures."""
    command, training_words = command_line.parse_known(SweepLengthCommand, argv)
    members = exit_on_error(lambda: make_members(command, training_words))
    sweep = Sweep(command.folder("length", members[0].config.env))
    online = members[0].config.track == "online"
    return run_sweep(sweep, members, command, draw_length_maps, online=online)


def make_members(command: SweepLengthCommand, training_words: Sequence[str]) -> list[Member]:
    """Every memory on every range with seed 0, then with seed 1, and so on.

    Raises:
        ValueError: a training option is unknown or set by the sweep; the environment has no lengths.
    """
    given = given_options(training_words, ("memory.kind",))
    for option in (f"env_args.{FIXED_LENGTH}", f"eval_env_args.{FIXED_LENGTH}"):
        if option in given:
            raise SweepError(f"{option} is set by train_lengths and test_lengths")
    arguments = command.length_args or _length_arguments(member_config(command, training_words, {}).env)
    trained = _ranges("train_lengths", command.train_lengths)
    tested = _ranges("test_lengths", command.test_lengths)
    test_settings = tuple(
        TestSetting(
            name=f"test{shortest}-{longest}",
            columns={"test_min": shortest, "test_max": longest},
            env_args=_as_arguments("test_lengths", (shortest, longest), arguments),
        )
        for shortest, longest in tested
    )
    members: list[Member] = []
    for seed in range(command.seeds):
        for kind in dict.fromkeys(command.memory):
            for shortest, longest in trained:
                own = _as_arguments("train_lengths", (shortest, longest), arguments)
                settings: dict[str, Scalar] = {"memory.kind": kind, "seed": seed}
                settings |= {f"env_args.{name}": value for name, value in own.items()}
                members.append(
                    Member(
                        name=f"{kind}-train{shortest}-{longest}-seed{seed}",
                        columns={"memory": kind, "train_min": shortest, "train_max": longest, "seed": seed},
                        config=_without_fixed_length(
                            member_config(command, training_words, settings), keep=arguments
                        ),
                        test_settings=test_settings,
                    )
                )
    return members


def _without_fixed_length(config: TrainConfig, keep: Sequence[str]) -> TrainConfig:
    """The configuration without a preset's fixed length, unless the sweep sets it."""
    trained, tested = (
        {name: value for name, value in arguments.items() if name != FIXED_LENGTH or name in keep}
        for arguments in (config.env_args, config.eval_env_args)
    )
    return replace(config, env_args=trained, eval_env_args=tested)


def _length_arguments(env: str) -> tuple[str, ...]:
    name = resolve(env).rpartition("/")[2]
    for beginning, arguments in LENGTH_ARGUMENTS.items():
        if name.startswith(beginning):
            return arguments
    raise ValueError(f"length_args must say which arguments of {env} are its shortest and longest length")


def _ranges(option: str, texts: Sequence[str]) -> list[Range]:
    return sorted({_range(option, text) for text in texts})


def _range(option: str, text: str) -> Range:
    shortest, hyphen, longest = text.partition("-")
    if not shortest.isdecimal() or not (longest if hyphen else shortest).isdecimal():
        raise ValueError(f"{option} must be a range such as 3-200, or one length, got {text!r}")
    low, high = int(shortest), int(longest or shortest)
    if low > high:
        raise ValueError(f"{option}: {text} begins above its end")
    return low, high


def _as_arguments(option: str, lengths: Range, arguments: Sequence[str]) -> dict[str, Scalar]:
    if len(arguments) == 1 and lengths[0] != lengths[1]:
        raise ValueError(
            f"{option}: {arguments[0]} is one number, so {lengths[0]}-{lengths[1]} cannot be a range"
        )
    return dict(zip(arguments, lengths[-len(arguments) :], strict=True))


if __name__ == "__main__":
    sys.exit(main())
