"""Panels that show the environment: the frame, the grid world, the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import (
    Box,
    Picture,
    draw_dashed_box,
    draw_diamond,
    fit_text,
    inclusive,
    to_rgb,
    write_text,
)
from memory_suite.runners.plotting.palette import FAINT_INK, INK, PAPER, RULE, span_color
from memory_suite.runners.rendering.panel import MARGIN, WIDTH, Panel

EXPIRED_STEPS = 3
"""a memory is outlined for this many steps after it expired"""
TEXT_LINES = 12
"""lines of a text panel"""
WIDE_ASPECT = 2.2
"""a wider frame takes the whole width; a narrower one stands beside the policy's choice"""
MAX_FRAME_HEIGHT = 400
FILL_OPACITY = 0.45
"""opacity inside a tinted cell at mask 1; its rim is opaque"""
RIM = 3
"""width of a tinted cell's rim in pixels"""
VISITED = (228, 231, 237)
"""color of a visited cell without a memory"""

Place = tuple[int, ...]
"""where a memory was written: the cell (x, y), or the line (step,)"""


@dataclass(frozen=True, slots=True)
class Cell:
    """The memory of a place: the one with the longest remaining span."""

    remaining: float
    """steps until it expires"""
    mask: float
    is_cue: bool
    """whether any memory of the place is one of a cue"""


def memory_cells(
    record: EpisodeRecord, layers: Sequence[int], step: int, place_T: NDArray[Any]
) -> tuple[dict[Place, Cell], set[Place]]:
    """Find the places that have a memory at a step, and those whose memory has just expired.

    Args:
        record: the episode.
        layers: numbers of the shown layers, from 1.
        step: step of the query; the step after the last counts as the last.
        place_T: place of each step: [T, 2] cells, or [T, 1] lines.

    Returns:
        cells: the memory of each place that has one.
        expired: places without a memory that had one up to `EXPIRED_STEPS` steps ago.
    """
    step = min(step, record.num_steps - 1)
    cells: dict[Place, Cell] = {}
    expired: set[Place] = set()
    for number in layers:
        layer = record.layers[number - 1]
        seen = layer.at(step)
        for birth, remaining, mask in zip(seen.birth, seen.remaining, seen.mask, strict=True):
            place = tuple(place_T[birth].tolist())
            cell = cells.get(place)
            is_cue = bool(record.cue_T[birth]) or (cell is not None and cell.is_cue)
            if cell is None or remaining > cell.remaining:
                cell = Cell(float(remaining), float(mask), is_cue)
            cells[place] = Cell(cell.remaining, cell.mask, is_cue)
        was_retained = layer.last_M >= layer.first_M
        just_expired = was_retained & (layer.last_M < step) & (layer.last_M >= step - EXPIRED_STEPS)
        expired |= {tuple(place_T[birth].tolist()) for birth in layer.birth_M[just_expired]}
    return cells, expired - cells.keys()


class FramePanel(Panel):
    """The environment's picture; cells where retained memories were written are tinted."""

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        frame = record.frame(0)
        assert frame is not None
        self._record, self._layers = record, layers
        height, width = frame.shape[:2]
        wide = width > WIDE_ASPECT * height
        max_width = WIDTH - 2 * MARGIN if wide else (WIDTH - 2 * MARGIN) // 2
        scale = min(max_width / width, MAX_FRAME_HEIGHT / height)
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

    def cell_box(self, place: Place, step: int) -> Box | None:
        """Box of a world cell in the whole picture; None if the frame does not show it."""
        tile = self._record.tile
        columns, rows = self._frame_size[0] // tile, self._frame_size[1] // tile
        x, y = (np.array(place) - self._record.origin_T1[step]).tolist()
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
        cells, expired = memory_cells(record, self._layers, step, record.cell_T1[:-1])
        pen = ImageDraw.Draw(image)
        for place, cell in cells.items():
            box = self.cell_box(place, step)
            if box is None:
                continue
            left, top, right, bottom = box
            part = picture[top - self.top : bottom - self.top, left - self.left : right - self.left]
            color = span_color(cell.remaining, record.facts["max_span"])
            image.paste(Image.fromarray(tint(part, color, cell.mask)), (left, top))
            size = right - left
            if cell.remaining >= 1.0 and size >= 36:
                text = f"{cell.remaining:.0f}"
                position = (right - RIM - 2, bottom - RIM - 1)
                write_text(image, position, text, 13, PAPER, anchor="rs", outline=INK)
            if cell.is_cue:
                draw_diamond(pen, (left + RIM + 6, top + RIM + 6), 5)
        for place in expired:
            box = self.cell_box(place, step)
            if box is not None:
                draw_dashed_box(pen, box)


def tint(part: Picture, color: NDArray[np.float64], mask: float) -> Picture:
    """Blend a memory's color over part of a picture, lightly inside and fully at the rim, times the mask."""
    opacity = np.full((*part.shape[:2], 1), FILL_OPACITY * mask)
    opacity[:RIM] = opacity[-RIM:] = mask
    opacity[:, :RIM] = opacity[:, -RIM:] = mask
    mixed: Picture = (part * (1 - opacity) + color * opacity + 0.5).astype(np.uint8)
    return mixed


class WorldPanel(Panel):
    """A small map of all cells that the episode visits, for frames that do not show them all."""

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        cells = record.cell_T1
        self._low = cells.min(0)
        columns, rows = (cells.max(0) - self._low + 1).tolist()
        label = 86
        self.left = MARGIN + label
        max_width = WIDTH - MARGIN - self.left
        self.cell_width = min(max_width / columns, 18.0)
        self.cell_height = min(18.0, max(140 / rows, 2.0)) if rows > 1 else 18.0
        if rows > 1:  # only a corridor is stretched; other maps keep their shape
            self.cell_width = self.cell_height = min(self.cell_width, self.cell_height)
        self.width, self.height = round(columns * self.cell_width), round(rows * self.cell_height) + 12
        self._visited = {tuple(cell) for cell in cells.tolist()}

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (MARGIN, self.top + 6), "visited", 15, FAINT_INK)
        pen = ImageDraw.Draw(image)
        for place in self._visited:
            pen.rectangle(inclusive(self.cell_box(place)), fill=VISITED)

    def cell_box(self, place: Place) -> Box:
        """Box of a world cell in the whole picture."""
        x, y = (np.array(place) - self._low).tolist()
        top = self.top + 6
        return (
            self.left + round(x * self.cell_width),
            top + round(y * self.cell_height),
            self.left + max(round((x + 1) * self.cell_width), round(x * self.cell_width) + 1),
            top + max(round((y + 1) * self.cell_height), round(y * self.cell_height) + 1),
        )

    def draw(self, image: Image.Image, step: int) -> None:
        record = self._record
        cells, _ = memory_cells(record, self._layers, step, record.cell_T1[:-1])
        pen = ImageDraw.Draw(image)
        for place, cell in cells.items():
            color = span_color(cell.remaining, record.facts["max_span"]) * cell.mask
            color += np.array(VISITED) * (1 - cell.mask)
            left, top, right, bottom = box = self.cell_box(place)
            pen.rectangle(inclusive(box), fill=to_rgb(color))
            if cell.is_cue:
                draw_diamond(pen, ((left + right) // 2, top - 1), 4)
        left, _, right, bottom = self.cell_box(tuple(record.cell_T1[step].tolist()))
        agent = (left + right) // 2
        pen.polygon([(agent - 6, bottom + 9), (agent + 6, bottom + 9), (agent, bottom + 1)], fill=INK)


class TextPanel(Panel):
    """The most recent lines of text, and beside them older lines that are still retained."""

    line_height = 24

    def __init__(self, record: EpisodeRecord, layers: Sequence[int]) -> None:
        self._record, self._layers = record, layers
        self.height = 26 + TEXT_LINES * self.line_height
        self.split = self.left + round(self.width * 0.52)

    def prepare(self, image: Image.Image) -> None:
        write_text(image, (self.left, self.top), "read last", 15, FAINT_INK)
        write_text(image, (self.split, self.top), "older, and still remembered", 15, FAINT_INK)

    def line_box(self, row: int, *, older: bool = False) -> Box:
        """Box of the tinted block before a line."""
        left = self.split if older else self.left
        top = self.top + 26 + row * self.line_height
        return left, top + 2, left + 52, top + self.line_height - 2

    def recent(self, step: int) -> list[int]:
        """Steps of the most recent lines, oldest first."""
        return list(range(max(0, step - TEXT_LINES + 1), step + 1))

    def older(self, step: int) -> list[int]:
        """Steps of older retained lines, longest remaining span first."""
        lines, _ = self._retained_lines(step)
        before = [s for s in lines if s < self.recent(step)[0]]
        return sorted(before, key=lambda s: -lines[s].remaining)[:TEXT_LINES]

    def _retained_lines(self, step: int) -> tuple[dict[int, Cell], set[int]]:
        """`memory_cells` by the step of the line."""
        steps = np.arange(self._record.num_steps)[:, None]
        cells, expired = memory_cells(self._record, self._layers, step, steps)
        return {place[0]: cell for place, cell in cells.items()}, {place[0] for place in expired}

    def draw(self, image: Image.Image, step: int) -> None:
        lines, expired = self._retained_lines(step)
        pen = ImageDraw.Draw(image)
        for older, steps in ((False, self.recent(step)), (True, self.older(step))):
            for row, line_step in enumerate(steps):
                box = self.line_box(row, older=older)
                cell = lines.get(line_step)
                if cell is not None:
                    self._draw_block(image, box, cell)
                elif line_step in expired:
                    draw_dashed_box(pen, box, dark=True)
                is_current = line_step == step and not older
                end = WIDTH - MARGIN if older else self.split
                self._write_line(image, box, line_step, end, dark=is_current or cell is not None)

    def _draw_block(self, image: Image.Image, box: Box, cell: Cell) -> None:
        """Draw the tinted block of a retained line, with its remaining span."""
        left, top, right, bottom = box
        color = span_color(cell.remaining, self._record.facts["max_span"])
        mixed = color * cell.mask + 255 * (1 - cell.mask)
        ImageDraw.Draw(image).rectangle(inclusive(box), fill=to_rgb(mixed))
        if cell.remaining >= 1.0:
            ink = INK if mixed @ (0.299, 0.587, 0.114) > 120 else PAPER
            center = ((left + right) // 2, (top + bottom) // 2)
            write_text(image, center, f"{cell.remaining:.0f}", 14, ink, anchor="mm")

    def _write_line(self, image: Image.Image, box: Box, line_step: int, end: int, *, dark: bool) -> None:
        """Write a line behind its block, up to the pixel `end`, with the mark of a cue before it."""
        record = self._record
        assert record.lines is not None
        _, top, right, bottom = box
        if line_step < record.num_steps and record.cue_T[line_step]:
            draw_diamond(ImageDraw.Draw(image), (right + 9, (top + bottom) // 2), 5)
        line = fit_text(f"{line_step}: {record.lines[line_step]}", 15, end - right - 30)
        write_text(image, (right + 18, top), line, 15, INK if dark else FAINT_INK)


def thumbnail(record: EpisodeRecord, step: int, side: int) -> Image.Image:
    """A small picture of a step: three by three cells around the agent, or the whole frame."""
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
    """Whether the frames do not show all visited cells at once."""
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
