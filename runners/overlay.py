"""Pictures of an episode: the environment's own, and over and below it what the memory holds.

Everything is drawn from an `EpisodeRecord`; nothing is computed anew. A picture is a stack of panels over
one time axis. Cells (or lines of text) where retained memories were written are tinted by their remaining
span; the tint fades on the ramp. A lifeline is one memory, from its birth to its expiry; its brightness is
attention.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from agents.episode_record import EpisodeRecord, LayerRecord
from agents.recording import PROBABILITIES
from runners.colors import (
    CURSOR,
    CURVE,
    FAINT_INK,
    FORECAST,
    INK,
    NIGHT,
    PAPER,
    RULE,
    SECOND_CURVE,
    attention_color,
    span_color,
)

Picture = NDArray[np.uint8]

WIDTH = 1280
MARGIN = 28
GAP = 14
AXIS_LEFT = 134
"""where the time axis begins, leaving room for labels"""
WIDE_ASPECT = 2.2
"""a wider frame takes the whole width; a narrower one stands beside the policy's choice"""
FRAME_HEIGHT = 400
EXPIRED_STEPS = 3
"""a memory that expired within so many steps is outlined"""
FILL_OPACITY = 0.45
"""of a tinted cell's inside, times the mask; its rim has the mask itself"""
RIM = 3
"""pixels"""
SHOWN_ACTIONS = 6
TEXT_LINES = 12


@dataclass(frozen=True, slots=True)
class Held:
    """What a cell, or a line, holds: its longest-lasting memory."""

    remaining: float
    mask: float
    is_cue: bool


class _Panel(ABC):
    """Part of a picture, over its whole width or a part of it."""

    left = MARGIN
    top = 0
    width = WIDTH - 2 * MARGIN
    height = 0
    offset = 0
    """how far below the top of its row it begins"""

    def prepare(self, image: Image.Image) -> None:  # noqa: B027  (most have something, not all)
        """Draw what is the same at every step."""

    @abstractmethod
    def draw(self, image: Image.Image, step: int) -> None:
        """Draw what belongs to a step."""


class EpisodePicture:
    """Draws the steps of one episode."""

    def __init__(self, record: EpisodeRecord, *, layer: int | None = None) -> None:
        """Lay out the panels.

        Args:
            record: the episode.
            layer: number of the layer to show, from 1; None: all.

        Raises:
            ValueError: there is no such layer.
        """
        count = len(record.layers)
        if layer is not None and not 1 <= layer <= count:
            raise ValueError(f"layer must lie between 1 and {count}, got {layer}")
        self.record = record
        self.shown_layers = list(range(1, count + 1)) if layer is None else [layer]
        self.lifelines = [
            LifelinePanel(record, number, len(self.shown_layers)) for number in self.shown_layers
        ]
        scene, choice = self._scene(), _ChoicePanel(record)
        rows: list[list[_Panel]] = [[_TitlePanel(record)]]
        attended = _AttendedPanel(record, self.shown_layers) if isinstance(scene, FramePanel) else None
        if scene is None:
            rows.append([choice])
        elif scene.width > WIDTH // 2 + GAP:
            rows += [[scene], [choice]]
            if attended is not None:
                attended.left = MARGIN + 670
                rows[-1].append(attended)
        else:
            choice.left = scene.left + scene.width + 2 * GAP
            choice.width = WIDTH - MARGIN - choice.left
            rows.append([scene, choice])
            if attended is not None:
                attended.left, attended.offset = choice.left, choice.height + GAP
                rows[-1].append(attended)
        self.scene = scene
        strip = WorldPanel(record, self.shown_layers) if needs_world(record) else None
        self.world = strip
        if strip is not None:
            rows.insert(2, [strip])
        rows += [[panel] for panel in self.lifelines]
        rows += [
            [_CountPanel(record, self.shown_layers)],
            [_ValuePanel(record)],
            [_LegendPanel(record, scene)],
        ]
        top = MARGIN // 2
        for row in rows:
            for panel in row:
                panel.top = top + panel.offset
            top += max(panel.offset + panel.height for panel in row) + GAP
        self.height = top + top % 2  # video codecs want even numbers
        self.panels = [panel for row in rows for panel in row]
        self._base = Image.new("RGB", (WIDTH, self.height), PAPER)
        for panel in self.panels:
            panel.prepare(self._base)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, both even."""
        return WIDTH, self.height

    def draw(self, step: int) -> Picture:
        """The picture of a step, [height, width, 3]; step T shows what followed the last action."""
        image = self._base.copy()
        for panel in self.panels:
            panel.draw(image, step)
        return np.asarray(image)

    def steps(self) -> Iterator[Picture]:
        """The pictures of all steps and of what followed."""
        for step in range(self.record.num_steps + 1):
            yield self.draw(step)

    def _scene(self) -> _Panel | None:
        if self.record.frame(0) is not None:
            return FramePanel(self.record, self.shown_layers)
        if self.record.lines is not None:
            return TextPanel(self.record, self.shown_layers)
        return None


def draw_sheet(record: EpisodeRecord, *, layer: int | None = None, moments: int | None = None) -> Picture:
    """The whole episode on one sheet: some of its moments, and below them every lifeline.

    Args:
        record: the episode.
        layer: number of the layer to show; None: all.
        moments: how many pictures of the environment; None: 5, or 3 wide ones.

    Raises:
        ValueError: there is no such layer.
    """
    whole = EpisodePicture(record, layer=layer)
    panels: list[_Panel] = [panel for panel in whole.panels if isinstance(panel, _TimePanel | _LegendPanel)]
    scene = whole.scene
    wide = scene is not None and scene.width > WIDTH // 2
    steps = _moments(record, moments or (3 if wide else 5))
    tiles: list[Image.Image] = []
    columns = 1
    if scene is not None:
        columns = 1 if wide else len(steps)
        room = (WIDTH - 2 * MARGIN + GAP) // columns - GAP
        for step in steps:
            image = Image.new("RGB", (WIDTH, whole.height), PAPER)
            scene.prepare(image)
            scene.draw(image, step)
            tile = image.crop((scene.left, scene.top, scene.left + scene.width, scene.top + scene.height))
            if tile.width > room:
                tile = tile.resize((room, round(tile.height * room / tile.width)), Image.Resampling.LANCZOS)
            tiles.append(tile)
    caption = 24
    tile_height = (tiles[0].height + caption + GAP) if tiles else 0
    rows = -(-len(tiles) // columns)
    head = 44
    top = MARGIN // 2 + head + rows * tile_height
    for panel in panels:
        panel.top = top
        top += panel.height + GAP
    sheet = Image.new("RGB", (WIDTH, top + top % 2), PAPER)
    write_text(sheet, (MARGIN, MARGIN // 2 + 6), title(record), 22)
    for index, (step, tile) in enumerate(zip(steps, tiles, strict=False)):
        row, column = divmod(index, columns)
        x = MARGIN + column * (tile.width + GAP)
        y = MARGIN // 2 + head + row * tile_height
        write_text(sheet, (x, y + 2), fitted(_moment_caption(record, step), 15, tile.width), 15, FAINT_INK)
        sheet.paste(tile, (x, y + caption))
    for panel in panels:
        panel.prepare(sheet)
        panel.draw(sheet, record.num_steps)
        if isinstance(panel, _TimePanel):
            panel.mark(sheet, [step for step in steps if step < record.num_steps] if tiles else [])
    return np.asarray(sheet)


def _moments(record: EpisodeRecord, count: int) -> list[int]:
    """Steps worth showing: a cue, evenly between, the last decision."""
    last = record.num_steps - 1
    cues = np.flatnonzero(record.cue_T)
    first = int(cues[-1]) if len(cues) and cues[-1] < last // count else 0
    return sorted({*np.linspace(first, last, count).round().astype(int).tolist()})


def _moment_caption(record: EpisodeRecord, step: int) -> str:
    words = [f"step {step}"]
    if record.cue_T[step]:
        words.append("cue in sight")
    words.append(f"then {_action_text(record, step)}")
    if record.reward_T[step]:
        words.append(f"reward {record.reward_T[step]:+g}")
    return ", ".join(words)


def held_places(
    record: EpisodeRecord, layers: Sequence[int], step: int, place_T: NDArray[Any]
) -> tuple[dict[tuple[int, ...], Held], set[tuple[int, ...]]]:
    """What each place holds at a step, and the places whose memory has just expired.

    Args:
        record: the episode.
        layers: numbers of the layers that count.
        step: seen by it; the step after the last counts as the last.
        place_T: where each step was: [T, 2] cells, or [T, 1] lines.
    """
    step = min(step, record.num_steps - 1)
    held: dict[tuple[int, ...], Held] = {}
    expired: set[tuple[int, ...]] = set()
    for number in layers:
        layer = record.layers[number - 1]
        seen = layer.at(step)
        for birth, remaining, mask in zip(seen.birth, seen.remaining, seen.mask, strict=True):
            place = tuple(place_T[birth].tolist())
            known = held.get(place)
            is_cue = bool(record.cue_T[birth]) or (known is not None and known.is_cue)
            if known is None or remaining > known.remaining:
                known = Held(float(remaining), float(mask), is_cue)
            held[place] = Held(known.remaining, known.mask, is_cue)
        gone = (
            (layer.last_M >= layer.first_M) & (layer.last_M < step) & (layer.last_M >= step - EXPIRED_STEPS)
        )
        expired |= {tuple(place_T[birth].tolist()) for birth in layer.birth_M[gone]}
    return held, expired - held.keys()


class FramePanel(_Panel):
    """The environment's picture, with the cells where memories were written tinted."""

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        frame = record.frame(0)
        assert frame is not None
        self._record, self._layers = record, layers
        height, width = frame.shape[:2]
        wide = width > WIDE_ASPECT * height
        room = WIDTH - 2 * MARGIN if wide else (WIDTH - 2 * MARGIN) // 2
        scale = min(room / width, FRAME_HEIGHT / height)
        if scale >= 1 and int(scale) >= 0.75 * scale:
            scale = int(scale)  # whole pixels stay sharp
        self._scale = scale
        self.width, self.height = round(width * scale), round(height * scale)
        self._frame_size = (width, height)
        if wide:
            self.left = (WIDTH - self.width) // 2
        self.shows_cells = record.tile > 0 and record.knows_cells

    def draw(self, image: Image.Image, step: int) -> None:
        frame = self._record.frame(step)
        assert frame is not None
        picture = self._scaled(frame)
        image.paste(Image.fromarray(picture), (self.left, self.top))
        if self.shows_cells:
            self._tint(image, picture, step)

    def cell_box(self, cell: tuple[int, ...], step: int) -> tuple[int, int, int, int] | None:
        """Left, top, right and bottom of a world cell in the whole picture; None if it is not in sight."""
        tile = self._record.tile
        columns, rows = self._frame_size[0] // tile, self._frame_size[1] // tile
        x, y = (np.array(cell) - self._record.origin_T1[step]).tolist()
        if not (0 <= x < columns and 0 <= y < rows):
            return None
        size = tile * self._scale
        return (
            self.left + round(x * size),
            self.top + round(y * size),
            self.left + round((x + 1) * size),
            self.top + round((y + 1) * size),
        )

    def _scaled(self, frame: Picture) -> Picture:
        if isinstance(self._scale, int):
            return frame.repeat(self._scale, 0).repeat(self._scale, 1)
        resample = Image.Resampling.BICUBIC if self._scale > 1 else Image.Resampling.BOX
        return np.asarray(Image.fromarray(frame).resize((self.width, self.height), resample))

    def _tint(self, image: Image.Image, picture: Picture, step: int) -> None:
        record = self._record
        held, expired = held_places(record, self._layers, step, record.cell_T1[:-1])
        pen = ImageDraw.Draw(image)
        for cell, what in held.items():
            box = self.cell_box(cell, step)
            if box is None:
                continue
            left, top, right, bottom = box
            part = picture[top - self.top : bottom - self.top, left - self.left : right - self.left]
            color = span_color(what.remaining, record.facts["max_span"])
            image.paste(Image.fromarray(tinted(part, color, what.mask)), (left, top))
            size = right - left
            if what.remaining >= 1.0 and size >= 36:
                text = f"{what.remaining:.0f}"
                write_text(
                    image, (right - RIM - 2, bottom - RIM - 1), text, 13, PAPER, anchor="rs", outline=INK
                )
            if what.is_cue:
                draw_diamond(pen, (left + RIM + 6, top + RIM + 6), 5)
        for cell in expired:
            box = self.cell_box(cell, step)
            if box is not None:
                _dashed_box(pen, box)


def tinted(part: Picture, color: NDArray[np.float64], mask: float) -> Picture:
    """Part of a picture under a memory's color: lightly inside, strongly at the rim, both times the mask."""
    opacity = np.full((*part.shape[:2], 1), FILL_OPACITY * mask)
    opacity[:RIM] = opacity[-RIM:] = mask
    opacity[:, :RIM] = opacity[:, -RIM:] = mask
    mixed: Picture = (part * (1 - opacity) + color * opacity + 0.5).astype(np.uint8)
    return mixed


class WorldPanel(_Panel):
    """All cells that the episode visits, on one small map: what the frame does not show."""

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        cells = record.cell_T1
        self._low = cells.min(0)
        columns, rows = (cells.max(0) - self._low + 1).tolist()
        label = 86
        self.left = MARGIN + label
        room = WIDTH - MARGIN - self.left
        self.cell_width = min(room / columns, 18.0)
        self.cell_height = min(18.0, max(140 / rows, 2.0)) if rows > 1 else 18.0
        if rows > 1:  # a map of more than a corridor keeps its shape
            self.cell_width = self.cell_height = min(self.cell_width, self.cell_height)
        self.width, self.height = round(columns * self.cell_width), round(rows * self.cell_height) + 12
        self._visited = {tuple(cell) for cell in cells.tolist()}

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (MARGIN, self.top + 6), "visited", 15, FAINT_INK)
        pen = ImageDraw.Draw(image)
        for cell in self._visited:
            pen.rectangle(_inside(self.cell_box(cell)), fill=(228, 231, 237))

    def cell_box(self, cell: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a world cell in the whole picture."""
        x, y = (np.array(cell) - self._low).tolist()
        top = self.top + 6
        return (
            self.left + round(x * self.cell_width),
            top + round(y * self.cell_height),
            self.left + max(round((x + 1) * self.cell_width), round(x * self.cell_width) + 1),
            top + max(round((y + 1) * self.cell_height), round(y * self.cell_height) + 1),
        )

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        held, _ = held_places(record, self._layers, step, record.cell_T1[:-1])
        pen = ImageDraw.Draw(image)
        for cell, what in held.items():
            color = span_color(what.remaining, record.facts["max_span"]) * what.mask
            color += np.array((228, 231, 237)) * (1 - what.mask)
            box = self.cell_box(cell)
            pen.rectangle(_inside(box), fill=_rgb(color))
            if what.is_cue:
                draw_diamond(pen, ((box[0] + box[2]) // 2, box[1] - 1), 4)
        left, top, right, bottom = self.cell_box(tuple(record.cell_T1[step].tolist()))
        x = (left + right) // 2
        pen.polygon([(x - 6, bottom + 9), (x + 6, bottom + 9), (x, bottom + 1)], fill=INK)
        del top


class TextPanel(_Panel):
    """The lines read last, and beside them the older ones that are still remembered."""

    line_height = 24

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        self.height = 26 + TEXT_LINES * self.line_height
        self.split = self.left + round(self.width * 0.52)

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "read last", 15, FAINT_INK)
        write_text(image, (self.split, self.top), "older, and still remembered", 15, FAINT_INK)

    def line_box(self, row: int, *, older: bool = False) -> tuple[int, int, int, int]:
        """The tinted block in front of a line."""
        left = self.split if older else self.left
        top = self.top + 26 + row * self.line_height
        return left, top + 2, left + 52, top + self.line_height - 2

    def recent(self, step: int) -> list[int]:
        """Steps of the lines read last, oldest first."""
        return list(range(max(0, step - TEXT_LINES + 1), step + 1))

    def older(self, step: int) -> list[int]:
        """Steps of older lines that are remembered, those that stay longest first."""
        held, _ = self._held(step)
        before = [s for s in held if s < self.recent(step)[0]]
        return sorted(before, key=lambda s: -held[s].remaining)[:TEXT_LINES]

    def _held(self, step: int) -> tuple[dict[int, Held], set[int]]:
        steps = np.arange(self._record.num_steps)[:, None]
        held, expired = held_places(self._record, self._layers, step, steps)
        return {place[0]: what for place, what in held.items()}, {place[0] for place in expired}

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        assert record.lines is not None
        held, expired = self._held(step)
        pen = ImageDraw.Draw(image)
        for older, steps in ((False, self.recent(step)), (True, self.older(step))):
            for row, line_step in enumerate(steps):
                left, top, right, bottom = box = self.line_box(row, older=older)
                what = held.get(line_step)
                if what is not None:
                    color = span_color(what.remaining, record.facts["max_span"])
                    mixed = color * what.mask + 255 * (1 - what.mask)
                    pen.rectangle(_inside(box), fill=_rgb(mixed))
                    if what.remaining >= 1.0:
                        ink = INK if mixed @ (0.299, 0.587, 0.114) > 120 else PAPER
                        place = ((left + right) // 2, (top + bottom) // 2)
                        write_text(image, place, f"{what.remaining:.0f}", 14, ink, anchor="mm")
                elif line_step in expired:
                    _dashed_box(pen, box, dark=True)
                is_cue = line_step < record.num_steps and bool(record.cue_T[line_step])
                if is_cue:
                    draw_diamond(pen, (right + 9, (top + bottom) // 2), 5)
                room = (self.split if not older else WIDTH - MARGIN) - right - 30
                line = fitted(f"{line_step}: {record.lines[line_step]}", 15, room)
                now = line_step == step and not older
                write_text(image, (right + 18, top), line, 15, INK if now or what is not None else FAINT_INK)


class _TitlePanel(_Panel):
    """Which episode, and which step."""

    height = 30

    def __init__(self, record: EpisodeRecord) -> None:
        self._record = record

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top + 4), title(self._record), 22)

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        right = self.left + self.width
        if step < record.num_steps:
            text = f"step {step} of {record.num_steps}"
        else:
            text = f"over after {record.num_steps} steps, return {record.facts['return']:g}"
        write_text(image, (right, self.top + 4), text, 22, anchor="ra")
        if step < record.num_steps and record.cue_T[step]:
            x = right - 300
            draw_diamond(ImageDraw.Draw(image), (x - 12, self.top + 17), 7)
            write_text(image, (x, self.top + 4), "cue in sight", 20)


class _ChoicePanel(_Panel):
    """What the policy would do, does, and expects."""

    row_height = 24

    def __init__(self, record: EpisodeRecord) -> None:
        self._record = record
        size = record.choice_TA.shape[1]
        if record.facts["choice"] != PROBABILITIES:
            size //= 2
        self._rows = min(size, SHOWN_ACTIONS)
        self.height = 26 + max(self._rows, 3) * self.row_height

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        step = min(step, record.num_steps - 1)
        if record.facts["choice"] == PROBABILITIES:
            self._draw_probabilities(image, step)
        else:
            self._draw_box(image, step)
        right = self.left + self.width
        column = right - 150 if self.width > 520 else right - 110
        gained = float(record.reward_T[: step + 1].sum())
        rows = [("value", f"{record.value_T[step]:.3f}"), ("reward", _signed(record.reward_T[step]))]
        for index, (name, value) in enumerate([*rows, ("return", f"{gained:g}")]):
            y = self.top + 26 + index * self.row_height
            write_text(image, (column, y), name, 15, FAINT_INK)
            write_text(image, (right, y), value, 15, anchor="ra")

    def _bars(self) -> tuple[int, int]:
        """Left end and length of a bar for probability 1."""
        return self.left + 120, min(420, self.width - 120 - 70 - 150)

    def _draw_probabilities(self, image: Image.Image, step: int) -> None:
        record = self._record
        probabilities = record.choice_TA[step]
        taken = taken_choices(record, step)
        order = np.arange(len(probabilities))
        if len(order) > SHOWN_ACTIONS:
            order = np.sort(np.argsort(-probabilities)[:SHOWN_ACTIONS])
        pen = ImageDraw.Draw(image)
        left, length = self._bars()
        write_text(image, (self.left, self.top), "chance of each action, and the one taken", 15, FAINT_INK)
        for row, index in enumerate(order.tolist()):
            y = self.top + 26 + row * self.row_height
            write_text(image, (left - 10, y), choice_name(record, index), 15, anchor="ra")
            pen.rectangle((left, y + 2, left + length, y + 17), fill=(238, 240, 244))
            end = left + round(length * float(probabilities[index]))
            if end > left:
                pen.rectangle((left, y + 2, end, y + 17), fill=CURVE)
            write_text(image, (left + length + 10, y), f"{probabilities[index]:.1%}", 15)
            if index in taken:
                pen.rectangle((left - 2, y, left + length + 2, y + 19), outline=INK, width=2)

    def _draw_box(self, image: Image.Image, step: int) -> None:
        record = self._record
        size = record.choice_TA.shape[1] // 2
        action = np.asarray(record.action_T[step]).reshape(-1)
        write_text(
            image, (self.left, self.top), "action: mean and deviation, and the one taken", 15, FAINT_INK
        )
        for index in range(min(size, SHOWN_ACTIONS)):
            y = self.top + 26 + index * self.row_height
            mean, deviation = record.choice_TA[step, index], record.choice_TA[step, size + index]
            text = f"{choice_name(record, index)}: {mean:+.3f} +- {deviation:.3f}, taken {action[index]:+.3f}"
            write_text(image, (self.left, y), text, 15)


class _AttendedPanel(_Panel):
    """The memories that get most attention now: what was seen when each was written."""

    count = 3
    side = 76

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        self.height = 26 + self.side + 20
        self._thumbnails: dict[int, Image.Image] = {}

    def attended(self, step: int) -> list[tuple[float, int]]:
        """Attention of the head that attends most, and birth; most attention first."""
        most: dict[int, float] = {}
        for number in self._layers:
            seen = self._record.layers[number - 1].at(min(step, self._record.num_steps - 1))
            for birth, attention in zip(seen.birth.tolist(), seen.attention.max(1).tolist(), strict=True):
                most[birth] = max(attention, most.get(birth, 0.0))
        return sorted(((attention, birth) for birth, attention in most.items()), reverse=True)[: self.count]

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "attends most to what it saw at", 15, FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        pen = ImageDraw.Draw(image)
        for index, (attention, birth) in enumerate(self.attended(step)):
            x, y = self.left + index * (self.side + 32), self.top + 26
            image.paste(self._thumbnail(birth), (x, y))
            if self._record.cue_T[birth]:
                draw_diamond(pen, (x + self.side - 10, y + 10), 5)
            write_text(image, (x, y + self.side + 3), f"step {birth}: {attention:.2f}", 13)

    def _thumbnail(self, step: int) -> Image.Image:
        if step not in self._thumbnails:
            self._thumbnails[step] = thumbnail(self._record, step, self.side)
        return self._thumbnails[step]


def thumbnail(record: EpisodeRecord, step: int, side: int) -> Image.Image:
    """What was seen at a step: three by three cells around the agent, or the whole frame, small."""
    frame = record.frame(step)
    tile = record.tile
    if frame is None or not (tile and record.knows_cells):
        whole = Image.new("RGB", (side, side), RULE)
        if frame is not None:
            small = Image.fromarray(frame)
            small.thumbnail((side, side))
            whole.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
        return whole
    padded = np.pad(frame, ((tile, tile), (tile, tile), (0, 0)))
    x, y = ((record.cell_T1[step] - record.origin_T1[step]) * tile).tolist()
    part = padded[max(y, 0) : y + 3 * tile, max(x, 0) : x + 3 * tile]
    resample = Image.Resampling.BOX if 3 * tile >= side else Image.Resampling.NEAREST
    return Image.fromarray(part).resize((side, side), resample)


class _TimePanel(_Panel):
    """A panel over the time axis."""

    def __init__(self, record: EpisodeRecord) -> None:
        self.record = record
        self.axis_left = AXIS_LEFT
        self.axis_width = WIDTH - MARGIN - AXIS_LEFT

    def column_of(self, step: float) -> int:
        """Pixel at which a step begins."""
        return self.axis_left + round(step * self.axis_width / self.record.num_steps)

    def now(self, step: int) -> int:
        """Pixel of the cursor: the end of a step."""
        return self.column_of(min(step + 1, self.record.num_steps))

    def mark(self, image: Image.Image, steps: list[int]) -> None:
        """Lines at some steps, over the panel's height."""
        pen = ImageDraw.Draw(image)
        for step in steps:
            x = self.now(step) - 1
            for y in range(self.chart_top, self.chart_top + self.chart_height, 6):
                pen.line((x, y, x, y + 2), fill=self.mark_color)

    @property
    def chart_top(self) -> int:
        """Upper end of the chart itself."""
        return self.top

    chart_height = 0
    mark_color = FAINT_INK


class LifelinePanel(_TimePanel):
    """One bar per memory of a layer, from its birth to its expiry."""

    mark_color = CURSOR

    def __init__(self, record: EpisodeRecord, number: int, layers: int) -> None:
        super().__init__(record)
        self.number = number
        self.layer = record.layers[number - 1]
        self.row_M = pack(self.layer, record.num_steps)
        self.rows = int(self.row_M.max(initial=0)) + 1
        most = max(90, 300 // layers)
        self.row_height = max(1, min(10, most // self.rows))
        self.chart_height = min(self.rows * self.row_height, most)
        self.height = 24 + self.chart_height + 20
        self._paint()

    @property
    def chart_top(self) -> int:
        return self.top + 24

    def row_box(self, memory: int) -> tuple[int, int]:
        """Upper and lower pixel of a memory's bar in the whole picture, gap left out."""
        row = int(self.row_M[memory])
        if self.rows * self.row_height <= self.chart_height:
            gap = 1 if self.row_height >= 4 else 0
            return (
                self.chart_top + row * self.row_height,
                self.chart_top + (row + 1) * self.row_height - gap,
            )
        top = self.chart_top + row * self.chart_height // self.rows
        return top, top + 1

    def _paint(self) -> None:
        """The whole chart, and per pixel when its memory was first seen."""
        num_steps, layer = self.record.num_steps, self.layer
        width, height = self.axis_width, self.chart_height
        attention = np.full((height, width), -1.0, dtype=np.float32)
        mask = np.zeros((height, width), dtype=np.float32)
        first = np.full((height, width), np.iinfo(np.int32).max, dtype=np.int32)
        memory_N, step_N = layer.memory_of_pairs(), layer.steps_of_pairs()
        edges = np.round(np.arange(num_steps + 1) * width / num_steps).astype(int)
        brightest_N = layer.attention_NH.max(1).astype(np.float32)
        bounds = np.array([self.row_box(memory) for memory in range(len(self.row_M))]) - self.chart_top
        several = max(1, int(np.ceil(width / num_steps)))
        tall = int((bounds[:, 1] - bounds[:, 0]).max(initial=1))
        for dy in range(tall):
            y_N = bounds[memory_N, 0] + dy
            for dx in range(several + 1):
                x_N = edges[step_N] + dx
                inside = (y_N < bounds[memory_N, 1]) & (
                    x_N < np.maximum(edges[step_N + 1], edges[step_N] + 1)
                )
                at = (y_N[inside], np.minimum(x_N[inside], width - 1))
                np.maximum.at(attention, at, brightest_N[inside])
                np.maximum.at(mask, at, layer.mask_N[inside])
                np.minimum.at(first, at, layer.first_M[memory_N[inside]])
        self._first = first
        colors = attention_color(np.maximum(attention, 0.0), mask)
        colors[attention < 0.0] = NIGHT
        self._colors = (colors + 0.5).astype(np.uint8)

    def prepare(self, image: Image.Image) -> None:
        bottom = self.chart_top + self.chart_height
        write_text(image, (self.left, self.chart_top), f"layer {self.number}", 15, FAINT_INK)
        write_text(image, (self.left, self.chart_top + 20), "memories", 15, FAINT_INK)
        caption = "one bar per memory, bright where it is attended to"
        write_text(image, (self.axis_left, self.top), caption, 15, FAINT_INK)
        _time_ticks(image, self, bottom)

    def draw(self, image: Image.Image, step: int) -> None:
        record, seen = self.record, min(step, self.record.num_steps - 1)
        now = self.now(step) - self.axis_left
        shown = self._colors.copy()
        shown[:, now:] = _COMING[(self._first[:, now:] <= seen).astype(np.intp)]
        image.paste(Image.fromarray(shown), (self.axis_left, self.chart_top))
        pen = ImageDraw.Draw(image)
        for birth in np.flatnonzero(record.cue_T[: seen + 1]).tolist():
            if self.layer.last_M[birth] >= self.layer.first_M[birth] and self.layer.first_M[birth] <= seen:
                top, bottom = self.row_box(birth)
                x = self.column_of(int(self.layer.first_M[birth]))
                size = max(3, min(5, (bottom - top) // 2 + 1))
                draw_diamond(pen, (x - size - 1, (top + bottom) // 2), size)
        if step < record.num_steps:
            x = self.axis_left + now
            pen.line((x, self.chart_top - 4, x, self.chart_top + self.chart_height + 3), fill=CURSOR, width=2)
            pen.line((x, self.chart_top - 6, x, self.chart_top - 1), fill=INK, width=2)
            pen.line(
                (x, self.chart_top + self.chart_height, x, self.chart_top + self.chart_height + 4), fill=INK
            )
        count = len(self.layer.at(seen).birth)
        text = f"{count:,} retained of {seen:,} possible"
        write_text(image, (WIDTH - MARGIN, self.top), text, 15, anchor="ra")
        write_text(
            image,
            (self.axis_left, self.top),
            "one bar per memory, bright where it is attended to",
            15,
            FAINT_INK,
        )


class _CountPanel(_TimePanel):
    """Memories retained against memories possible."""

    chart_height = 64

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        super().__init__(record)
        self._counts = [(n, record.layers[n - 1].retained_counts(record.num_steps)) for n in layers]
        self.height = self.chart_height + 6
        self._most = max([record.num_steps - 1, 1])

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "retained", 15, CURVE)
        write_text(image, (self.left, self.top + 18), "of possible", 15, FAINT_INK)
        write_text(image, (self.axis_left - 6, self.top - 4), f"{self._most:,}", 13, FAINT_INK, anchor="ra")
        pen = ImageDraw.Draw(image)
        bottom = self.top + self.chart_height
        num_steps = self.record.num_steps
        corners = [(self.column_of(0), bottom), (self.column_of(num_steps), bottom)]
        pen.polygon([*corners, (self.column_of(num_steps), self.top)], fill=(236, 238, 242))
        pen.line((self.column_of(0), bottom, self.column_of(num_steps), self.top), fill=SECOND_CURVE, width=1)
        for index, (_, counts) in enumerate(self._counts):
            _curve(pen, _stairs(self, counts, 0.0, float(self._most)), dashed=index % 2 == 1)
        if len(self._counts) > 1:
            style = ("solid", "dashed")
            names = ", ".join(f"{n} {style[index % 2]}" for index, (n, _) in enumerate(self._counts[:2]))
            write_text(image, (self.left, self.top + 36), names, 13, FAINT_INK)
        pen.line((self.column_of(0), bottom, self.column_of(num_steps), bottom), fill=RULE)

    def draw(self, image: Image.Image, step: int) -> None:
        _veil(image, self, step)


class _ValuePanel(_TimePanel):
    """The critic's value and the rewards."""

    chart_height = 56

    def __init__(self, record: EpisodeRecord) -> None:
        super().__init__(record)
        self.height = self.chart_height + 6
        low, high = float(record.value_T.min()), float(record.value_T.max())
        self._low, self._high = min(low, 0.0), max(high, 0.0)
        if self._low == self._high:
            self._high = 1.0

    def prepare(self, image: Image.Image) -> None:
        pen = ImageDraw.Draw(image)
        write_text(image, (self.left, self.top), "value", 15, CURVE)
        write_text(image, (self.left, self.top + 18), "reward", 15, FAINT_INK)
        bottom = self.top + self.chart_height
        pen.line((self.axis_left, bottom, self.axis_left + self.axis_width, bottom), fill=RULE)
        write_text(image, (self.axis_left - 6, self.top - 4), f"{self._high:.2g}", 13, FAINT_INK, anchor="ra")
        write_text(image, (self.axis_left - 6, bottom - 12), f"{self._low:.2g}", 13, FAINT_INK, anchor="ra")
        pen.line(_stairs(self, self.record.value_T, self._low, self._high), fill=CURVE, width=2)
        for step in np.flatnonzero(self.record.reward_T).tolist():
            x = self.now(step) - 1
            pen.polygon([(x - 5, bottom), (x + 5, bottom), (x, bottom - 9)], fill=FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        _veil(image, self, step)


class _LegendPanel(_Panel):
    """What tint, brightness and marks mean."""

    height = 40

    def __init__(self, record: EpisodeRecord, scene: _Panel | None) -> None:
        self._record = record
        self._tints = isinstance(scene, TextPanel) or (isinstance(scene, FramePanel) and scene.shows_cells)

    def prepare(self, image: Image.Image) -> None:
        pen = ImageDraw.Draw(image)
        x, y = self.left, self.top + 8
        bar = 120
        if self._tints:
            most = float(self._record.facts["max_span"])
            write_text(image, (x, y), "remaining span", 15, FAINT_INK)
            x += 118
            colors = span_color(np.exp(np.linspace(0, np.log(max(most, 2.0)), bar)), most)
            image.paste(Image.fromarray(np.tile(colors.astype(np.uint8), (16, 1, 1))), (x, y + 1))
            write_text(image, (x, y + 17), "1", 13, FAINT_INK)
            write_text(image, (x + bar, y + 17), f"{most:,.0f} steps", 13, FAINT_INK, anchor="ma")
            x += bar + 48
            _dashed_box(pen, (x, y, x + 18, y + 18), dark=True)
            write_text(image, (x + 26, y), "just expired", 15, FAINT_INK)
            x += 132
        draw_diamond(pen, (x + 6, y + 9), 6)
        write_text(image, (x + 18, y), "cue", 15, FAINT_INK)
        x += 66
        write_text(image, (x, y), "attention", 15, FAINT_INK)
        x += 76
        colors = attention_color(np.linspace(0, 1, bar), np.ones(bar))
        image.paste(Image.fromarray(np.tile(colors.astype(np.uint8), (16, 1, 1))), (x, y + 1))
        write_text(image, (x, y + 17), "0", 13, FAINT_INK)
        write_text(image, (x + bar, y + 17), "1", 13, FAINT_INK, anchor="ra")
        x += bar + 24
        colors = attention_color(np.full(60, 0.1), np.linspace(1, 0, 60))
        image.paste(Image.fromarray(np.tile(colors.astype(np.uint8), (16, 1, 1))), (x, y + 1))
        write_text(image, (x + 68, y), "fading", 15, FAINT_INK)
        x += 134
        pen.rectangle((x, y + 1, x + 40, y + 16), fill=FORECAST)
        write_text(image, (x + 48, y), "to come", 15, FAINT_INK)

    def draw(self, image: Image.Image, step: int) -> None:
        """Nothing depends on the step."""


_COMING = np.array([NIGHT, FORECAST], dtype=np.uint8)


def pack(layer: LayerRecord, num_steps: int) -> NDArray[np.int64]:
    """A row for each memory such that no two share a pixel; those that live longest are at the top."""
    length_M = layer.last_M - layer.first_M + 1
    row_M = np.zeros(len(length_M), dtype=np.int64)
    taken = np.zeros((0, num_steps + 1), dtype=bool)
    for memory in np.lexsort((layer.birth_M, -length_M)).tolist():
        if length_M[memory] <= 0:
            continue
        # One step to the left stays free, so that neighbors in a row are told apart.
        lifetime = slice(max(0, int(layer.first_M[memory]) - 1), int(layer.last_M[memory]) + 1)
        free = np.flatnonzero(~taken[:, lifetime].any(1))
        if len(free) == 0:
            taken = np.vstack([taken, np.zeros((max(8, len(taken) // 2), num_steps + 1), dtype=bool)])
            free = np.flatnonzero(~taken[:, lifetime].any(1))
        row_M[memory] = free[0]
        taken[free[0], lifetime] = True
    return row_M


def needs_world(record: EpisodeRecord) -> bool:
    """Whether the pictures never show all visited cells at once."""
    if not record.knows_cells or record.frame(0) is None:
        return False
    frame = record.frame(0)
    assert frame is not None
    if record.tile == 0:
        return True
    shown = np.array([frame.shape[1], frame.shape[0]]) // record.tile
    low, high = record.cell_T1.min(0), record.cell_T1.max(0)
    fits = (record.origin_T1 <= low) & (high < record.origin_T1 + shown)
    return not bool(fits.all())


def title(record: EpisodeRecord) -> str:
    """Which episode this is."""
    facts = record.facts
    arguments = "".join(f", {key} {value}" for key, value in facts.get("env_args", {}).items())
    outcome = {True: ", success", False: ", failure", None: ""}[facts["is_success"]]
    return f"{facts.get('env_name') or facts['env']}{arguments}, seed {facts['seed']}{outcome}"


def taken_choices(record: EpisodeRecord, step: int) -> set[int]:
    """Which entries of `choice_TA` the action of a step stands for."""
    action = np.asarray(record.action_T[step])
    size = record.choice_TA.shape[1]
    if action.ndim == 0:
        return {int(action)}
    if len(action) == size:  # one bit each
        return set(np.flatnonzero(action).tolist())
    return set()  # several choices side by side


def _signed(number: float) -> str:
    return f"{number:+g}" if number else "0"


def choice_name(record: EpisodeRecord, index: int) -> str:
    """What an entry of `choice_TA` is called."""
    names = record.facts["action_names"]
    return names[index] if names is not None and index < len(names) else f"action {index}"


def _action_text(record: EpisodeRecord, step: int) -> str:
    action = np.asarray(record.action_T[step])
    return choice_name(record, int(action)) if action.ndim == 0 and action.dtype.kind in "iu" else str(action)


def _stairs(panel: _TimePanel, values: NDArray[Any], low: float, high: float) -> list[tuple[int, int]]:
    """A curve's corners, one level per step."""
    bottom = panel.top + panel.chart_height
    height = panel.chart_height - 2
    levels = (
        (bottom - np.round((np.asarray(values) - low) / max(high - low, 1e-9) * height)).astype(int).tolist()
    )
    points: list[tuple[int, int]] = []
    for step, y in enumerate(levels):
        points += [(panel.column_of(step), y), (panel.column_of(step + 1), y)]
    return points


def _curve(pen: ImageDraw.ImageDraw, points: list[tuple[int, int]], *, dashed: bool) -> None:
    if not dashed:
        pen.line(points, fill=CURVE, width=2)
        return
    for (left, y), (right, _) in zip(points[::2], points[1::2], strict=True):
        for x in range(left - left % 10, right, 10):
            if max(x, left) < min(x + 5, right):
                pen.line((max(x, left), y, min(x + 5, right), y), fill=CURVE, width=2)


def _veil(image: Image.Image, panel: _TimePanel, step: int) -> None:
    """Make what is still to come pale, and draw the cursor."""
    if step >= panel.record.num_steps:
        return
    left, right = panel.now(step), panel.axis_left + panel.axis_width
    top, bottom = panel.top, panel.top + panel.chart_height + 1
    if left < right:
        part = np.asarray(image.crop((left, top, right, bottom)))
        image.paste(Image.fromarray((part // 4 + 191).astype(np.uint8)), (left, top))
    ImageDraw.Draw(image).line((left, top - 2, left, bottom), fill=INK, width=1)


def _time_ticks(image: Image.Image, panel: _TimePanel, y: int) -> None:
    num_steps = panel.record.num_steps
    pen = ImageDraw.Draw(image)
    interval = next(
        base * 10**power for power in range(9) for base in (1, 2, 5) if num_steps / (base * 10**power) <= 12
    )
    for step in range(0, num_steps, interval):
        x = panel.column_of(step)
        pen.line((x, y, x, y + 4), fill=FAINT_INK)
        write_text(image, (x, y + 4), f"{step:,}", 13, FAINT_INK, anchor="ma")
    write_text(image, (panel.axis_left + panel.axis_width, y + 4), "step", 13, FAINT_INK, anchor="ra")


def _inside(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """PIL's rectangles include their last pixels."""
    return box[0], box[1], box[2] - 1, box[3] - 1


def draw_diamond(pen: ImageDraw.ImageDraw, center: tuple[int, int], size: int) -> None:
    """The mark of a cue: black with a white rim, so that it shows on anything."""
    x, y = center
    for reach, color in ((size + 1, PAPER), (size - 1, INK)):
        pen.polygon([(x - reach, y), (x, y - reach), (x + reach, y), (x, y + reach)], fill=color)


def _dashed_box(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], *, dark: bool = False) -> None:
    left, top, right, bottom = _inside(box)
    color, dash = FAINT_INK if dark else PAPER, 4
    for x in range(left, right, 2 * dash):
        for y in (top, bottom - 1):
            pen.rectangle((x, y, min(x + dash - 1, right), y + 1), fill=color)
    for y in range(top, bottom, 2 * dash):
        for x in (left, right - 1):
            pen.rectangle((x, y, x + 1, min(y + dash - 1, bottom)), fill=color)


def _rgb(color: NDArray[np.float64]) -> tuple[int, int, int]:
    red, green, blue = (color + 0.5).astype(int).tolist()
    return red, green, blue


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def write_text(
    image: Image.Image,
    place: tuple[int, int],
    text: str,
    size: int,
    color: tuple[int, int, int] = INK,
    *,
    anchor: str = "la",
    outline: tuple[int, int, int] | None = None,
) -> None:
    """Write a line of text into a picture; `place` is where its anchor lies (PIL's letters)."""
    stroke = {} if outline is None else {"stroke_width": 1, "stroke_fill": outline}
    ImageDraw.Draw(image).text(place, text, fill=color, font=_font(size), anchor=anchor, **stroke)  # type: ignore[arg-type]


def fitted(text: str, size: int, room: int) -> str:
    """The text, or as much of its beginning as there is room for."""
    font = _font(size)
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."
