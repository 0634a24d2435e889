"""Pictures of an episode: the environment, the policy's choice, and the retained memories.

A picture is a stack of panels, drawn from an `EpisodeRecord` alone. In the environment's picture, cells (or
lines of text) where retained memories were written are tinted by remaining span. Below it, a lifeline is one
memory from its birth to its expiry; its brightness is attention.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.plotting.canvas import Picture, fit_text, write_text
from memory_suite.runners.plotting.palette import FAINT_INK, PAPER
from memory_suite.runners.rendering.choice_panels import AttentionPanel, ChoicePanel, LegendPanel, TitlePanel
from memory_suite.runners.rendering.labels import action_name, episode_title
from memory_suite.runners.rendering.panel import GAP, MARGIN, WIDTH, Panel
from memory_suite.runners.rendering.scene_panels import FramePanel, TextPanel, WorldPanel, needs_world
from memory_suite.runners.rendering.time_panels import CountPanel, LifelinePanel, TimePanel, ValuePanel


class EpisodePicture:
    """Draws the steps of one episode."""

    def __init__(self, record: EpisodeRecord, *, layer: int | None = None) -> None:
        """Lay out the panels and draw their static parts.

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
        self.scene = self._make_scene()
        self.world = WorldPanel(record, self.shown_layers) if needs_world(record) else None
        rows: list[list[Panel]] = [[TitlePanel(record)], *self._scene_rows()]
        if self.world is not None:
            rows.insert(2, [self.world])
        rows += [[panel] for panel in self.lifelines]
        rows += [
            [CountPanel(record, self.shown_layers)],
            [ValuePanel(record)],
            [LegendPanel(record, self.scene)],
        ]
        self.panels = [panel for row in rows for panel in row]
        self.height = _stack(rows)
        self._base = Image.new("RGB", (WIDTH, self.height), PAPER)
        for panel in self.panels:
            panel.prepare(self._base)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, both even."""
        return WIDTH, self.height

    def draw(self, step: int) -> Picture:
        """Draw the picture of a step; the step after the last shows the end of the episode."""
        image = self._base.copy()
        for panel in self.panels:
            panel.draw(image, step)
        return np.asarray(image)

    def steps(self) -> Iterator[Picture]:
        """Draw the pictures of all steps and of the end."""
        for step in range(self.record.num_steps + 1):
            yield self.draw(step)

    def _make_scene(self) -> Panel | None:
        """The panel that shows the environment; None if the record has neither frames nor lines."""
        if self.record.frame(0) is not None:
            return FramePanel(self.record, self.shown_layers)
        if self.record.lines is not None:
            return TextPanel(self.record, self.shown_layers)
        return None

    def _scene_rows(self) -> list[list[Panel]]:
        """Rows of the scene, the policy's choice and the attended memories.

        The last two stand beside a narrow scene, or below a wide one.
        """
        scene, choice = self.scene, ChoicePanel(self.record)
        if scene is None:
            return [[choice]]
        attended = AttentionPanel(self.record, self.shown_layers) if isinstance(scene, FramePanel) else None
        if scene.width > WIDTH // 2 + GAP:
            rows: list[list[Panel]] = [[scene], [choice]]
            if attended is not None:
                attended.left = MARGIN + 670
        else:
            choice.left = scene.left + scene.width + 2 * GAP
            choice.width = WIDTH - MARGIN - choice.left
            rows = [[scene, choice]]
            if attended is not None:
                attended.left, attended.offset = choice.left, choice.height + GAP
        if attended is not None:
            rows[-1].append(attended)
        return rows


def _stack(rows: list[list[Panel]]) -> int:
    """Place rows of panels below each other; return the height, which is even for video codecs."""
    top = MARGIN // 2
    for row in rows:
        for panel in row:
            panel.top = top + panel.offset
        top += max(panel.offset + panel.height for panel in row) + GAP
    return top + top % 2


def draw_sheet(record: EpisodeRecord, *, layer: int | None = None, moments: int | None = None) -> Picture:
    """Draw the whole episode on one sheet: the environment at some steps, and below them the time panels.

    Args:
        record: the episode.
        layer: number of the layer to show, from 1; None: all.
        moments: number of pictures of the environment; None: 5, or 3 wide ones.

    Raises:
        ValueError: there is no such layer.
    """
    whole = EpisodePicture(record, layer=layer)
    panels = [panel for panel in whole.panels if isinstance(panel, TimePanel | LegendPanel)]
    is_wide = whole.scene is not None and whole.scene.width > WIDTH // 2
    steps = _sheet_steps(record, moments or (3 if is_wide else 5))
    columns = 1 if is_wide else len(steps)
    tiles = _draw_tiles(whole, steps, (WIDTH - 2 * MARGIN + GAP) // columns - GAP)
    header_height, caption_height = 44, 24
    tile_height = tiles[0].height + caption_height + GAP if tiles else 0
    tiles_top = MARGIN // 2 + header_height
    top = tiles_top + -(-len(tiles) // columns) * tile_height
    for panel in panels:
        panel.top = top
        top += panel.height + GAP
    sheet = Image.new("RGB", (WIDTH, top + top % 2), PAPER)
    write_text(sheet, (MARGIN, MARGIN // 2 + 6), episode_title(record), 22)
    for index, (step, tile) in enumerate(zip(steps, tiles, strict=False)):
        row, column = divmod(index, columns)
        x, y = MARGIN + column * (tile.width + GAP), tiles_top + row * tile_height
        write_text(sheet, (x, y + 2), fit_text(_tile_caption(record, step), 15, tile.width), 15, FAINT_INK)
        sheet.paste(tile, (x, y + caption_height))
    for panel in panels:
        panel.prepare(sheet)
        panel.draw(sheet, record.num_steps)
        if isinstance(panel, TimePanel) and tiles:
            panel.mark(sheet, [step for step in steps if step < record.num_steps])
    return np.asarray(sheet)


def _draw_tiles(whole: EpisodePicture, steps: list[int], max_width: int) -> list[Image.Image]:
    """Draw the scene at some steps, reduced to a width; no tiles if there is no scene."""
    scene = whole.scene
    if scene is None:
        return []
    tiles = []
    for step in steps:
        image = Image.new("RGB", whole.size, PAPER)
        scene.prepare(image)
        scene.draw(image, step)
        tile = image.crop((scene.left, scene.top, scene.left + scene.width, scene.top + scene.height))
        if tile.width > max_width:
            height = round(tile.height * max_width / tile.width)
            tile = tile.resize((max_width, height), Image.Resampling.LANCZOS)
        tiles.append(tile)
    return tiles


def _sheet_steps(record: EpisodeRecord, count: int) -> list[int]:
    """At most `count` steps, evenly spaced up to the last decision, from the last cue if it is early."""
    last = record.num_steps - 1
    cues = np.flatnonzero(record.cue_T)
    first = int(cues[-1]) if len(cues) and cues[-1] < last // count else 0
    return sorted({*np.linspace(first, last, count).round().astype(int).tolist()})


def _tile_caption(record: EpisodeRecord, step: int) -> str:
    words = [f"step {step}"]
    if record.cue_T[step]:
        words.append("cue in sight")
    words.append(f"then {action_name(record, step)}")
    if record.reward_T[step]:
        words.append(f"reward {record.reward_T[step]:+g}")
    return ", ".join(words)
