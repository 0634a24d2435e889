"""Configurations wrong in one place, made from the dataclasses themselves: each is refused by name."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs import command_line
from configs.schema import TrainConfig, load

OPTIONS = command_line.options_of(TrainConfig)
MAPPINGS = ("env_args", "eval_env_args")
PLAIN = sorted(OPTIONS.keys() - set(MAPPINGS))
LETTERS = "abcdefghijklmnopqrstuvwxyz_"


class Bad(NamedTuple):
    """One wrong setting, and what the message must say."""

    option: str
    value: object
    named: str


def kind_of(option: str) -> Any:
    """The type of an option, without the None that it may be instead."""
    kind = OPTIONS[option]
    members = [member for member in get_args(kind) if member is not type(None)]
    return kind if get_origin(kind) is Literal or not members else members[0]


@st.composite
def near_misses(draw: st.DrawFn) -> Bad:
    """The name of an option with one letter too many, too few, wrong, or two exchanged."""
    option = draw(st.sampled_from(PLAIN))
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
    known = name in OPTIONS or f"{name}s" in OPTIONS or name.startswith(tuple(f"{m}." for m in MAPPINGS))
    if known or not wrong or any(other.startswith(f"{name}.") for other in OPTIONS):
        name = f"{option}x"
    return Bad(name, 1, name)


@st.composite
def wrong_types(draw: st.DrawFn) -> Bad:
    """A value that no option of this type takes."""
    option = draw(st.sampled_from([o for o in PLAIN if kind_of(o) in (int, float, bool)]))
    anything: list[object] = [[1, 2], {"a": 1}, "many", "1,5", "", "0x1g", float("nan"), float("inf"), b"1"]
    if kind_of(option) is bool:
        anything += [2, 0.5, "yes please"]
    if kind_of(option) is int:
        anything += [1.5, True, "1e3"]
    return Bad(option, draw(st.sampled_from(anything)), option)


@st.composite
def wrong_choices(draw: st.DrawFn) -> Bad:
    """A word that is not among the choices."""
    option = draw(st.sampled_from([o for o in PLAIN if get_origin(kind_of(o)) is Literal]))
    choices = get_args(kind_of(option))
    word = draw(st.text(LETTERS, min_size=1, max_size=12).filter(lambda text: text not in choices))
    return Bad(option, word, option)


@st.composite
def out_of_range(draw: st.DrawFn) -> Bad:
    """A number that is far too small: every number here has a least value."""
    option = draw(st.sampled_from([o for o in PLAIN if kind_of(o) in (int, float)]))
    return Bad(option, -draw(st.integers(1, 10**12)), option)


def refused(words: list[str]) -> tuple[str, float]:
    """What is said on the way out, and how long it took; AssertionError if it was not refused."""
    said = io.StringIO()
    began = time.monotonic()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as leaving:
        load(words)
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
    message, seconds = refused(["--config", str(path)])
    assert bad.named in message
    assert str(path) in message
    assert seconds < 1.0


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bad=near_misses() | wrong_choices() | out_of_range())
def test_a_wrong_word_on_the_command_line_is_refused_by_name(bad: Bad) -> None:
    message, seconds = refused(["--env", "corridor-short", f"--{bad.option.replace('_', '-')}={bad.value}"])
    assert bad.named in message.replace("-", "_")
    assert seconds < 1.0


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(bad=near_misses())
def test_what_was_meant_is_suggested(bad: Bad, folder: Path) -> None:
    """Something that is spelled almost so."""
    message, _ = refused(["--config", str(write(folder, bad))])
    assert "; did you mean " in message
    suggested = message.partition("; did you mean ")[2].partition("?")[0].split(" or ")
    assert all(option in OPTIONS for option in suggested)
