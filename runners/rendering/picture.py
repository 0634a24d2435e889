"""Pictures of an episode: the environment's own, and over and below it what the memory holds.

Everything is drawn from an `EpisodeRecord`; nothing is computed anew. A picture is a stack of panels over
one time axis. Cells (or lines of text) where retained memories were written are tinted by their remaining
span; the tint fades on the ramp. A lifeline is one memory, from its birth to its expiry; its brightness is
attention.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import fitted, write_text
from memory_suite.runners.plotting.palette import (
    FAINT_INK,
    PAPER,
)
from memory_suite.runners.rendering.choice_panels import (
    _AttendedPanel,
    _ChoicePanel,
    _LegendPanel,
    _TitlePanel,
)
from memory_suite.runners.rendering.panel import GAP, MARGIN, WIDTH, Picture, _Panel, choice_name, title
from memory_suite.runners.rendering.scene_panels import FramePanel, TextPanel, WorldPanel, needs_world
from memory_suite.runners.rendering.time_panels import LifelinePanel, _CountPanel, _TimePanel, _ValuePanel


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


def _action_text(record: EpisodeRecord, step: int) -> str:
    action = np.asarray(record.action_T[step])
    return choice_name(record, int(action)) if action.ndim == 0 and action.dtype.kind in "iu" else str(action)
