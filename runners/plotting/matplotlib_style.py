"""Style of matplotlib figures, and figures as image bytes.

matplotlib is an optional dependency, so it is imported inside the functions that draw.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
}


def image_bytes(figure: Figure, file_format: str) -> bytes:
    """Encode a figure as "png" or "pdf"."""
    buffer = io.BytesIO()
    with paper_style():
        figure.savefig(buffer, format=file_format)
    return buffer.getvalue()


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """Apply the style of printed figures: small type, few lines."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def require_matplotlib() -> None:
    """Raise ValueError if matplotlib is missing; for commands to call before any work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('this needs matplotlib: pip install -c constraints.txt -e ".[docs]"')
