"""Analyse the memory of a trained sequence model: its spans and their use, in pictures and one page.

    python runners/analyse_sequence.py --run runs/NAME --text FILE
    python runners/analyse_sequence.py --run runs/NAME --text FILE --replace "Alice=Maria"
    python runners/analyse_sequence.py --run runs/NAME --tokens 1000000     tasks other than text

Needs matplotlib: `pip install -c constraints.txt -e ".[docs]"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

from collections.abc import Callable
from dataclasses import dataclass

from memory_suite.agents.serialization.archive import write_file_atomically
from memory_suite.configs import command_line
from memory_suite.configs.command_line import exit_on_error
from memory_suite.configs.sequence_schema import SequenceConfig, from_yaml
from memory_suite.runners.plotting.matplotlib_style import require_matplotlib
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.progress import ProgressDisplay
from memory_suite.runners.sequences.analysis.measure import (
    Edit,
    TextAnalysis,
    WholeText,
    analyse_stream,
    parse_replacement,
)
from memory_suite.runners.sequences.analysis.page import Output, of_stream, of_text
from memory_suite.runners.sequences.loading import TrainedOptions

TEXT_TOKENS = 32_768
TASK_TOKENS = 262_144
MOST_SHOWN = 50_000
"""largest number of bytes that browsers show without delay"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyseSequenceCommand(TrainedOptions):
    """Analyse the memory of a trained sequence model: its spans and their use, in pictures and one page."""

    text: Path | None = None
    """file to read, of any content; for runs on text, where it is required"""
    out: Path | None = None
    """folder for the pictures and analysis.html; none: `analysis` in the run folder"""
    tokens: int | None = None
    """number of bytes to analyse, from the start of the file; on other tasks, number of tokens of the test
    split, all rows together; none: 32,768 bytes or 262,144 tokens"""
    shown: int = 3_000
    """number of bytes shown one by one: the last ones, when memory is full; or those that follow an edit"""
    max_spans: tuple[int, ...] = ()
    """maximum spans to try; none: powers of 4 up to the run's"""
    compare: tuple[int, ...] = ()
    """two maximum spans, to show which bytes profit from the longer one; none: the longest tried, and a
    sixteenth of it"""
    replace: str | None = None
    """OLD=NEW, of equal length in bytes: show how predictions change if the first OLD in the text is NEW"""
    block_size: int | None = None
    """tokens of a row read at a time, which changes results only by rounding; none: as in training"""

    def __post_init__(self) -> None:
        """Validate."""
        TrainedOptions.__post_init__(self)
        for name in ("tokens", "block_size"):
            if getattr(self, name) is not None:
                command_line.check_at_least_1(self, name)
        if not 1 <= self.shown <= MOST_SHOWN:
            raise ValueError(f"shown must lie in [1, {MOST_SHOWN}], got {self.shown}")
        for name in ("max_spans", "compare"):
            for span in getattr(self, name):
                if span < 1:
                    raise ValueError(f"{name} must be at least 1 each, got {span}")
        if self.compare and len(set(self.compare)) != 2:
            raise ValueError(f"compare must be two maximum spans, got {' '.join(map(str, self.compare))}")
        if self.replace is not None:
            parse_replacement(self.replace)
        if self.out is not None:
            if self.out.exists() and not self.out.is_dir():
                raise ValueError(f"out: {self.out} is a file, not a folder")
            if not self.out.parent.is_dir():
                raise ValueError(f"out: there is no folder {self.out.parent}")

    def check_with(self, config: SequenceConfig) -> None:
        """Validate against the run's configuration."""
        memory = config.memory
        if not memory.learns_spans:
            raise ValueError(
                f"run: its memory ({memory.summary}) learns no spans, so there are none to analyse"
            )
        for name in ("max_spans", "compare"):
            for span in getattr(self, name):
                if span > memory.max_span:
                    raise ValueError(
                        f"{name}: no span of this run exceeds memory.max_span = {memory.max_span}, so that "
                        f"cutting at {span} changes nothing"
                    )
        if config.task == "text":
            if self.text is None:
                raise ValueError("text: say which file is to be read, such as --text README.md")
            if self.data is not None:
                raise ValueError("data: the file to be read is called text here")
            if self.task_args:
                raise ValueError(f"task_args: a text has none, got {', '.join(self.task_args)}")
            return
        for name in ("text", "replace", "compare"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is for runs on text, and this one is on {config.task}; leave it out, and "
                    "tokens of the test split are analysed"
                )

    def spans_to_try(self, longest: int) -> list[int]:
        """Maximum spans to try, in ascending order."""
        if self.max_spans:
            return sorted(set(self.max_spans))
        powers = [4**power for power in range(1, 40) if 2 * 4**power <= longest]
        return [*powers, longest]

    def spans_to_compare(self, tried: list[int]) -> tuple[int, int]:
        """The two maximum spans to compare, the shorter one first."""
        if self.compare:
            return min(self.compare), max(self.compare)
        return max(1, tried[-1] // 16), tried[-1]


def main(argv: list[str] | None = None) -> int:
    """Read, draw, write."""
    command = command_line.parse(AnalyseSequenceCommand, argv)
    display = ProgressDisplay(0)
    folder = exit_on_error(lambda: analyse(command, display.note))
    display.note(f"written to {folder / 'analysis.html'}, and pictures beside it")
    return 0


def analyse(command: AnalyseSequenceCommand, note: Callable[[str], None]) -> Path:
    """Write the analysis and return its folder.

    Raises:
        ValueError: the run, the text or an option does not work.
    """
    require_matplotlib()
    run = RunFolder.open(command.run)
    config = from_yaml(run.config_file)
    command.check_with(config)
    folder = run.path / "analysis" if command.out is None else command.out
    say = lambda what: note(f"reading: {what}")  # noqa: E731
    output = _text(command, run.name, say) if config.task == "text" else _task(command, run.name, say)
    folder.mkdir(exist_ok=True)
    for name, content in output.files.items():
        write_file_atomically(folder / name, content)
    return folder


def _text(command: AnalyseSequenceCommand, run: str, say: Callable[[str], None]) -> Output:
    assert command.text is not None
    text = _first_bytes(command.text, command.tokens or TEXT_TOKENS)
    edit = None if command.replace is None else Edit.first(text, *parse_replacement(command.replace))
    trained = command.open(_whole(text, command.text))
    analysis = TextAnalysis(
        trained.model, text, block_size=command.block_size or trained.config.block_size, on_read=say
    )
    tried = command.spans_to_try(analysis.longest)
    return of_text(
        analysis,
        trained,
        run=run,
        file=command.text.name,
        shown=command.shown,
        max_spans=tried,
        compared=command.spans_to_compare(tried),
        effect=None if edit is None else analysis.edited(edit),
    )


def _first_bytes(file: Path, count: int) -> bytes:
    try:
        with open(file, "rb") as opened:
            return opened.read(count)
    except OSError as error:
        raise ValueError(f"text: {file} cannot be read ({error.strerror})") from None


def _whole(text: bytes, file: Path) -> WholeText:
    try:
        return WholeText(text)
    except ValueError as error:
        raise ValueError(f"{error} of {file}") from None


def _task(command: AnalyseSequenceCommand, run: str, say: Callable[[str], None]) -> Output:
    trained = command.open()
    tried = command.spans_to_try(trained.config.memory.max_span)
    analysis = analyse_stream(
        trained.model,
        lambda: trained.stream("test"),
        tokens=command.tokens or TASK_TOKENS,
        block_size=command.block_size or trained.config.block_size,
        max_spans=tried,
        on_read=say,
    )
    return of_stream(analysis, trained, run=run)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
