"""Panels that show the environment: the frame, the grid world, the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import _dashed_box, _inside, _rgb, draw_diamond, fitted, write_text
from memory_suite.runners.plotting.palette import (
    FAINT_INK,
    INK,
    PAPER,
    RULE,
    span_color,
)
from memory_suite.runners.rendering.panel import EXPIRED_STEPS, MARGIN, TEXT_LINES, WIDTH, Picture, _Panel

WIDE_ASPECT = 2.2
"""a wider frame takes the whole width; a narrower one stands beside the policy's choice"""


FRAME_HEIGHT = 400


FILL_OPACITY = 0.45
"""of a tinted cell's inside, times the mask; its rim has the mask itself"""


RIM = 3
"""pixels"""


@dataclass(frozen=True, slots=True)
class Held:
    """What a cell, or a line, holds: its longest-lasting memory."""

    remaining: float
    mask: float
    is_cue: bool


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
