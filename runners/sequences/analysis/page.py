"""An analysis as files: pictures, and one HTML page that needs neither network nor server.

The page is `analysis.html`. Whatever comes from the text goes into it escaped, or as JSON that the page's
script writes as text.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memory_suite.runners.plotting.matplotlib_style import image_bytes
from memory_suite.runners.plotting.palette import black_or_white
from memory_suite.runners.sequences.analysis.colored_text import Cell, Scale, byte_name, cells_of, tick_name
from memory_suite.runners.sequences.analysis.figures import (
    draw_edit,
    draw_max_spans,
    draw_text,
    memories_held,
    quality,
    quality_name,
)
from memory_suite.runners.sequences.analysis.measure import (
    EditEffect,
    StreamAnalysis,
    TextAnalysis,
    quoted,
)
from memory_suite.runners.sequences.analysis.span_table import SpanTable, span_table_of_text
from memory_suite.runners.sequences.evaluation import SequenceScore
from memory_suite.runners.sequences.loading import TrainedSequence

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_LISTED = 15
"""tokens with the largest differences, of either sign"""
NUM_BYTES_LISTED = 20
CONTEXT = (28, 16, 12)
"""bytes shown before and behind a listed one; a narrow screen leaves out the first"""
LEAD = 200
"""bytes shown before an edit"""
NOTABLE_BITS = 0.1
SMALLEST_CHANGE_BITS = 1e-3
"""what is called a change; rounding makes about 1e-6"""

KIND_LETTERS = {"plain": "p", "newline": "n", "tab": "t", "rest": "r", "hex": "h"}


@dataclass(slots=True)
class Output:
    """Files to be written, by name."""

    files: dict[str, bytes] = field(default_factory=dict)

    def add_figure(self, name: str, figure: Figure) -> str:
        """Keep it as a PNG; gives its data URL."""
        self.files[name] = image_bytes(figure, "png")
        return _data_url(self.files[name])


class Shade(NamedTuple):
    """Numbers that color a text."""

    name: str
    values: NDArray[np.float64]
    scale: Scale


class Tip(NamedTuple):
    """Numbers that are written when a character is pointed at."""

    name: str
    values: NDArray[np.float64]
    unit: str
    digits: int


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def of_text(
    analysis: TextAnalysis,
    trained: TrainedSequence,
    *,
    run: str,
    file: str,
    shown: int,
    max_spans: Sequence[int],
    compared: tuple[int, int],
    effect: EditEffect | None,
) -> Output:
    """Everything about a text.

    Args:
        analysis: of the text.
        trained: the model.
        run: its run's name.
        file: the text's name.
        shown: bytes shown one by one.
        max_spans: to show the loss under.
        compared: two maximum spans, the shorter first.
        effect: of an edit, if there is one.
    """
    output = Output()
    text = analysis.text
    cells = cells_of(text)
    window = range(max(0, len(text) - shown), len(text))
    where = f"{run}; {file}, bytes {window.start:,} to {window.stop - 1:,} of {len(text):,}"
    views: dict[str, Any] = {}

    spans = analysis.reading().span_LN
    shades = [
        Shade(f"layer {number}", span, Scale.of_spans(span)) for number, span in enumerate(spans, start=1)
    ]
    for number, shade in enumerate(shades, start=1):
        output.add_figure(
            f"spans-layer{number}.png",
            _text_figure(cells, window, shade, f"How long each byte is kept, {shade.name}", where),
        )
    tips = [Tip(shade.name, shade.values, "steps", 2) for shade in shades]
    tips.append(Tip("loss", analysis.reading().bits_N, "bits", 3))
    views["spans"] = _view(text, cells, window, shades, tips)
    table = span_table_of_text(text, analysis.reading().span_LN)
    sections = [
        _section(
            "How long each byte is kept",
            f"Color: the span e_i that the model gives to the memory of each byte; it then fades for "
            f"{trained.config.memory.ramp:,} more steps and is deleted. Each layer has a scale of its own.",
            '<div class="view" data-view="spans"></div>',
            _folded(
                "Bytes kept longest, on average",
                _span_table(table, most=NUM_BYTES_LISTED),
            ),
        ),
        _curve_section(output, analysis.curve(max_spans), f"{run}; {file}, {len(text):,} bytes"),
        _gain_section(output, analysis, cells, window, compared, views, where),
    ]
    if effect is not None:
        sections.append(_edit_section(output, effect, trained, text, cells, shown, views, f"{run}; {file}"))
    facts = [f"{file}, {len(text):,} bytes read, {len(window):,} of them shown", *_model_facts(trained)]
    output.files["analysis.html"] = _page(run, facts, sections, views)
    return output


def of_stream(analysis: StreamAnalysis, trained: TrainedSequence, *, run: str) -> Output:
    """Everything about a generated task."""
    output = Output()
    score = next(iter(analysis.curve.values()))
    facts = [
        f"{score.task}, {score.tokens:,} tokens of the test split, {score.targets:,} scored",
        *_model_facts(trained),
    ]
    sections = [
        _curve_section(output, analysis.curve, f"{run}; {facts[0]}"),
        _section(
            f"Mean span by {analysis.table.title}",
            "How long the memories of each kind of token are kept, in steps; colors are logarithmic, on "
            "a scale of each layer's own.",
            _span_table(analysis.table),
        ),
    ]
    output.files["analysis.html"] = _page(run, facts, sections, {})
    return output


def _model_facts(trained: TrainedSequence) -> list[str]:
    return [trained.config.memory.summary, f"checkpoint {trained.checkpoint}"]


# -- sections -----------------------------------------------------------------------------------------


def _curve_section(output: Output, curve: Mapping[int, SequenceScore], note: str) -> str:
    url = output.add_figure("max-span.png", draw_max_spans(curve, note))
    narrow = _data_url(image_bytes(draw_max_spans(curve, note, narrow=True), "png"))
    name = quality_name(next(iter(curve.values())))
    digits = 4 if name == "bits per byte" else 2
    rows = [
        [
            f"{span:,}",
            f"{quality(score):.{digits}f}" if digits == 4 else f"{quality(score):.2%}",
            f"{score.loss:.4f}",
            f"{memories_held(score):,.1f}",
            ", ".join(f"{mean:,.1f}" for mean in score.retained_mean),
            f"{score.bytes_held_mean / 1024:,.1f}",
        ]
        for span, score in sorted(curve.items())
    ]
    heads = ["maximum span", name, "loss (nats)", "memories held", "in each layer", "KiB, all rows"]
    return _section(
        "Shorter spans at evaluation",
        "Spans cut to a maximum, with the same weights: what the long memory is worth, and what it costs. "
        "Memory is counted after each block.",
        _picture(url, narrow, f"{name} against the maximum span, and against the mean memory held"),
        _table(heads, rows),
    )


def _gain_section(
    output: Output,
    analysis: TextAnalysis,
    cells: Sequence[Cell],
    window: range,
    compared: tuple[int, int],
    views: dict[str, Any],
    where: str,
) -> str:
    short, long = compared
    gain = analysis.gain(short, long)
    title = f"Which bytes profit from a maximum span of {long:,} instead of {short:,}"
    change = Shade("difference", -gain, Scale.of_differences(gain, "difference of the loss (bits)"))
    output.add_figure("difference.png", _text_figure(cells, window, change, title, where))
    losses = [Tip(f"loss, up to {span:,}", analysis.reading(span).bits_N, "bits", 3) for span in compared]
    views["gain"] = _view(
        analysis.text, cells, window, [change], [*losses, Tip("difference", -gain, "bits", 3)]
    )
    order = np.argsort(-gain[1:], kind="stable") + 1
    count = min(NUM_LISTED, len(order) // 2)
    known = gain[1:]
    lists = [
        _folded(
            f"The {count} bytes that {name} most",
            _gain_table(analysis, cells, places, compared, -gain),
            is_open=is_open,
        )
        for name, places, is_open in (
            ("profit", order[:count], True),
            ("lose", order[::-1][:count], False),
        )
    ]
    return _section(
        title,
        "Blue: easier to predict with the long memory, orange: harder. On average "
        f"{-known.mean():+.4f} bits per byte; "
        f"{(known > NOTABLE_BITS).mean():.1%} of all bytes profit by more than {NOTABLE_BITS} bits, "
        f"{(known < -NOTABLE_BITS).mean():.1%} lose as much.",
        '<div class="view" data-view="gain"></div>',
        *lists,
    )


def _gain_table(
    analysis: TextAnalysis,
    cells: Sequence[Cell],
    places: NDArray[np.int64],
    compared: tuple[int, int],
    change: NDArray[np.float64],
) -> str:
    heads = ["difference", "in its context", "byte", "at", *[f"loss up to {span:,}" for span in compared]]
    rows = [
        [
            f"{change[place]:+.2f}",
            _context(cells, place),
            byte_name(analysis.text[place]),
            f"{place:,}",
            *[f"{analysis.reading(span).bits_N[place]:.2f}" for span in compared],
        ]
        for place in places.tolist()
    ]
    return _table(heads, rows)


def _edit_section(
    output: Output,
    effect: EditEffect,
    trained: TrainedSequence,
    text: bytes,
    cells: Sequence[Cell],
    shown: int,
    views: dict[str, Any],
    where: str,
) -> str:
    edit, ramp = effect.edit, trained.config.memory.ramp
    difference = effect.difference_N
    start = max(0, edit.start - min(LEAD, shown // 4))
    window = range(start, min(len(text), start + shown))
    title = f"What changes if {quoted(edit.old)} at byte {edit.start:,} were {quoted(edit.new)}"
    shade = Shade(
        "change",
        np.abs(difference),
        Scale.of_changes(difference[edit.changed.stop :], "|difference of the loss| (bits)"),
    )
    note = f"{where}, bytes {window.start:,} to {window.stop - 1:,} of {len(text):,}"
    output.add_figure("edit.png", _text_figure(cells, window, shade, title, note, edit.changed))
    tips = [
        Tip("loss as it is", effect.before.bits_N, "bits", 3),
        Tip("loss after the edit", effect.after.bits_N, "bits", 3),
        Tip("difference", difference, "bits", 6),
    ]
    views["edit"] = _view(text, cells, window, [shade], tips, marked=edit.changed)
    url = output.add_figure("edit-distance.png", draw_edit(effect, ramp, f"{where}; {title}"))
    narrow = _data_url(image_bytes(draw_edit(effect, ramp, f"{where}; {title}", narrow=True), "png"))
    rows = []
    for layer in range(len(effect.before.span_LN)):
        old, new = effect.span_range(effect.before, layer), effect.span_range(effect.after, layer)
        rows.append(
            [f"{layer + 1}", _range(*old), _range(*new), f"{effect.longest_kept(layer) + ramp:,.1f} steps"]
        )
    heads = ["layer", "old bytes were kept for", "new bytes", "all deleted after"]
    return _section(
        title,
        _edit_statement(effect),
        _table(heads, rows),
        _picture(url, narrow, "size of the difference against distance from the edit"),
        '<div class="view" data-view="edit"></div>',
    )


def _edit_statement(effect: EditEffect) -> str:
    distance, size = effect.by_distance()
    changed = distance[size > SMALLEST_CHANGE_BITS]
    others = effect.edit.others
    parts = [
        "Only that place is changed"
        + (f"; the same bytes stand at {others:,} more places, and stay." if others else "."),
        f"Of the {len(distance):,} bytes behind it, the loss of {len(changed):,} changes by more than "
        f"{SMALLEST_CHANGE_BITS} bits"
        + (f", the last of them {changed[-1]:,} bytes behind." if len(changed) else "."),
        "What is farther away than a memory was kept can still change: later memories have read it.",
    ]
    return " ".join(parts)


def _range(low: float, high: float) -> str:
    first, last = f"{low:,.1f}", f"{high:,.1f}"
    return f"{first} steps" if first == last else f"{first} to {last} steps"


def _text_figure(
    cells: Sequence[Cell],
    window: range,
    shade: Shade,
    title: str,
    note: str,
    marked: range = range(0),
) -> Figure:
    part = slice(window.start, window.stop)
    return draw_text(
        cells[part],
        shade.values[part],
        shade.scale,
        title=title,
        note=note,
        marked=[place - window.start for place in marked],
    )


# -- HTML ---------------------------------------------------------------------------------------------


def _page(run: str, facts: Sequence[str], sections: Sequence[str], views: Mapping[str, Any]) -> bytes:
    template = (
        files("memory_suite.runners.sequences.analysis").joinpath("analysis.html").read_text(encoding="utf-8")
    )
    content = {
        "TITLE": html.escape(run),
        "FACTS": "".join(f"<li>{html.escape(fact)}</li>" for fact in facts),
        "SECTIONS": "\n".join(sections),
        "DATA": json.dumps(views, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    # In one go: what is put in may look like a place to put something in.
    page = re.sub(r"@([A-Z]+)@", lambda place: content[place[1]], template)
    return page.encode("utf-8", "replace")  # names of files may be no characters


def _view(
    text: bytes,
    cells: Sequence[Cell],
    window: range,
    shades: Sequence[Shade],
    tips: Sequence[Tip],
    marked: range | None = None,
) -> dict[str, Any]:
    """Data with which the page's script writes a colored text."""
    part = slice(window.start, window.stop)
    return {
        "start": window.start,
        "labels": [cell.label for cell in cells[part]],
        "kinds": "".join(KIND_LETTERS[cell.kind] for cell in cells[part]),
        "names": [byte_name(value) for value in text[part]],
        "marked": None if marked is None else [marked.start, marked.stop],
        "shades": [
            {
                "name": shade.name,
                "index": shade.scale.index(shade.values[part]).tolist(),
                **_scale_facts(shade.scale),
            }
            for shade in shades
        ],
        "tips": [
            [tip.name, [_number(value, tip.digits) for value in tip.values[part].tolist()], tip.unit]
            for tip in tips
        ],
    }


def _number(value: float, digits: int) -> str | None:
    return f"{value:,.{digits}f}" if np.isfinite(value) else None


def _scale_facts(scale: Scale) -> dict[str, Any]:
    ticks = scale.ticks()
    return {
        "label": scale.label,
        "palette": [_css(color) for color in scale.palette_P3],
        "black": black_or_white(scale.palette_P3).tolist(),
        "ticks": [
            [round(float(place), 4), tick_name(tick)]
            for place, tick in zip(scale.position(ticks), ticks, strict=True)
        ],
    }


def _css(color: NDArray[np.float64]) -> str:
    return f"rgb({','.join(str(int(part)) for part in np.rint(color))})"


def _section(title: str, lead: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(lead)}</p>{''.join(parts)}</section>"


def _folded(title: str, content: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{html.escape(title)}</summary>{content}</details>"


def _picture(wide: str, narrow: str, description: str) -> str:
    return (
        f'<picture><source media="(max-width: 760px)" srcset="{narrow}">'
        f'<img src="{wide}" alt="{html.escape(description)}"></picture>'
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(content: str) -> str:
    return content if isinstance(content, Markup) else f"<td>{html.escape(content)}</td>"


def _context(cells: Sequence[Cell], place: int) -> Markup:
    """A byte between its neighbors, in a cell of a table."""
    far, near, behind = CONTEXT

    def joined(start: int, end: int) -> str:
        part = cells[max(0, start) : max(0, end)]
        return html.escape("".join(f"\\x{cell.label}" if cell.kind == "hex" else cell.label for cell in part))

    return Markup(
        '<td class="context"><bdo dir="ltr">'
        f'<span class="far">{joined(place - near - far, place - near)}</span>'
        f"{joined(place - near, place)}<mark>{joined(place, place + 1)}</mark>"
        f"{joined(place + 1, place + 1 + behind)}</bdo></td>"
    )


def _span_table(table: SpanTable, *, most: int | None = None) -> str:
    layers = range(len(table.rows[0].span_LK)) if table.rows else range(0)
    heads = [table.title]
    heads += [f"{group} (count)" if group else "count" for group in table.groups]
    heads += [
        f"layer {layer + 1}{f', {group}' if group else ''}" for layer in layers for group in table.groups
    ]
    shown = table.rows[:most]
    scales = [Scale.of_spans([row.span_LK[layer] for row in shown]) for layer in layers]
    rows = [
        [
            row.name,
            *[f"{count:,}" for count in row.count_K],
            *[
                _shaded(scale, value)
                for scale, span_K in zip(scales, row.span_LK, strict=True)
                for value in span_K.tolist()
            ],
        ]
        for row in shown
    ]
    return _table(heads, rows)


def _shaded(scale: Scale, value: float) -> str:
    """A number on its color, in a cell of a table."""
    if not np.isfinite(value):
        return "-"
    color = scale.palette_P3[int(scale.index(value))]
    letters = "#000" if black_or_white(color) else "#fff"
    return Markup(f'<td style="background:{_css(color)};color:{letters}">{value:,.1f}</td>')


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
