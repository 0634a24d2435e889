"""The folder of a sweep: its members and their progress.

members/NAME.yaml, .json    a member's configuration; its columns in the table and its test settings
runs/NAME/                  its run folder, as `train_agent.py` makes it
evaluations/NAME/WHAT.json  results of its test settings
logs/NAME.txt               output of its processes
locks/NAME                  lock and id of the process that trains it
table.*, summary.*, options.yaml, *.png, *.pdf   results (`runners.sweeps.results`, `runners.sweeps.figures`)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memory_suite.agents.serialization.archive import write_file_atomically
from memory_suite.configs.agent_schema import TrainConfig, from_yaml
from memory_suite.configs.command_line import Scalar
from memory_suite.configs.run_config import to_dict, to_yaml
from memory_suite.runners.run.folder import RunFolder, write_json_atomically
from memory_suite.runners.run.metrics_file import STEP_KEY, Row, read_metrics

HOUSEKEEPING = (
    *("run", "resume", "track", "tensorboard", "csv", "checkpoint_every", "keep_checkpoints"),
    *("threads", "device", "vectorization"),
)
"""options that do not affect what a member learns"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSetting:
    """Environment arguments on which a trained member is tested, besides its own evaluation."""

    name: str
    columns: dict[str, Scalar]
    """values of the table's columns in the rows of this setting"""
    env_args: dict[str, Scalar]
    """environment arguments; they override those of the member's own evaluation"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One run of a sweep."""

    name: str
    """name of its run folder"""
    columns: dict[str, Scalar | None]
    """values of the varied options, as columns of the table"""
    config: TrainConfig
    test_settings: tuple[TestSetting, ...] = ()


class SweepError(ValueError):
    """A sweep folder that cannot be used as asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The files of one sweep."""

    path: Path

    def add(self, members: Iterable[Member]) -> None:
        """Add members to the folder; existing members keep their configuration.

        Raises:
            SweepError: the folder holds another sweep or environment, or a member with other options.
        """
        there = self.members()
        for member in members:
            if there and (
                member.columns.keys() != there[0].columns.keys() or member.config.env != there[0].config.env
            ):
                columns, env = ", ".join(there[0].columns), there[0].config.env
                raise SweepError(
                    f"run: {self.path} holds a sweep over {columns} in {env}; "
                    "choose another folder for another sweep"
                )
            if self._config_file(member.name).is_file():
                known = self.member(member.name)
                self._refuse_other_options(known, member)
                member = Member(
                    name=known.name,
                    columns=known.columns,
                    config=known.config,
                    test_settings=_together(known.test_settings, member.test_settings),
                )
            else:
                self._config_file(member.name).parent.mkdir(parents=True, exist_ok=True)
                write_file_atomically(self._config_file(member.name), to_yaml(member.config).encode())
            facts = {
                "columns": member.columns,
                "test_settings": [asdict(setting) for setting in member.test_settings],
            }
            write_json_atomically(self._facts_file(member.name), facts)

    def member(self, name: str) -> Member:
        """One member.

        Raises:
            SweepError: there is no such member.
        """
        try:
            facts = json.loads(self._facts_file(name).read_bytes())
            config = from_yaml(self._config_file(name))
        except (OSError, ValueError) as error:
            raise SweepError(f"{self.path} has no member {name!r} that can be read: {error}") from error
        test_settings = tuple(TestSetting(**setting) for setting in facts["test_settings"])
        return Member(name=name, columns=facts["columns"], config=config, test_settings=test_settings)

    def members(self) -> list[Member]:
        """Every member, by its columns."""
        names = [path.stem for path in (self.path / "members").glob("*.json")]
        members = [self.member(name) for name in names]
        return sorted(members, key=lambda member: [_sortable(value) for value in member.columns.values()])

    def train_words(self, name: str) -> list[str]:
        """Options of `train_agent.py` that start or resume a member."""
        if self.checkpoint_step(name) is not None:
            return ["--resume", str(self.run_path(name))]
        return ["--config", str(self._config_file(name)), "--run", str(self.run_path(name))]

    def run_path(self, name: str) -> Path:
        """A member's run folder."""
        return self.path / "runs" / name

    def evaluation_file(self, name: str, setting: TestSetting | None = None) -> Path:
        """Path of the result for a test setting; None: the member's own evaluation."""
        if setting is None:
            return RunFolder(self.run_path(name)).evaluation_file
        return self.path / "evaluations" / name / f"{setting.name}.json"

    def log_file(self, name: str) -> Path:
        """Log of a member's processes."""
        return self.path / "logs" / f"{name}.txt"

    def lock_file(self, name: str) -> Path:
        """Held by the process that trains the member."""
        return self.path / "locks" / name

    def has_trained(self, name: str) -> bool:
        """Whether the member has trained to its end and been evaluated."""
        return self.evaluation_file(name).is_file()

    def is_finished(self, member: Member) -> bool:
        """Whether nothing is left to do for a member."""
        return self.has_trained(member.name) and not self.tests_left(member)

    def tests_left(self, member: Member) -> list[TestSetting]:
        """Test settings without a result yet."""
        return [
            setting
            for setting in member.test_settings
            if not self.evaluation_file(member.name, setting).is_file()
        ]

    def checkpoint_step(self, name: str) -> int | None:
        """Steps of the member's newest checkpoint; None: it has none."""
        steps = (
            path.stem.removeprefix("step_") for path in self.run_path(name).glob("checkpoints/step_*.zip")
        )
        return max((int(step) for step in steps if step.isdecimal()), default=None)

    def progress(self, member: Member) -> tuple[int, int]:
        """Finished tests and checkpoint step of a member, to compare before and after an attempt."""
        step = self.checkpoint_step(member.name)
        done = len(member.test_settings) - len(self.tests_left(member)) + self.has_trained(member.name)
        return done, -1 if step is None else step

    def last_update(self, name: str) -> Row:
        """The last row of the member's metrics; empty: none yet."""
        path = RunFolder(self.run_path(name)).metrics_file
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return {}
        for line in reversed(lines[:-1]):
            try:
                row: Row = json.loads(line)
            except ValueError:
                continue
            return row
        return {}

    def training_seconds(self, name: str) -> float:
        """Training time in seconds over all attempts, without updates that a resume discarded."""
        total = seconds = 0.0
        iterations = 0
        for row in read_metrics(RunFolder(self.run_path(name)).metrics_file):
            if row["time/iterations"] <= iterations:  # a resumed attempt counts from 1 again
                total += seconds
            iterations, seconds = row["time/iterations"], row["time/time_elapsed"]
        return total + seconds

    def trained_steps(self, name: str) -> int:
        """Environment steps trained."""
        return int(self.last_update(name).get(STEP_KEY, 0))

    def write(self, name: str, content: bytes) -> Path:
        """Write a result file of the sweep atomically."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, content)
        return path

    def _config_file(self, name: str) -> Path:
        return self.path / "members" / f"{name}.yaml"

    def _facts_file(self, name: str) -> Path:
        return self.path / "members" / f"{name}.json"

    def _refuse_other_options(self, known: Member, wanted: Member) -> None:
        before, now = flat_options(known.config), flat_options(wanted.config)
        differing = [
            f"{option} is {before.get(option)} there and {now.get(option)} here"
            for option in sorted(before.keys() | now.keys())
            if before.get(option) != now.get(option)
        ]
        if differing or known.columns != wanted.columns:
            raise SweepError(
                f"run: {self.path} already has a member {known.name} with other options "
                f"({'; '.join(differing) or 'other columns'}); choose another folder for another sweep"
            )


def flat_options(config: TrainConfig) -> dict[str, Any]:
    """Options that affect learning, by their path, such as `memory.size`."""
    return {
        option: value
        for option, value in _flat(to_dict(config))
        if option.partition(".")[0] not in HOUSEKEEPING
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _together(known: tuple[TestSetting, ...], wanted: tuple[TestSetting, ...]) -> tuple[TestSetting, ...]:
    names = {setting.name for setting in wanted}
    return (*(setting for setting in known if setting.name not in names), *wanted)


def _sortable(value: Scalar | None) -> tuple[int, float, str]:
    """Sort key: None first, then numbers, then strings."""
    if value is None:
        return (0, 0.0, "")
    return (2, 0.0, value) if isinstance(value, str) else (1, float(value), "")


_TAIL_BYTES = 65_536
"""number of bytes at the end of metrics.jsonl that hold its last row"""
