"""The diagnostics of a run as one page that needs neither network nor account.

    python runners/report.py --run runs/NAME                   report.html in the run folder
    python runners/report.py --run runs/NAME --out report.pdf  or .png, the charts alone

Needs matplotlib: `pip install -c constraints.txt -e ".[docs]"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memory_suite.agents.serialization.archive import write_file_atomically
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import TrainConfig, from_yaml
from memory_suite.configs.command_line import or_exit
from memory_suite.runners.rendering.picture import draw_sheet
from memory_suite.runners.rendering.video import png_bytes
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import STEP_KEY, Row, read_metrics
from memory_suite.runners.training.trained_agent import TrainedAgent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, told apart by color-blind eyes; line styles tell them apart in grey.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", "-.", ":")
HEAT_BINS = 48
PANEL_SIZE = (6.4, 3.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportCommand:
    """The diagnostics of a run as one page."""

    run: Path
    """run folder"""
    out: Path | None = None
    """file to write, .html, .pdf or .png; none: report.html in the run folder"""
    episode: bool = True
    """also play an episode of the best checkpoint and show it (HTML only)"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.out is not None and self.out.suffix not in (".html", ".pdf", ".png"):
            raise ValueError(f"out must end in .html, .pdf or .png, got {self.out}")
        command_line.check_output(self.out, "out")


def main(argv: list[str] | None = None) -> int:
    """Read metrics.jsonl, write a page."""
    command = command_line.parse(ReportCommand, argv)
    print(f"written to {or_exit(lambda: report(command))}")
    return 0


def report(command: ReportCommand) -> Path:
    """Write the report; gives its path.

    Raises:
        ValueError: the folder is none of an agent's run, or has no row of metrics yet.
    """
    folder = RunFolder.open(command.run)
    config = from_yaml(folder.config_file)
    rows = read_metrics(folder.metrics_file)
    if not rows:
        raise ValueError(f"{folder.metrics_file} has no row yet")
    out = folder.path / "report.html" if command.out is None else command.out
    data = RunData(rows, config)
    panels = [panel for panel in PANELS if panel.has_data(data)]
    if out.suffix == ".html":
        sheet = _episode_sheet(command.run) if command.episode else None
        write_file_atomically(out, _page(folder, data, panels, sheet).encode())
    else:
        figure = draw_panels(data, panels, title=f"{config.env}, {config.algo.upper()}, seed {config.seed}")
        figure.savefig(out, dpi=100)
    return out


class RunData:
    """The rows of a run, by name."""

    def __init__(self, rows: Sequence[Row], config: TrainConfig) -> None:
        """Keep them."""
        self.config = config
        self.rows = rows
        self.names = sorted({name for row in rows for name in row})
        self.layers = sorted({name.split("/")[1] for name in self.names if name.startswith("memory/layer")})

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Millions of steps, and the number itself where it was logged."""
        known = [(row[STEP_KEY] / 1e6, row[name]) for row in self.rows if _is_number(row.get(name))]
        return [x for x, _ in known], [y for _, y in known]

    def heat(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Steps, edges and shares [bins, steps] of a logged distribution, on logarithmic bins."""
        known = [
            (row[STEP_KEY] / 1e6, *_histogram(row[name])) for row in self.rows if row.get(name) is not None
        ]
        known = [entry for entry in known if entry[1].sum() > 0]
        if len(known) < 2:
            return None
        highest = max(float(edges[-1]) for _, _, edges in known)
        # Whole numbers lie inside bins, not between them: ages are whole.
        bins = np.unique(np.ceil(np.geomspace(1.0, max(highest, 2.0) + 1.0, HEAT_BINS + 1))) - 0.5
        shares = np.stack([_rebinned(counts, edges, bins) for _, counts, edges in known], 1)
        return np.array([x for x, _, _ in known]), bins, shares


class Panel(NamedTuple):
    """One chart."""

    title: str
    note: str
    """what to look for"""
    has_data: Callable[[RunData], bool]
    draw: Callable[[RunData, Any], None]


def draw_panels(data: RunData, panels: Sequence[Panel], *, title: str, columns: int = 2) -> Figure:
    """All charts on one sheet."""
    plt = _pyplot()
    rows = -(-len(panels) // columns)
    size = (PANEL_SIZE[0] * columns, PANEL_SIZE[1] * rows + 0.5)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel, axis in zip(panels, axes.flat, strict=False):
        panel.draw(data, axis)
        axis.set_title(panel.title, fontsize=11, loc="left")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    figure.suptitle(title)
    plt.close(figure)
    return figure


def _success(data: RunData, axis: Axes) -> None:
    classes = [name for name in data.names if name.startswith("success/") and name != "success/worst"]
    classes.sort(key=_first_number)
    for index, name in enumerate(classes):
        label = name.removeprefix("success/")
        axis.plot(*data.series(name), _style(index), color=_color(index), label=label, linewidth=1.4)
    if not classes:
        axis.plot(*data.series("rollout/success_rate"), color=COLORS[0], label="last 100 episodes")
    axis.set_ylim(0, 1.03)
    axis.set_ylabel("success")
    axis.legend(fontsize=8, loc="lower right", title="episodes of class", title_fontsize=8)
    _steps(axis)


def _returns(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("rollout/ep_rew_mean"), color=COLORS[0], label="return")
    axis.set_ylabel("return")
    lengths = axis.twinx()
    lengths.plot(*data.series("rollout/ep_len_mean"), "--", color=COLORS[1], label="length (steps, right)")
    lengths.set_ylabel("steps")
    _legend(axis, lengths)
    _steps(axis)


def _retained(data: RunData, axis: Axes) -> None:
    for index, layer in enumerate(data.layers):
        axis.plot(
            *data.series(f"memory/{layer}/retained_mean"), _style(index), color=_color(index),
            label=f"retained, {_spoken(layer)}",
        )  # fmt: skip
    axis.plot(*data.series("memory/possible_mean"), color="0.6", label="possible")
    axis.axhline(data.config.memory.ramp, color="0.6", linestyle=":", label="ramp length")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("memories")
    axis.legend(fontsize=8)
    _steps(axis)


def _retention(data: RunData, axis: Axes) -> None:
    names = ("memory/recall", "memory/precision", "memory/premature_rate")
    for index, name in enumerate(names):
        label = name.removeprefix("memory/").replace("_", " ")
        axis.plot(*data.series(name), _style(index), color=_color(index), label=label)
    axis.set_ylim(-0.03, 1.3)
    axis.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axis.set_ylabel("share")
    slack = axis.twinx()
    slack.plot(*data.series("memory/slack_mean"), ":", color=COLORS[3], label="slack (steps, right)")
    slack.set_ylabel("steps")
    slack.set_ylim(bottom=0, top=1.26 * max([1.0, *data.series("memory/slack_mean")[1]]))
    _legend(axis, slack, loc="upper center", ncols=4, columnspacing=1.0, handlelength=1.6)
    _steps(axis)


def _spans(data: RunData, axis: Axes) -> None:
    for index, layer in enumerate(data.layers):
        axis.plot(
            *data.series(f"memory/{layer}/span_mean"), color=_color(index), label=f"mean, {_spoken(layer)}"
        )
        axis.plot(
            *data.series(f"memory/{layer}/span_max"), "--", color=_color(index),
            label=f"longest, {_spoken(layer)}",
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel("span (steps)")
    axis.legend(fontsize=8)
    _steps(axis)


def _penalty(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("memory/penalty_weight"), color=COLORS[1], label="penalty weight")
    axis.axhline(0.0, color="0.7", linewidth=0.8)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.set_ylabel("weight")
    _steps(axis)


def _cost(data: RunData, axis: Axes) -> None:
    steps, held = data.series("memory/bytes_held")
    axis.plot(
        steps, np.array(held) / 1024 / data.config.num_envs, color=COLORS[0], label="KiB per environment"
    )
    axis.set_ylabel("KiB")
    axis.set_ylim(bottom=0)
    saved = axis.twinx()
    saved.plot(*data.series("memory/attention_saved"), "--", color=COLORS[1], label="attention saved (right)")
    saved.set_ylim(0, 1.03)
    saved.set_ylabel("share")
    _legend(axis, saved)
    _steps(axis)


def _speed(data: RunData, axis: Axes) -> None:
    steps, seconds = (np.array(part) for part in data.series("time/time_elapsed"))
    rate = np.diff(steps) * 1e6 / np.maximum(np.diff(seconds), 1e-6)
    rate[np.diff(seconds) <= 0] = np.nan  # a resume begins to count anew
    window = max(1, len(rate) // 40)
    smooth = np.convolve(rate, np.ones(window) / window, mode="valid")
    axis.plot(steps[1 : 1 + len(smooth)], smooth, color=COLORS[2])
    axis.set_ylim(bottom=0)
    axis.set_ylabel("steps/s")
    _steps(axis)


def _losses(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("train/value_loss"), color=COLORS[0], label="value loss")
    axis.set_ylabel("value loss")
    entropy = axis.twinx()
    steps, loss = data.series("train/entropy_loss")
    entropy.plot(steps, -np.array(loss), "--", color=COLORS[1], label="entropy (nats, right)")
    entropy.set_ylabel("nats")
    _legend(axis, entropy)
    _steps(axis)


def _heat_panel(layer: int, kind: str) -> Panel:
    name = f"memory/layer{layer}/{kind}_histogram"
    titles = {
        "span": (f"Spans of what is written, layer {layer}", "two groups: forget now, and keep"),
        "age": (f"Ages of what is retained, layer {layer}", "a few old memories among many young ones"),
    }

    def draw(data: RunData, axis: Axes) -> None:
        heat = data.heat(name)
        assert heat is not None
        steps, bins, shares = heat
        edges = np.concatenate([[steps[0] - (steps[1] - steps[0])], steps])
        mesh = axis.pcolormesh(
            edges, bins, np.sqrt(shares), cmap="magma", vmin=0, shading="flat", rasterized=True
        )
        axis.set_yscale("log")
        axis.set_ylabel("steps")
        bar = axis.figure.colorbar(mesh, ax=axis, pad=0.01)
        ticks = [tick for tick in (0.01, 0.05, 0.2, 0.5, 1.0) if tick <= shares.max()]
        bar.set_ticks([float(np.sqrt(tick)) for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
        bar.set_label("of them", fontsize=8)
        _steps(axis)

    title, note = titles[kind]
    return Panel(title, note, lambda data: data.heat(name) is not None, draw)


MOST_LAYERS = 8


def _has(*names: str) -> Callable[[RunData], bool]:
    return lambda data: any(data.series(name)[0] for name in names)


PANELS = [
    Panel(
        "Success, by class of episodes", "all classes rise to 1",
        lambda data: any(name.startswith(("success/", "rollout/success")) for name in data.names),
        _success,
    ),
    Panel("Return and length of episodes", "the return rises", _has("rollout/ep_rew_mean"), _returns),
    Panel("Memories retained", "falls towards the ramp length", _has("memory/possible_mean"), _retained),
    Panel(
        "What becomes of the cues", "recall stays at 1 while precision rises",
        _has("memory/recall"), _retention,
    ),
    *[_heat_panel(layer, kind) for layer in range(1, MOST_LAYERS + 1) for kind in ("span", "age")],
    Panel("Spans", "the mean falls, the longest stays", _has("memory/layer1/span_mean"), _spans),
    Panel("Penalty weight", "0 until the task is solved", _has("memory/penalty_weight"), _penalty),
    Panel("What memory costs", "bytes fall, saved attention rises", _has("memory/attention_saved"), _cost),
    Panel("Training speed", "rises as memories are forgotten", _has("time/time_elapsed"), _speed),
    Panel("Losses", "the value loss falls", _has("train/value_loss"), _losses),
]  # fmt: skip


def _page(folder: RunFolder, data: RunData, panels: Sequence[Panel], sheet: bytes | None) -> str:
    """The HTML page."""
    plt = _pyplot()
    figures = []
    for panel in panels:
        figure, axis = plt.subplots(figsize=PANEL_SIZE, layout="constrained")
        panel.draw(data, axis)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=120)
        plt.close(figure)
        figures.append(
            f"<figure><figcaption><b>{html.escape(panel.title)}</b><br>{html.escape(panel.note)}</figcaption>"
            f'<img alt="{html.escape(panel.title)}" src="{_data_url(buffer.getvalue())}"></figure>'
        )
    config = data.config
    last = data.rows[-1][STEP_KEY]
    parts = [
        f"<h1>{html.escape(folder.name)}</h1>",
        f"<p>{html.escape(config.env)}, {config.algo.upper()}, seed {config.seed}, {last:,} steps</p>",
    ]
    if folder.evaluation_file.is_file():
        found = json.loads(folder.evaluation_file.read_text(encoding="utf-8"))
        rows = "".join(
            f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(_words(value))}</td></tr>"
            for name, value in found.items()
            if name != "by_step" and value is not None
        )
        parts.append(
            f"<details><summary>Final evaluation: {_headline(found)}</summary><table>{rows}</table></details>"
        )
    parts.append(f"<main>{''.join(figures)}</main>")
    if sheet is not None:
        parts.append(
            '<h2>An episode of the best checkpoint</h2><img class="sheet" alt="an episode and its memories" '
            f'src="{_data_url(sheet)}">'
        )
    return PAGE.format(title=html.escape(folder.name), body="\n".join(parts))


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


def _episode_sheet(run: Path) -> bytes | None:
    """One episode of the best checkpoint, if there is one."""
    try:
        trained = TrainedAgent.open(run)
        record = trained.record(seed=trained.config.evaluation.seed, max_steps=2000)
    except ValueError as error:
        sys.stderr.write(f"no episode is shown: {error}\n")
        return None
    return png_bytes(draw_sheet(record))


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError('this needs matplotlib: pip install -c constraints.txt -e ".[docs]"') from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _histogram(value: Any) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of a logged array, however short it was."""
    if isinstance(value, dict):
        return np.array(value["counts"], dtype=float), np.array(value["edges"], dtype=float)
    numbers = np.atleast_1d(np.array(value, dtype=float))
    counts, edges = np.histogram(numbers, 32)
    return counts.astype(float), edges


def _rebinned(counts: np.ndarray, edges: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Shares of a histogram on other bins, each count spread evenly over its own."""
    total = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    edges = np.maximum.accumulate(edges + np.arange(len(edges)) * 1e-9)
    cumulated = np.interp(bins, edges, total, left=0.0, right=1.0)
    cumulated[0] = 0.0  # what lies below the first bin belongs to it
    return np.diff(cumulated)


def _data_url(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_words(part) for part in value)
    return str(value)


def _headline(found: dict[str, Any]) -> str:
    if found.get("success_rate") is not None:
        return f"success {found['success_rate']:.1%} of {found['episodes']:,} episodes"
    return f"return {found['return_mean']:.3f} over {found['episodes']:,} episodes"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first_number(name: str) -> int:
    digits = "".join(c for c in name.split("/")[1].split("-")[0] if c.isdigit())
    return int(digits or 0)


def _spoken(layer: str) -> str:
    return layer.replace("layer", "layer ")


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _style(index: int) -> str:
    return STYLES[index % len(STYLES)]


def _steps(axis: Axes) -> None:
    axis.set_xlabel("environment steps (millions)", fontsize=9)
    axis.margins(x=0.01)


def _legend(axis: Axes, other: Axes, **where: Any) -> None:
    """One legend for both of an axis's scales."""
    handles = [*axis.get_lines(), *other.get_lines()]
    shown = [line for line in handles if not str(line.get_label()).startswith("_")]
    axis.legend(shown, [str(line.get_label()) for line in shown], fontsize=8, **where)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
