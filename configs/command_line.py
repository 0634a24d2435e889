"""The parser of options: command line, YAML files and plain dicts become dataclasses.

An **option** is a field, named by its path in the tree (`memory.max_span`). Of several values of an option
the last one wins. A mistake raises a ValueError that names the option, the file it was read from and what is
allowed.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import math
import os
import re
import reprlib
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro
import yaml
from tyro.constructors import PrimitiveConstructorSpec

T = TypeVar("T")

Scalar = bool | int | float | str
"""Value in a mapping option such as `env_args`."""

EXIT_USAGE = 2
"""Exit code after a mistake in the command line or in a YAML file (as in argparse)."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C with nothing to save (128 + SIGINT, as in shells)."""
EXIT_BROKEN_PIPE = 141
"""Exit code when the reader of the output has closed it (128 + SIGPIPE)."""
LARGEST_SEED = 2**32 - 1
"""NumPy accepts no larger seed."""


def _no_parser(argv: list[str]) -> dict[str, Scalar]:
    raise NotImplementedError(f"tyro only shows options, it does not parse {argv}")


REPEATABLE: PrimitiveConstructorSpec[dict[str, Scalar]] = PrimitiveConstructorSpec(
    nargs=1,
    metavar="KEY=VALUE",
    instance_from_str=_no_parser,
    is_instance=lambda value: isinstance(value, Mapping),
    str_from_instance=lambda mapping: [
        " ".join(f"{key}={value}" for key, value in mapping.items()) or "none"
    ],
)
"""Shows a repeatable option that fills a mapping in --help."""


class _ShortRepr(reprlib.Repr):
    """Shortened values for messages: a few lines of YAML with nested aliases can expand to gigabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print the longest integers."""
        return repr(x) if abs(x) < 10**100 else "an integer of more than 100 digits"


_SHORT = _ShortRepr()

_TRUTH = {"true": True, "false": False}
_NOTHING = ("none", "null")


class OptionValue(NamedTuple):
    """A value given for an option."""

    option: str
    """path in the tree, with underscores: `memory.max_span`; for a mapping also its key: `env_args.length`"""
    value: object
    source: str | None = None
    """the file it was read from; None: the command line"""


def parse(schema: type[T], argv: Sequence[str] | None = None) -> T:
    """Build a dataclass from the command line; a mistake ends the program with exit code 2.

    Args:
        schema: dataclass whose fields are the options.
        argv: words after the program's name; None: those of this process.

    Returns:
        The dataclass, checked.
    """
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        show_help(schema)
    return exit_on_error(lambda: build(schema, values_from_argv(argv, options_of(schema))))


def parse_known(schema: type[T], argv: Sequence[str] | None = None) -> tuple[T, list[str]]:
    """Like `parse`; also returns the words of unknown options, each with its values."""
    argv = sys.argv[1:] if argv is None else argv
    if asks_for_help(argv):
        show_help(schema)
    options = options_of(schema)
    own: list[str] = []
    others: list[str] = []
    current = own
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            current = own if name in options or f"{name}s" in options else others
        current.append(word)
    return parse(schema, own), others


def exit_on_error(action: Callable[[], T]) -> T:
    """Run `action`; a ValueError becomes one message on stderr and exit code 2, without a traceback."""
    try:
        return action()
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n(--help explains every option)\n")
        raise SystemExit(EXIT_USAGE) from None


def run(main: Callable[[], int]) -> int:
    """Run a command and return its exit code; Ctrl-C before the command handles it causes no traceback."""
    try:
        return main()
    except SystemExit as leaving:
        if not isinstance(leaving.code, int):  # a message for the interpreter to show
            raise
        return leaving.code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # as in `... --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes at its exit
        return EXIT_BROKEN_PIPE


def check_at_least_1(command: object, *names: str) -> None:
    """Raise ValueError unless these options of a command are positive."""
    for name in names:
        if getattr(command, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(command, name)}")


def check_seed(seed: int, option: str = "seed") -> None:
    """Raise ValueError for a seed that NumPy does not accept."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{option} must lie in [0, {LARGEST_SEED}], got {seed}")


def check_output(path: Path | None, option: str = "json") -> None:
    """Raise ValueError if an output file cannot be written, before any work is done."""
    if path is None:
        return
    if path.is_dir():
        raise ValueError(f"{option}: {path} is a folder, not a file")
    if not path.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {path.parent}")


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether -h or --help is among the words."""
    return "-h" in argv or "--help" in argv


def show_help(schema: type[T], default: T | None = None) -> NoReturn:
    """Print every option of `schema` with its explanation and exit with code 0."""
    if default is None:
        tyro.cli(schema, args=["--help"], config=(tyro.conf.FlagConversionOff,))
    else:
        tyro.cli(schema, args=["--help"], default=default, config=(tyro.conf.FlagConversionOff,))
    raise AssertionError("tyro exits after --help")


def options_of(schema: type[Any], prefix: str = "") -> dict[str, Any]:
    """Every option of a dataclass tree and its type."""
    options: dict[str, Any] = {}
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(hints[field.name]):
            options.update(options_of(hints[field.name], f"{prefix}{field.name}."))
        else:
            options[f"{prefix}{field.name}"] = hints[field.name]
    return options


def values_from_argv(argv: Sequence[str], options: Mapping[str, Any]) -> list[OptionValue]:
    """Read `--memory.max-span 64`, `--memory.max_span=64`, `--csv`, `--sizes 16 32`, `--env-arg length=10`.

    A group that has an option called kind may stand for it: `--memory none` is `--memory.kind none`.

    Raises:
        ValueError: an unknown option, a missing value or a word that belongs to no option.
    """
    option_values: list[OptionValue] = []
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not word.startswith("--") or word == "--":
            raise ValueError(f"unexpected {word!r}: an option begins with two hyphens, such as --seed 1")
        name, equals, text = word[2:].partition("=")
        option = _resolve_name(name, options, source=None)
        option_type = options[_mapping_of(option, options) or option]
        if _is_list(option_type):
            end = position
            while end < len(argv) and not argv[end].startswith("--"):
                end += 1
            entries, position = [*([text] if equals else []), *argv[position:end]], end
            option_values.append(OptionValue(option, entries))
            continue
        if not equals:
            if position < len(argv) and not argv[position].startswith("--"):
                text = argv[position]
                position += 1
            elif option_type is bool:
                text = "true"
            else:
                raise ValueError(f"{option} needs a value: {_describe(option_type)}")
        option_values.append(_value_from_text(option, text, options))
    return option_values


def values_from_mapping(
    values: Mapping[Any, object], options: Mapping[str, Any], source: str | None = None, prefix: str = ""
) -> Iterator[OptionValue]:
    """Flatten nested mappings: `{"memory": {"ramp": 4}}` sets `memory.ramp`.

    Raises:
        ValueError: an unknown key.
    """
    for key, value in values.items():
        option = f"{prefix}{key}"
        is_group = any(known.startswith(f"{option}.") for known in options)
        if isinstance(value, Mapping) and (is_group or _is_mapping(options.get(option))):
            yield from values_from_mapping(value, options, source, f"{option}.")
        elif value is None and (is_group or _is_mapping(options.get(option))):
            continue  # a YAML key with nothing under it
        else:
            yield OptionValue(_resolve_name(option, options, source), value, source)


def mapping_from_yaml(path: Path) -> Mapping[Any, object]:
    """Read a YAML file, for `values_from_mapping`.

    Raises:
        ValueError: no such file, not YAML, a key given twice.
    """
    source = display_path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"the configuration file {source} cannot be read: {reason}") from None
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: !!int x, month 13
        raise ValueError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{source} must hold `option: value` lines, got {type(values).__name__}")
    return values


def build(schema: type[T], option_values: Iterable[OptionValue]) -> T:
    """Make the dataclass; the last value of an option wins.

    Raises:
        ValueError: a value of the wrong type, or one that the dataclasses refuse.
    """
    option_values = list(option_values)
    options = options_of(schema)
    values: dict[str, object] = {}
    for given in option_values:
        mapping = _mapping_of(given.option, options)
        try:
            if mapping is None:
                values[given.option] = _convert(given.value, options[given.option])
            else:
                entries = cast(dict[str, object], values.setdefault(mapping, {}))
                entries[given.option.removeprefix(f"{mapping}.")] = _convert_scalar(given.value)
        except ValueError as error:
            raise ValueError(f"{given.option} must be {error}{_origin(given)}") from None
    try:
        return _construct(schema, values)
    except ValueError as error:
        named = {
            s.option: s
            for s in option_values
            if re.search(rf"(?<![\w.]){re.escape(s.option)}(?![\w.]*\w)", str(error))
        }
        origins = [f"{option} is set in {s.source}" for option, s in named.items() if s.source is not None]
        raise ValueError(f"{error} ({'; '.join(origins)})" if origins else str(error)) from None


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain YAML types only, and no key twice in one mapping: the first value would be lost silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = (
                self.construct_object(key_node, deep=True) if isinstance(key_node, yaml.ScalarNode) else None
            )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct(schema: type[T], values: Mapping[str, object], prefix: str = "") -> T:
    arguments: dict[str, object] = {}
    for name, hint in get_type_hints(schema).items():
        option = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint):
            arguments[name] = _construct(cast(type[Any], hint), values, f"{option}.")
        elif option in values:
            arguments[name] = values[option]
    return schema(**arguments)


def _value_from_text(option: str, text: str, options: Mapping[str, Any]) -> OptionValue:
    """Parse a word of the command line; in a mapping its form decides whether it is a number."""
    mapping = _mapping_of(option, options)
    if mapping == option:
        key, equals, text = text.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} must be given as KEY=VALUE, such as length=100, got {key!r}")
        option = f"{mapping}.{key.replace('-', '_')}"
    if mapping is not None:
        return OptionValue(option, _scalar_from_text(text))
    optional = type(None) in get_args(options[option])
    return OptionValue(option, None if optional and text.lower() in _NOTHING else text)


def _scalar_from_text(text: str) -> object:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, bool | int | float):
        return value
    if not isinstance(value, str):
        return text
    try:
        return float(value) if value == text else value  # YAML 1.1 takes 1e-5 for a word; "1e-5" stays one
    except ValueError:
        return value


def _resolve_name(name: str, options: Mapping[str, Any], source: str | None) -> str:
    """Resolve a name with hyphens or underscores to an option.

    Raises:
        ValueError: there is no such option; the message names the nearest.
    """
    option = name.replace("-", "_")
    plural = f"{option}s"  # --env-arg adds one entry to env_args
    if option in options:
        return option
    if _is_mapping(options.get(plural)):
        return plural
    if _mapping_of(option, options) is not None:
        return option
    members = [known for known in options if known.startswith(f"{option}.")]
    origin = f" in {source}" if source is not None else ""
    if source is None and f"{option}.kind" in options:
        return f"{option}.kind"
    if members:
        raise ValueError(f"{option}{origin} is a group of options, not an option: {', '.join(members)}")
    nearest = _nearest(option, options)
    hint = f"; did you mean {nearest}?" if nearest else ""
    raise ValueError(f"{name}{origin} is not an option{hint}")


def _nearest(option: str, options: Mapping[str, Any]) -> str | None:
    """The known options most like this one; people remember the last word of a path better than the path."""
    leaf = option.split(".")[-1]
    leaves = [known.split(".")[-1] for known in options]
    whole: list[str] = difflib.get_close_matches(option, list(options), n=1, cutoff=0.6)
    last: list[str] = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.6)
    if whole and ("." in option or not last):
        return whole[0]
    return " or ".join(known for known in options if last and known.split(".")[-1] == last[0]) or None


def _is_mapping(option_type: Any) -> bool:
    return get_origin(option_type) in (dict, collections.abc.Mapping)


def _is_list(option_type: Any) -> bool:
    return get_origin(option_type) is tuple


def _mapping_of(option: str, options: Mapping[str, Any]) -> str | None:
    """`env_args` for `env_args` itself and for `env_args.length`; None for any other option."""
    for known, option_type in options.items():
        if _is_mapping(option_type) and (option == known or option.startswith(f"{known}.")):
            return known
    return None


def _convert(value: object, option_type: Any) -> object:
    """Convert a word or a YAML value to `option_type`.

    Raises:
        ValueError: the value does not fit; the message says what is accepted.
    """
    origin, members = get_origin(option_type), get_args(option_type)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in members:
            return None
        option_type = next(member for member in members if member is not type(None))
        origin, members = get_origin(option_type), get_args(option_type)
    wrong = ValueError(f"{_describe(option_type)}, got {_SHORT.repr(value)}")
    if origin is tuple:
        entries = value if isinstance(value, list | tuple) else [value]
        if not entries:
            raise ValueError(f"{_describe(option_type)}, got none")
        return tuple(_convert(entry, members[0]) for entry in entries)
    if not isinstance(value, Scalar | Path):
        raise wrong
    text = _SHORT.repr(value) if isinstance(value, int) else str(value)
    if origin is Literal:
        if text not in members:
            raise wrong
        return text
    if option_type is bool:
        if text.lower() not in _TRUTH:
            raise wrong
        return _TRUTH[text.lower()]
    if option_type is str or option_type is Path:
        return option_type(text)
    try:
        number = int(text) if option_type is int else float(text)
    except ValueError:
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    return number


def _convert_scalar(value: object) -> Scalar:
    if not isinstance(value, Scalar) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"one number, word, true or false, got {_SHORT.repr(value)}")
    return value


def _describe(option_type: Any) -> str:
    """The values that an option of this type accepts, in words."""
    members = [member for member in get_args(option_type) if member is not type(None)]
    if get_origin(option_type) in (Union, types.UnionType):
        return f"{_describe(members[0])}, or none"
    if get_origin(option_type) is Literal:
        return "one of " + ", ".join(map(str, members))
    if _is_mapping(option_type):
        return "KEY=VALUE"
    if _is_list(option_type):
        return f"one or more, each {_describe(members[0])}"
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a finite number",
        str: "a word",
        Path: "a path",
    }
    return words[option_type]


def _origin(given: OptionValue) -> str:
    return "" if given.source is None else f" (in {given.source})"


def display_path(path: Path) -> str:
    """A path for messages: relative to the working directory if it lies there."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
