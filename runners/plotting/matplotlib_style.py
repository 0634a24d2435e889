"""Style of matplotlib figures, and figures as image bytes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
import importlib.util
from typing import TYPE_CHECKING

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


def image_bytes(figure: Figure, form: str) -> bytes:
    """A figure as a file: "png" or "pdf"."""
    buffer = io.BytesIO()
    with paper_style():
        figure.savefig(buffer, format=form)
    return buffer.getvalue()


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """How all pictures look: small print, few lines."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def require_matplotlib() -> None:
    """Say so before any work if it is missing; raises ValueError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('this needs matplotlib: pip install -c constraints.txt -e ".[docs]"')
