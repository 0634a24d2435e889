"""An episode as one HTML file that works without network and server.

The template is `viewer.html`; the record is embedded as compressed typed arrays and PNG images.
"""

from __future__ import annotations

import base64
import html
import io
import json
import zlib
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from memory_suite.agents.episodes.record import EpisodeRecord
from memory_suite.agents.episodes.recorder import PROBABILITIES
from memory_suite.runners.plotting.canvas import Picture
from memory_suite.runners.plotting.palette import SPAN_ANCHORS
from memory_suite.runners.rendering.labels import choice_name, episode_title, taken_choices
from memory_suite.runners.rendering.scene_panels import EXPIRED_STEPS, needs_world
from memory_suite.runners.rendering.time_panels import pack_rows

_JS_TYPES = {"float32": "f4", "int32": "i4", "uint16": "u2", "uint8": "u1"}


def viewer_html(record: EpisodeRecord) -> str:
    """Fill the template with an episode."""
    arrays = _arrays(record)
    # Widest element types first, so that every array begins at a multiple of its element size.
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    blob = zlib.compress(b"".join(array.tobytes() for array in arrays.values()), 9)
    data = _facts(record) | {
        "arrays": [[name, _JS_TYPES[array.dtype.name], array.size] for name, array in arrays.items()]
    }
    template = files("memory_suite.runners.rendering").joinpath("viewer.html").read_text(encoding="utf-8")
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    for placeholder, content in {
        "@TITLE@": html.escape(episode_title(record)),
        "@DATA@": text,
        "@ARRAYS@": base64.b64encode(blob).decode("ascii"),
    }.items():
        template = template.replace(placeholder, content)
    return template


def _arrays(record: EpisodeRecord) -> dict[str, NDArray[Any]]:
    """The arrays of a record by the names that `viewer.html` uses."""
    arrays: dict[str, NDArray[Any]] = {
        "reward": record.reward_T,
        "value": record.value_T,
        "choice": record.choice_TA,
        "cue": record.cue_T,
        "cell": record.cell_T1,
        "origin": record.origin_T1,
        "frame": record.frame_T1,
    }
    for number, layer in enumerate(record.layers, start=1):
        parts: dict[str, NDArray[Any]] = {
            "birth": layer.birth_M,
            "span": layer.span_M,
            "first": layer.first_M,
            "last": layer.last_M,
            "offset": layer.offset_M.astype(np.int32),
            "row": pack_rows(layer, record.num_steps).astype(np.int32),
            "attention": np.rint(layer.attention_NH.astype(np.float64) * 65535).astype(np.uint16),
            "mask": np.maximum(np.rint(layer.mask_N * 255), 1).astype(np.uint8),
        }
        for name, array in parts.items():
            arrays[f"layer{number}/{name}"] = array
    return arrays


def _facts(record: EpisodeRecord) -> dict[str, Any]:
    """Everything else that `viewer.html` reads."""
    size = record.choice_TA.shape[1]
    probabilities = record.facts["choice"] == PROBABILITIES
    first = record.frame(0)
    steps = range(record.num_steps)
    return {
        "numSteps": record.num_steps,
        "numLayers": len(record.layers),
        "rows": [int(pack_rows(layer, record.num_steps).max(initial=0)) + 1 for layer in record.layers],
        "heads": record.facts["num_heads"],
        "ramp": record.ramp,
        "maxSpan": record.facts["max_span"],
        "tile": record.tile,
        "knowsCells": record.knows_cells,
        "choice": record.facts["choice"],
        "choiceSize": size,
        "names": [choice_name(record, index) for index in range(size if probabilities else size // 2)],
        "taken": [_taken(record, step, probabilities) for step in steps],
        "outcome": _outcome(record),
        "expiredSteps": EXPIRED_STEPS,
        "spanColors": SPAN_ANCHORS.tolist(),
        "lines": record.lines,
        "world": _world(record),
        "frameSize": None if first is None else [first.shape[1], first.shape[0]],
        "frames": []
        if first is None
        else [_encode_png(record.frames[number]) for number in range(len(record.frames))],
    }


def _taken(record: EpisodeRecord, step: int, probabilities: bool) -> list[float]:
    """The action taken: indices of choices, or the numbers of a continuous action."""
    if probabilities:
        return sorted(taken_choices(record, step))
    numbers: list[float] = np.asarray(record.action_T[step], dtype=np.float64).reshape(-1).tolist()
    return numbers


def _outcome(record: EpisodeRecord) -> str:
    facts = record.facts
    how = "ended" if facts["terminated"] else "cut off by a time limit" if facts["truncated"] else "stopped"
    return f"{record.num_steps:,} steps, {how}, return {facts['return']:g}"


def _world(record: EpisodeRecord) -> dict[str, Any] | None:
    """The map of visited cells, if the frames do not show them all."""
    if not needs_world(record):
        return None
    cells = np.unique(record.cell_T1, axis=0)
    left, top = cells.min(0).tolist()
    columns, rows = (cells.max(0) - cells.min(0) + 1).tolist()
    return {"left": left, "top": top, "columns": columns, "rows": rows, "cells": cells.tolist()}


def _encode_png(frame: Picture) -> str:
    """A frame as PNG in base64."""
    buffer = io.BytesIO()
    image = Image.fromarray(frame)
    colors = image.getcolors(256)
    if colors is not None:  # a palette is exact with few colors, and smaller
        image = image.quantize(len(colors), dither=Image.Dither.NONE)
        if (np.asarray(image.convert("RGB")) != frame).any():
            image = Image.fromarray(frame)
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
