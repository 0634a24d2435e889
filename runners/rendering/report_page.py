"""The report of a run as one HTML page that works without network and server."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from memory_suite.runners.rendering.run_charts import Chart, draw_chart
from memory_suite.runners.rendering.run_data import RunData
from memory_suite.runners.run.metrics_file import STEP_KEY


def report_page(
    name: str,
    data: RunData,
    charts: Sequence[Chart],
    *,
    evaluation: dict[str, Any] | None = None,
    sheet: bytes | None = None,
) -> str:
    """Build the HTML page.

    Args:
        name: name of the run.
        data: its metrics.
        charts: charts to show, all with data.
        evaluation: content of evaluation.json; None: there is none yet.
        sheet: PNG of an episode; None: leave it out.
    """
    config = data.config
    last = data.rows[-1][STEP_KEY]
    parts = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p>{html.escape(config.env)}, {config.algo.upper()}, seed {config.seed}, {last:,} steps</p>",
    ]
    if evaluation is not None:
        parts.append(_evaluation_table(evaluation))
    parts.append(f"<main>{''.join(_figure(data, chart) for chart in charts)}</main>")
    if sheet is not None:
        parts.append(
            '<h2>An episode of the best checkpoint</h2><img class="sheet" alt="an episode and its memories" '
            f'src="{_data_url(sheet)}">'
        )
    return PAGE.format(title=html.escape(name), body="\n".join(parts))


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
body {{ margin: 0 auto; max-width: 1400px; padding: 16px; color: #1b1f27;
  font: 16px/1.45 system-ui, sans-serif; }}
main {{ display: grid; gap: 20px; margin-top: 16px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }}
figure {{ margin: 0; }} figcaption {{ color: #5b6270; }} figcaption b {{ color: #1b1f27; }}
img {{ width: 100%; height: auto; }} .sheet {{ max-width: 1280px; }}
th {{ text-align: left; font-weight: 400; color: #5b6270; padding-right: 20px; vertical-align: top; }}
summary {{ cursor: pointer; }}
</style></head><body>
{body}
</body></html>
"""


def _figure(data: RunData, chart: Chart) -> str:
    """A chart with its title and note."""
    buffer = io.BytesIO()
    draw_chart(data, chart).savefig(buffer, format="png", dpi=120)
    return (
        f"<figure><figcaption><b>{html.escape(chart.title)}</b><br>{html.escape(chart.note)}</figcaption>"
        f'<img alt="{html.escape(chart.title)}" src="{_data_url(buffer.getvalue())}"></figure>'
    )


def _evaluation_table(evaluation: dict[str, Any]) -> str:
    """The final evaluation as a table that unfolds."""
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(_words(value))}</td></tr>"
        for name, value in evaluation.items()
        if name != "by_step" and value is not None
    )
    headline = _headline(evaluation)
    return f"<details><summary>Final evaluation: {headline}</summary><table>{rows}</table></details>"


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _words(value: Any) -> str:
    """A value of evaluation.json as text."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_words(part) for part in value)
    return str(value)


def _headline(evaluation: dict[str, Any]) -> str:
    if evaluation.get("success_rate") is not None:
        return f"success {evaluation['success_rate']:.1%} of {evaluation['episodes']:,} episodes"
    return f"return {evaluation['return_mean']:.3f} over {evaluation['episodes']:,} episodes"
