"""What the commands of sweeps share on their command lines."""

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
    """Options of every sweep; every other option is one of train_agent.py's, the same for all members."""

    env: str | None = None
    """short name of a memory environment, or any Gymnasium id; none: what --config says, or corridor-long"""
    seeds: int = 5
    """runs of each kind: seeds 0, 1, ..."""
    run: Path | None = None
    """folder of the sweep; the same command on the same folder goes on where it stopped, another one adds
    members. none: a folder under runs/ named after the environment"""
    backend: Literal["local", "ray", "slurm", "wandb"] = "local"
    """where members run: in processes of this machine, on Ray, on Slurm, in agents of a W&B sweep"""
    workers: int | None = None
    """members at a time; none: as many as there are cores (local), or all that are left"""
    retries: int = 3
    """a member whose process dies so many times in a row without getting further is given up; what it has
    reached stays, and the next call tries it again"""
    address: str | None = None
    """of the Ray cluster to use ("auto": the one of this machine); none: a fresh one on this machine"""
    slurm_executor: Literal["slurm", "local"] = "slurm"
    """submitit's executor; "local" tries everything without a cluster"""
    slurm_args: Annotated[Mapping[str, Scalar], command_line.REPEATABLE, tyro.conf.arg(name="slurm-arg")] = (
        field(default_factory=dict)
    )
    """parameter of submitit, such as slurm_partition=long or timeout_min=600; repeatable"""
    redraw: bool = False
    """train nothing: make the tables from what is finished, or take table.csv alone, and draw"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("seeds", "workers", "retries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.address is not None and self.backend != "ray":
            raise ValueError(f"address is of the Ray cluster, but backend is {self.backend}")
        if self.slurm_args and self.backend != "slurm":
            raise ValueError(f"slurm_args are submitit's, but backend is {self.backend}")
        if self.run is not None and self.run.exists() and not self.run.is_dir():
            raise ValueError(f"run: {self.run} is a file, not a folder")

    def folder(self, question: str, env: str) -> Path:
        """Where the sweep is or will be."""
        name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in env)
        return (self.run or RUNS / f"{question}-{name}").absolute()


def given_options(training_words: Sequence[str], reserved: Iterable[str]) -> set[str]:
    """The options among words meant for training.

    Args:
        training_words: given for all members.
        reserved: options that the sweep sets, and which can therefore not be given.

    Raises:
        ValueError: an option is unknown or reserved.
    """
    options = {**command_line.options_of(TrainConfig), "config": Path}
    given = {setting.option for setting in command_line.settings_from_words(training_words, options)}
    for option in sorted(given & {*reserved, "seed", "run", "resume"}):
        raise SweepError(f"{option} is set by the sweep, member by member")
    return given


def member_config(
    options: SweepOptions, training_words: Sequence[str], settings: Mapping[str, Scalar]
) -> TrainConfig:
    """The configuration of a member: preset, then what the user gave for all, then what sets it apart.

    A value that is refused ends the program with exit code 2.
    """
    env = [] if options.env is None else ["--env", options.env]
    words = [word for option, value in settings.items() for word in (f"--{option}", str(value))]
    return schema.load([*env, "--track", "disabled", *training_words, *words])


def check_environments(members: Iterable[Member]) -> None:
    """Make every environment once, so that a mistake shows before anything is trained.

    Raises:
        ValueError: names what is wrong with an environment or its arguments.
    """
    seen: set[str] = set()
    for member in members:
        config = member.config
        asked = [config.evaluation_env_args | evaluation.env_args for evaluation in member.evaluations]
        for arguments in (dict(config.env_args), config.evaluation_env_args, *asked):
            key = repr((config.env, sorted(arguments.items())))
            if key not in seen:
                seen.add(key)
                make_vec_env(config.env, 1, 0, arguments).close()
