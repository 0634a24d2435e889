"""Command-line options that all sweeps share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from memory_suite.configs import agent_schema as schema
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig
from memory_suite.configs.command_line import Scalar
from memory_suite.envs.make import make_vec_env
from memory_suite.runners.run.folder import RUNS
from memory_suite.runners.sweeps.folder import Member, SweepError


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """Options of every sweep. Other options are passed to train_agent.py and apply to all members."""

    env: str | None = None
    """short name of a memory environment, or any Gymnasium id; none: what --config says, or corridor-long"""
    seeds: int = 5
    """number of runs for each setting: seeds 0, 1, ..."""
    run: Path | None = None
    """folder of the sweep. Repeating a command continues it; another command on the same folder adds members.
    none: a folder under runs/ named after the environment"""
    backend: Literal["local", "ray", "slurm", "wandb"] = "local"
    """where members run: local processes, Ray, Slurm, or agents of a W&B sweep"""
    workers: int | None = None
    """number of members that run at a time; none: one per core (local), or all unfinished members"""
    retries: int = 3
    """give up on a member after this many consecutive failures without progress. Its checkpoint is kept;
    rerun to retry"""
    address: str | None = None
    """address of the Ray cluster ("auto": the one this machine belongs to); none: start one here"""
    slurm_executor: Literal["slurm", "local"] = "slurm"
    """executor of submitit; "local" runs jobs on this machine, for tests"""
    slurm_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="slurm-arg")] = (
        field(default_factory=dict)
    )
    """parameter of submitit, such as slurm_partition=long or timeout_min=600; repeatable"""
    redraw: bool = False
    """do not train; make tables and figures from finished members, or figures from table.csv alone"""

    def __post_init__(self) -> None:
        """Validate the options."""
        for name in ("seeds", "workers", "retries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.address is not None and self.backend != "ray":
            raise ValueError(f"address belongs to backend ray, but backend is {self.backend}")
        if self.slurm_args and self.backend != "slurm":
            raise ValueError(f"slurm_args belong to backend slurm, but backend is {self.backend}")
        if self.run is not None and self.run.exists() and not self.run.is_dir():
            raise ValueError(f"run: {self.run} is a file, not a folder")

    def folder(self, question: str, env: str) -> Path:
        """Path of the sweep's folder."""
        name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in env)
        return (self.run or RUNS / f"{question}-{name}").absolute()


def given_options(training_words: Sequence[str], reserved: Iterable[str]) -> set[str]:
    """Names of the training options on the command line.

    Args:
        training_words: options for all members.
        reserved: options that the sweep sets itself.

    Raises:
        ValueError: an option is unknown or reserved.
    """
    options = {**command_line.options_of(TrainConfig), "config": Path}
    given = {setting.option for setting in command_line.values_from_argv(training_words, options)}
    for option in sorted(given & {*reserved, "seed", "run", "resume"}):
        raise SweepError(f"{option} is set by the sweep, member by member")
    return given


def member_config(
    options: SweepOptions, training_words: Sequence[str], settings: Mapping[str, Scalar]
) -> TrainConfig:
    """The configuration of a member: preset, then options for all members, then its own settings.

    An invalid value ends the program with exit code 2.
    """
    env = [] if options.env is None else ["--env", options.env]
    words = [word for option, value in settings.items() for word in (f"--{option}", str(value))]
    return schema.load([*env, "--track", "disabled", *training_words, *words])


def check_environments(members: Iterable[Member]) -> None:
    """Create every environment once, so that mistakes show before training starts.

    Raises:
        ValueError: names what is wrong with an environment or its arguments.
    """
    seen: set[str] = set()
    for member in members:
        config = member.config
        asked = [config.evaluation_env_args | setting.env_args for setting in member.test_settings]
        for arguments in (dict(config.env_args), config.evaluation_env_args, *asked):
            key = repr((config.env, sorted(arguments.items())))
            if key not in seen:
                seen.add(key)
                make_vec_env(config.env, 1, 0, arguments).close()
