"""Options of every training run; reading and writing of configurations."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
import yaml

from memory_suite.agents.ranges import check
from memory_suite.configs import command_line
from memory_suite.configs.command_line import OptionValue, Scalar

COMMAND_OF_PRESET = {"env": "agent", "task": "sequence"}
"""the option that picks a preset, and the part of the commands' names that stands for such runs"""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Where a run computes, what it writes, and how it is resumed."""

    PRESETS: ClassVar[Path]
    """folder of the presets"""
    PRESET_OPTION: ClassVar[str]
    """the option that picks one of them by name"""
    METHOD_PRESETS: ClassVar[Path | None] = None
    """folder of the presets that the option `method` picks; None: there is no such option"""
    RESUME_MAY_CHANGE: ClassVar[tuple[str, ...]] = (
        "threads",
        "device",
        "run",
        "resume",
        "track",
        "tensorboard",
        "csv",
        "checkpoint_every",
        "keep_checkpoints",
    )
    """options and groups that can change when a run is resumed; the others belong to the checkpoint"""

    seed: int = 0
    """seed of Python, NumPy, torch and all generated data"""
    threads: int = 1
    """number of torch threads; results are reproducible bit for bit only with the same number"""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """where the model computes; "auto": a GPU if there is one"""
    run: Path | None = None
    """run folder to create; none: a new one under runs/"""
    resume: Path | None = None
    """run folder to continue, with its configuration and its last checkpoint"""
    track: Literal["offline", "online", "disabled"] = "offline"
    """Weights & Biases; "online" needs an account and falls back to "offline" """
    tensorboard: bool = False
    """also write TensorBoard files into the run folder"""
    csv: bool = False
    """also write metrics.csv into the run folder"""
    checkpoint_every: int = 20
    """number of updates between two checkpoints"""
    keep_checkpoints: int = 3
    """number of latest checkpoints to keep, besides the best one"""

    def __post_init__(self) -> None:
        """Validate the options."""
        command_line.check_seed(self.seed)
        check("threads", self.threads, "[1, inf)")
        check("checkpoint_every", self.checkpoint_every, "[1, inf)")
        check("keep_checkpoints", self.keep_checkpoints, "[1, inf)")
        if self.run is not None and self.resume is not None and self.run != self.resume:
            raise ValueError(
                f"run ({self.run}) and resume ({self.resume}) exclude each other: "
                "a resumed run continues in its own folder"
            )

    @property
    def label(self) -> str:
        """Name of a new run folder, before the time."""
        raise NotImplementedError


Config = TypeVar("Config", bound=RunConfig)


def load(schema: type[Config], argv: Sequence[str] | None = None, presets: Path | None = None) -> Config:
    """Read the command line and the YAML file it asks for; a mistake ends the program with exit code 2.

    The file is that of --config, else the configuration of the run that --resume continues, else the
    preset that the command line names, if there is one. The preset of a method lies below the command line
    and above the file, or below the file if this is that of --config and chooses the same method. A resumed
    run has none.

    Args:
        schema: what to read.
        argv: words after the program's name; None: those of this process.
        presets: folder of the presets; None: `schema.PRESETS`.

    Returns:
        The configuration, checked.
    """
    argv = sys.argv[1:] if argv is None else argv
    folder = schema.PRESETS if presets is None else presets
    if command_line.asks_for_help(argv):
        _show_help(schema, [word for word in argv if word not in ("-h", "--help")], folder)
    return command_line.exit_on_error(lambda: _load(schema, argv, folder))


def from_dict(schema: type[Config], values: Mapping[str, Any]) -> Config:
    """Make a configuration from plain types (as `to_dict` does, or part of it).

    Raises:
        ValueError: an unknown key, a wrong type or a value that is refused.
    """
    option_values = command_line.values_from_mapping(values, command_line.options_of(schema))
    return command_line.build(schema, option_values)


def from_yaml(schema: type[Config], path: Path) -> Config:
    """Read a configuration file as it stands, without a command line.

    Raises:
        ValueError: it cannot be read, it is of a run of another kind, or a value in it is refused.
    """
    return command_line.build(schema, _values_of_file(schema, path, "evaluate"))


def to_dict(config: Any) -> dict[str, Any]:
    """Any configuration dataclass as plain types: dicts, strings, numbers, booleans and None."""
    result: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        elif isinstance(value, Path):
            value = str(value)
        result[entry.name] = value
    return result


def to_yaml(config: RunConfig) -> str:
    """The configuration as a file with which `--config FILE` repeats the experiment.

    The run folder is left out: it says where this run is, not what it does.
    """
    values = to_dict(config)
    del values["run"], values["resume"]
    return str(yaml.safe_dump(values, sort_keys=False))


def _load(schema: type[Config], argv: Sequence[str], presets: Path) -> Config:
    options = command_line.options_of(schema)
    given = command_line.values_from_argv(argv, {**options, "config": Path})
    last = {value.option: value.value for value in given}
    file = _file_to_read(schema, last, presets)
    from_file = [] if file is None else _values_of_file(schema, file, "train")
    below = from_file
    if last.get("resume") is None:
        below = _with_method(schema, from_file, last.get("method"), is_preset=last.get("config") is None)
    config = command_line.build(schema, [*below, *(value for value in given if value.option != "config")])
    if config.resume is not None:
        _check_resumed(command_line.build(schema, from_file), config)
    return config


def _values_of_file(schema: type[RunConfig], path: Path, purpose: str) -> list[OptionValue]:
    """Values in a file; ValueError if it belongs to other commands, whose name begins with `purpose`."""
    values = command_line.mapping_from_yaml(path)
    for option, what in COMMAND_OF_PRESET.items():
        chosen = values.get(option)
        if isinstance(chosen, str) and option != schema.PRESET_OPTION and schema.PRESET_OPTION not in values:
            is_run = path.name == "config.yaml"
            raise ValueError(
                f"{command_line.display_path(path.parent if is_run else path)} is "
                f"{'a run' if is_run else 'a configuration'} of train_{what}.py ({option} {chosen}); "
                f"use {purpose}_{what}.py"
            )
    options = command_line.options_of(schema)
    return list(command_line.values_from_mapping(values, options, command_line.display_path(path)))


def _with_method(
    schema: type[RunConfig], from_file: list[OptionValue], given: object, *, is_preset: bool
) -> list[OptionValue]:
    """Values below the command line: those of the file and of the preset of the chosen method.

    Args:
        schema: what is read.
        from_file: values of the file.
        given: method on the command line; None: the file's.
        is_preset: whether the file is a preset, or there is none.
    """
    of_file = next((value.value for value in reversed(from_file) if value.option == "method"), None)
    method = of_file if given is None else given
    path = None if schema.METHOD_PRESETS is None else schema.METHOD_PRESETS / f"{method}.yaml"
    if path is None or not path.is_file():
        return from_file
    from_method = _values_of_file(schema, path, "train")
    return [*from_file, *from_method] if is_preset or method != of_file else [*from_method, *from_file]


def _check_resumed(before: RunConfig, after: RunConfig) -> None:
    """Raise ValueError if an option that belongs to the checkpoint has changed."""
    old, new = checkpoint_options(before), checkpoint_options(after)
    for option in sorted(old.keys() | new.keys()):
        was, is_now = old.get(option), new.get(option)
        if was != is_now:
            allowed = ", ".join(name.removesuffix(".") for name in after.RESUME_MAY_CHANGE)
            raise ValueError(
                f"{option} was {was} when the run began and cannot become {is_now} when it is resumed; "
                f"what can change: {allowed}"
            )


def checkpoint_options(config: RunConfig) -> dict[str, Scalar | None]:
    """Options that cannot change when a run is resumed, by their path."""
    return {
        option: value
        for option, value in _flat(to_dict(config))
        if not option.startswith(config.RESUME_MAY_CHANGE)
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as pairs of an option's path and its value."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _file_to_read(schema: type[Config], given: Mapping[str, object], presets: Path) -> Path | None:
    if given.get("config") is not None and given.get("resume") is not None:
        raise ValueError("config and resume exclude each other: a resumed run has its own configuration")
    if given.get("config") is not None:
        return Path(str(given["config"]))
    if given.get("resume") is not None:
        file = Path(str(given["resume"])) / "config.yaml"
        if not file.is_file():
            reason = f"it has no {file.name}" if file.parent.is_dir() else "there is no such folder"
            raise ValueError(f"resume: {file.parent} is not a run folder, {reason}")
        return file
    name = given.get(schema.PRESET_OPTION, getattr(schema(), schema.PRESET_OPTION))
    return next((path for path in presets.glob("*.yaml") if path.stem == name), None)


def _show_help(schema: type[Config], argv: Sequence[str], presets: Path) -> None:
    """Explain every option, with the defaults of the chosen preset."""
    try:
        default = _load(schema, argv, presets)
    except ValueError:
        default = schema()
    explained = Annotated[
        Path | None,
        tyro.conf.arg(help=f"YAML file to read instead of the preset that --{schema.PRESET_OPTION} picks"),
    ]
    command = dataclasses.make_dataclass(
        "Command",
        [
            ("config", explained, field(default=None)),
            ("options", Annotated[schema, tyro.conf.arg(name="")], field(default_factory=schema)),
        ],
        namespace={"__doc__": schema.__doc__},
        kw_only=True,
    )
    command_line.show_help(command, command(options=default))
