"""Render a recorded episode to a video, a GIF or a sheet."""

from __future__ import annotations

from pathlib import Path

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.runners.rendering.picture import EpisodePicture, draw_sheet
from memory_suite.runners.rendering.video import write_gif, write_mp4, write_png


def render(record: EpisodeRecord, out: Path, *, layer: int | None = None, fps: float = 10.0) -> None:
    """Draw an episode into a file; the suffix chooses the format.

    Args:
        record: the episode.
        out: .mp4, .gif or .png (one sheet).
        layer: number of the layer to show, from 1; None: all.
        fps: pictures per second.

    Raises:
        ValueError: there is no such layer, or no such format.
    """
    if out.suffix == ".png":
        write_png(draw_sheet(record, layer=layer), out)
        return
    pictures = EpisodePicture(record, layer=layer).steps()
    if out.suffix == ".mp4":
        write_mp4(pictures, out, fps)
    elif out.suffix == ".gif":
        write_gif(pictures, out, fps)
    else:
        raise ValueError(f"out must end in .mp4, .gif or .png, got {out}")
