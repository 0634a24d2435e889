"""Measurements of a trained sequence model's memory.

- which spans e_i it gives to what it reads;
- how the loss depends on the longest span allowed, and on the memory that is then held;
- which bytes of a text are predicted better with a long memory than with a short one;
- which later predictions an edit of the text changes: what is different was remembered.

Spans, losses and differences belong to bytes of the text: entry i is the memory written when byte i was
read, or how many bits it took to predict byte i from those before it.

Shape letters:
    N  bytes of a text     L  layers             B  rows     T  tokens of a row
    V  kinds of tokens     K  groups of them     F  frames   P  places in a frame
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memory_suite.agents.model.layer import BlockReport
from memory_suite.agents.model.sequence_model import SequenceModel
from memory_suite.envs.streams.generated import GeneratedStream
from memory_suite.envs.streams.stream import Block, Stream
from memory_suite.envs.streams.text import NUM_BYTE_VALUES
from memory_suite.runners.sequences.analysis.span_table import SpanTable, span_table_of_stream
from memory_suite.runners.sequences.evaluation import SequenceScore, evaluate


class WholeText(Stream):
    """A text in memory as one row, from its first byte to its last."""

    def __init__(self, text: bytes) -> None:
        """Begin; raises ValueError if there is no byte to predict from another."""
        if len(text) < 2:
            raise ValueError(f"text must have at least 2 bytes, got {len(text)}")
        super().__init__(split="test", num_rows=1, tokens_per_row=len(text))
        self.name = "text"
        self.vocabulary_size = self.num_targets = NUM_BYTE_VALUES
        self.chance_accuracy = None
        self._bytes = np.frombuffer(text, dtype=np.uint8)

    def _fill(self, block: Block) -> None:
        end = self.position + block.tokens.shape[1]
        following = self._bytes[self.position + 1 : end + 1]
        block.tokens[0] = self._bytes[self.position : end]
        block.targets[0, : len(following)] = following
        block.is_first[0, 0] = self.position == 0

    def _options(self) -> dict[str, Any]:
        return {"bytes": self._bytes.tobytes()}

    def _inner_state(self) -> dict[str, Any]:
        return {}

    def _load_inner_state(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Reading:
    """A text read once."""

    bits_N: NDArray[np.float64]
    """what each byte took to predict; the first, which nothing precedes, is not a number"""
    span_LN: NDArray[np.float64]
    """e_i as predicted, in steps (the longest, if heads differ), whatever the spans were cut to"""
    score: SequenceScore


def read_text(model: SequenceModel, text: bytes, *, block_size: int, max_span: int | None = None) -> Reading:
    """Read a text from beginning to end, spans cut to `max_span` steps if that is given."""
    losses: list[torch.Tensor] = []
    spans: list[NDArray[np.float64]] = []
    score = evaluate(
        model,
        WholeText(text),
        block_size=block_size,
        max_span=max_span,
        on_block=lambda block, found: losses.append(found),
        on_reports=lambda block, reports: spans.append(_longest_spans(reports)[:, 0]),
    )
    nats = torch.cat(losses).double().cpu().numpy()
    return Reading(np.concatenate([[np.nan], nats / math.log(2)]), np.concatenate(spans, 1), score)


def _longest_spans(reports: Sequence[BlockReport]) -> NDArray[np.float64]:
    """Spans of what a block wrote [L, B, T], the longest if heads differ."""
    return torch.stack([report.span_BGW.amax(1) for report in reports]).double().cpu().numpy()


class TextAnalysis:
    """A text as a model reads it under several maximum spans, each read once."""

    def __init__(
        self,
        model: SequenceModel,
        text: bytes,
        *,
        block_size: int,
        on_read: Callable[[str], None] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            model: with learned spans.
            text: what it is to read.
            block_size: bytes read at a time; no result but rounding depends on it.
            on_read: called with a description of each pass before it starts.
        """
        self.model, self.text, self.block_size = model, text, block_size
        self.longest = model.transformer.settings.max_span
        """L"""
        self._on_read = on_read
        self._readings: dict[int, Reading] = {}

    def reading(self, max_span: int | None = None) -> Reading:
        """With spans limited to `max_span` steps; None: as learned."""
        # No span exceeds L: cutting there is not cutting.
        span = self.longest if max_span is None else min(max_span, self.longest)
        if span not in self._readings:
            self._say(f"maximum span {span:,}")
            self._readings[span] = read_text(
                self.model, self.text, block_size=self.block_size, max_span=self._cut(span)
            )
        return self._readings[span]

    def curve(self, max_spans: Iterable[int]) -> dict[int, SequenceScore]:
        """The score under each maximum span."""
        return {span: self.reading(span).score for span in max_spans}

    def gain(self, short: int, long: int) -> NDArray[np.float64]:
        """Bits that each byte takes less with the longer of two maximum spans, [N]."""
        return self.reading(short).bits_N - self.reading(long).bits_N

    def edited(self, edit: Edit) -> EditEffect:
        """The text as it is against the text with an edit."""
        self._say("the edited text")
        after = read_text(self.model, edit.apply(self.text), block_size=self.block_size)
        return EditEffect(edit, self.reading(), after)

    def _cut(self, span: int) -> int | None:
        return None if span == self.longest else span

    def _say(self, what: str) -> None:
        if self._on_read is not None:
            self._on_read(what)


# -- edits --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Edit:
    """A replacement of some bytes of a text."""

    start: int
    old: bytes
    new: bytes
    others: int = 0
    """further places where the old bytes stand, and stay"""

    @property
    def changed(self) -> range:
        """Places from the first to the last byte that differs: what both have in common is not edited."""
        differs = [place for place, (a, b) in enumerate(zip(self.old, self.new, strict=True)) if a != b]
        return range(self.start + differs[0], self.start + differs[-1] + 1)

    @classmethod
    def first(cls, text: bytes, old: bytes, new: bytes) -> Edit:
        """Edit the first place where `old` stands.

        Raises:
            ValueError: there is none.
        """
        start = text.find(old)
        if start < 0:
            raise ValueError(f"replace: {quoted(old)} is not in the {len(text):,} bytes that are analysed")
        return cls(start, old, new, text.count(old, start + len(old)))

    def apply(self, text: bytes) -> bytes:
        """The other text."""
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


def parse_replacement(words: str) -> tuple[bytes, bytes]:
    """OLD and NEW of "OLD=NEW"; since they are equally long, either may hold an equals sign.

    Raises:
        ValueError: they are not equally long, equal, or empty.
    """
    both = words.encode("utf-8", "surrogateescape")
    half = len(both) // 2
    if len(both) % 2 == 0 or both[half : half + 1] != b"=":
        old, equals, new = both.partition(b"=")
        if not equals:
            raise ValueError(f"replace must be OLD=NEW, got {words!r}")
        raise ValueError(
            f"replace must be OLD=NEW of equal length in bytes, so that nothing else moves; {quoted(old)} "
            f"has {len(old)} bytes, {quoted(new)} has {len(new)}"
        )
    old, new = both[:half], both[half + 1 :]
    if old == new:
        raise ValueError(f"replace must change something, got {words!r}")
    return old, new


def quoted(text: bytes) -> str:
    """Bytes for people, in quotes."""
    return repr(text.decode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class EditEffect:
    """The same text with and without an edit."""

    edit: Edit
    before: Reading
    after: Reading

    @property
    def difference_N(self) -> NDArray[np.float64]:
        """Bits that each byte takes more with the edit; not a number for the edited bytes themselves."""
        difference = self.after.bits_N - self.before.bits_N
        difference[self.edit.changed] = np.nan
        return difference

    def by_distance(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Bytes behind the edit: how far from its last byte, and the size of the difference."""
        difference = np.abs(self.difference_N[self.edit.changed.stop :])
        return np.arange(1, len(difference) + 1), difference

    def span_range(self, reading: Reading, layer: int) -> tuple[float, float]:
        """Shortest and longest span of the edited bytes' memories."""
        span = reading.span_LN[layer, self.edit.changed]
        return float(span.min()), float(span.max())

    def longest_kept(self, layer: int) -> float:
        """Longest span of the edited bytes' memories in either text: until then, one of them is there."""
        return max(self.span_range(reading, layer)[1] for reading in (self.before, self.after))


# -- spans by kind of token ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamAnalysis:
    """Analysis of a model on a generated task."""

    curve: dict[int, SequenceScore]
    """under each maximum span"""
    table: SpanTable


def analyse_stream(
    model: SequenceModel,
    make_stream: Callable[[], Stream],
    *,
    tokens: int,
    block_size: int,
    max_spans: Sequence[int],
    on_read: Callable[[str], None] | None = None,
) -> StreamAnalysis:
    """Read the same tokens once as they are, and once under each shorter maximum span.

    Args:
        model: with learned spans.
        make_stream: gives the stream from its beginning.
        tokens: of all rows together.
        block_size: tokens of a row read at a time.
        max_spans: to cut spans to.
        on_read: called with a description of each pass before it starts.

    Raises:
        ValueError: none of the tokens has a target.
    """
    longest = model.transformer.settings.max_span
    token_parts: list[NDArray[np.int64]] = []
    span_parts: list[NDArray[np.float64]] = []

    def keep(block: Block, reports: list[BlockReport]) -> None:
        token_parts.append(block.tokens)
        span_parts.append(_longest_spans(reports))

    def score(max_span: int) -> SequenceScore:
        if on_read is not None:
            on_read(f"maximum span {max_span:,}")
        whole = max_span == longest
        return evaluate(
            model,
            make_stream(),
            block_size=block_size,
            max_tokens=tokens,
            max_span=None if whole else max_span,
            on_reports=keep if whole else None,
        )

    curve = {longest: score(longest)}
    if not curve[longest].targets:
        raise ValueError(f"tokens: nothing is scored in the first {tokens:,} tokens; ask for more")
    curve.update({max_span: score(max_span) for max_span in max_spans if max_span != longest})
    stream = make_stream()
    assert isinstance(stream, GeneratedStream)
    table = span_table_of_stream(stream, np.concatenate(token_parts, 1), np.concatenate(span_parts, 2))
    return StreamAnalysis({span: curve[span] for span in max_spans}, table)
