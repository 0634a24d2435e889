"""Configurations wrong in one place, made from the dataclasses themselves: each is refused by name."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memory_suite.configs import agent_schema as schema
from memory_suite.configs import command_line, sequence_schema


class Program(NamedTuple):
    """A command that is configured, by words and by files."""

    options: dict[str, Any]
    load: Callable[[list[str]], object]
    words: list[str]
    mappings: tuple[str, ...]
    """options that are no single value"""

    @property
    def plain(self) -> list[str]:
        """The options that are."""
        return sorted(self.options.keys() - set(self.mappings))


PROGRAMS = {
    "agent": Program(
        command_line.options_of(schema.TrainConfig),
        schema.load,
        ["--env", "corridor-short"],
        ("env_args", "eval_env_args"),
    ),
    "sequence": Program(
        command_line.options_of(sequence_schema.SequenceConfig),
        sequence_schema.load,
        ["--task", "copy"],
        ("task_args", "eval_task_args"),
    ),
}
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


class Bad(NamedTuple):
    """One wrong setting, and what the message must say."""

    program: str
    option: str
    value: object
    named: str


def kind_of(program: str, option: str) -> Any:
    """The type of an option, without the None that it may be instead."""
    kind = PROGRAMS[program].options[option]
    members = [member for member in get_args(kind) if member is not type(None)]
    return kind if get_origin(kind) is Literal or not members else members[0]


def options_that(suit: Callable[[Any], bool]) -> st.SearchStrategy[tuple[str, str]]:
    """A program and one of its options, of a type that suits."""
    every = [(name, option) for name, program in PROGRAMS.items() for option in program.plain]
    return st.sampled_from([one for one in every if suit(kind_of(*one))])


@st.composite
def near_misses(draw: st.DrawFn) -> Bad:
    """The name of an option with one letter too many, too few, wrong, or two exchanged."""
    program = draw(st.sampled_from(sorted(PROGRAMS)))
    options, mappings = PROGRAMS[program].options, PROGRAMS[program].mappings
    option = draw(st.sampled_from(PROGRAMS[program].plain))
    *groups, leaf = option.split(".")
    position = draw(st.integers(0, len(leaf) - 1))
    letter = draw(st.sampled_from(LETTERS))
    wrong = draw(
        st.sampled_from(
            [
                leaf[:position] + letter + leaf[position:],
                leaf[:position] + leaf[position + 1 :],
                leaf[:position] + letter + leaf[position + 1 :],
                leaf[:position] + leaf[position : position + 2][::-1] + leaf[position + 2 :],
            ]
        )
    )
    name = ".".join([*groups, wrong])
    known = name in options or f"{name}s" in options or name.startswith(tuple(f"{m}." for m in mappings))
    if known or not wrong or any(other.startswith(f"{name}.") for other in options):
        name = f"{option}x"
    return Bad(program, name, 1, name)


@st.composite
def wrong_types(draw: st.DrawFn) -> Bad:
    """A value that no option of this type takes."""
    program, option = draw(options_that(lambda kind: kind in (int, float, bool)))
    anything: list[object] = [[1, 2], {"a": 1}, "many", "1,5", "", "0x1g", float("nan"), float("inf"), b"1"]
    if kind_of(program, option) is bool:
        anything += [2, 0.5, "yes please"]
    if kind_of(program, option) is int:
        anything += [1.5, True, "1e3"]
    return Bad(program, option, draw(st.sampled_from(anything)), option)


@st.composite
def wrong_choices(draw: st.DrawFn) -> Bad:
    """A word that is not among the choices."""
    program, option = draw(options_that(lambda kind: get_origin(kind) is Literal))
    choices = get_args(kind_of(program, option))
    word = draw(st.text(LETTERS, min_size=1, max_size=12).filter(lambda text: text not in choices))
    return Bad(program, option, word, option)


@st.composite
def out_of_range(draw: st.DrawFn) -> Bad:
    """A number that is far too small: every number here has a least value."""
    program, option = draw(options_that(lambda kind: kind in (int, float)))
    return Bad(program, option, -draw(st.integers(1, 10**12)), option)


def refused(program: str, words: list[str]) -> tuple[str, float]:
    """What is said on the way out, and how long it took; AssertionError if it was not refused."""
    said = io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as leaving:
        PROGRAMS[program].load(words)
    assert leaving.value.code == command_line.EXIT_USAGE
    message = said.getvalue()
    assert message.count("error:") == 1
    assert "Traceback" not in message
    return message, time.monotonic() - began


def write(folder: Path, bad: Bad) -> Path:
    """A YAML file with one wrong setting."""
    *groups, leaf = bad.option.split(".")
    values: Any = {leaf: bad.value}
    for group in reversed(groups):
        values = {group: values}
    path = folder / "bad.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configurations")


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(bad=near_misses() | wrong_types() | wrong_choices() | out_of_range())
def test_a_wrong_setting_in_a_file_is_refused_by_name(bad: Bad, folder: Path) -> None:
    path = write(folder, bad)
    message, seconds = refused(bad.program, ["--config", str(path)])
    assert bad.named in message
    assert str(path) in message
    assert seconds < 1.0


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bad=near_misses() | wrong_choices() | out_of_range())
def test_a_wrong_word_on_the_command_line_is_refused_by_name(bad: Bad) -> None:
    words = [*PROGRAMS[bad.program].words, f"--{bad.option.replace('_', '-')}={bad.value}"]
    message, seconds = refused(bad.program, words)
    assert bad.named in message.replace("-", "_")
    assert seconds < 1.0


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bad=near_misses())
def test_what_was_meant_is_suggested(bad: Bad, folder: Path) -> None:
    """Something that is spelled almost so."""
    message, _ = refused(bad.program, ["--config", str(write(folder, bad))])
    assert "; did you mean " in message
    suggested = message.partition("; did you mean ")[2].partition("?")[0].split(" or ")
    assert all(option in PROGRAMS[bad.program].options for option in suggested)
