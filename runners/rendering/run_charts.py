"""Charts of a run's diagnostics.

matplotlib is an optional dependency, so it is imported inside the functions that draw.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memory_suite.runners.plotting.matplotlib_style import require_matplotlib
from memory_suite.runners.rendering.run_data import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, distinguishable by color-blind readers; line styles distinguish them in gray.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", "--", "-.", ":")
CHART_SIZE = (6.4, 3.0)
"""inches"""
MAX_LAYERS = 8
"""layers with charts of their own"""


class Chart(NamedTuple):
    """One chart."""

    title: str
    note: str
    """what a healthy run shows"""
    has_data: Callable[[RunData], bool]
    draw: Callable[[RunData, Axes], None]


def charts_of(data: RunData) -> list[Chart]:
    """The charts that a run has data for."""
    return [chart for chart in CHARTS if chart.has_data(data)]


def draw_chart(data: RunData, chart: Chart) -> Figure:
    """Draw a chart on a figure of its own, without title."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=CHART_SIZE, layout="constrained")
    chart.draw(data, figure.subplots())
    return figure


def draw_charts(data: RunData, charts: Sequence[Chart], *, title: str, columns: int = 2) -> Figure:
    """Draw charts on one sheet."""
    require_matplotlib()
    from matplotlib.figure import Figure

    rows = -(-len(charts) // columns)
    size = (CHART_SIZE[0] * columns, CHART_SIZE[1] * rows + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for chart, axis in zip(charts, axes.flat, strict=False):
        chart.draw(data, axis)
        axis.set_title(chart.title, fontsize=11, loc="left")
    for axis in axes.flat[len(charts) :]:
        axis.axis("off")
    figure.suptitle(title)
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
    _label_steps(axis)


def _returns(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("rollout/ep_rew_mean"), color=COLORS[0], label="return")
    axis.set_ylabel("return")
    lengths = axis.twinx()
    lengths.plot(*data.series("rollout/ep_len_mean"), "--", color=COLORS[1], label="length (steps, right)")
    lengths.set_ylabel("steps")
    _draw_legend(axis, lengths)
    _label_steps(axis)


def _retained(data: RunData, axis: Axes) -> None:
    for index, layer in enumerate(data.layers):
        axis.plot(
            *data.series(f"memory/{layer}/retained_mean"), _style(index), color=_color(index),
            label=f"retained, {_layer_name(layer)}",
        )  # fmt: skip
    axis.plot(*data.series("memory/possible_mean"), color="0.6", label="possible")
    axis.axhline(data.config.memory.ramp, color="0.6", linestyle=":", label="ramp length")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("memories")
    axis.legend(fontsize=8)
    _label_steps(axis)


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
    _draw_legend(axis, slack, loc="upper center", ncols=4, columnspacing=1.0, handlelength=1.6)
    _label_steps(axis)


def _spans(data: RunData, axis: Axes) -> None:
    for index, layer in enumerate(data.layers):
        axis.plot(
            *data.series(f"memory/{layer}/span_mean"),
            color=_color(index),
            label=f"mean, {_layer_name(layer)}",
        )
        axis.plot(
            *data.series(f"memory/{layer}/span_max"), "--", color=_color(index),
            label=f"longest, {_layer_name(layer)}",
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylabel("span (steps)")
    axis.legend(fontsize=8)
    _label_steps(axis)


def _reliance(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("forgetting/reliance"), color=COLORS[1], label="reliance on memory")
    axis.plot(*data.series("train/forgetting_effect"), "--", color=COLORS[0], label="effect of shorter spans")
    axis.set_ylim(0, 1.03)
    axis.set_ylabel("effect on actions")
    axis.legend(fontsize=8)
    _label_steps(axis)


def _cost(data: RunData, axis: Axes) -> None:
    steps, num_bytes = data.series("memory/bytes_held")
    axis.plot(
        steps, np.array(num_bytes) / 1024 / data.config.num_envs, color=COLORS[0], label="KiB per environment"
    )
    axis.set_ylabel("KiB")
    axis.set_ylim(bottom=0)
    saved = axis.twinx()
    saved.plot(*data.series("memory/attention_saved"), "--", color=COLORS[1], label="attention saved (right)")
    saved.set_ylim(0, 1.03)
    saved.set_ylabel("share")
    _draw_legend(axis, saved)
    _label_steps(axis)


def _speed(data: RunData, axis: Axes) -> None:
    steps, seconds = (np.array(part) for part in data.series("time/time_elapsed"))
    rate = np.diff(steps) * 1e6 / np.maximum(np.diff(seconds), 1e-6)
    rate[np.diff(seconds) <= 0] = np.nan  # the clock restarts when a run is resumed
    window = max(1, len(rate) // 40)
    smooth = np.convolve(rate, np.ones(window) / window, mode="valid")
    axis.plot(steps[1 : 1 + len(smooth)], smooth, color=COLORS[2])
    axis.set_ylim(bottom=0)
    axis.set_ylabel("steps/s")
    _label_steps(axis)


def _losses(data: RunData, axis: Axes) -> None:
    axis.plot(*data.series("train/value_loss"), color=COLORS[0], label="value loss")
    axis.set_ylabel("value loss")
    entropy = axis.twinx()
    steps, loss = data.series("train/entropy_loss")
    entropy.plot(steps, -np.array(loss), "--", color=COLORS[1], label="entropy (nats, right)")
    entropy.set_ylabel("nats")
    _draw_legend(axis, entropy)
    _label_steps(axis)


def _heat_chart(layer: int, quantity: str) -> Chart:
    """A heat map over time of a layer's spans or ages."""
    name = f"memory/layer{layer}/{quantity}_histogram"
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
        _label_steps(axis)

    title, note = titles[quantity]
    return Chart(title, note, lambda data: data.heat(name) is not None, draw)


def _has(*names: str) -> Callable[[RunData], bool]:
    """Whether any of the metrics was logged, for `Chart.has_data`."""
    return lambda data: any(data.series(name)[0] for name in names)


CHARTS = [
    Chart(
        "Success, by class of episodes", "all classes rise to 1",
        lambda data: any(name.startswith(("success/", "rollout/success")) for name in data.names),
        _success,
    ),
    Chart("Return and length of episodes", "the return rises", _has("rollout/ep_rew_mean"), _returns),
    Chart("Memories retained", "falls towards the ramp length", _has("memory/possible_mean"), _retained),
    Chart(
        "What becomes of the cues", "recall stays at 1 while precision rises",
        _has("memory/recall"), _retention,
    ),
    *[_heat_chart(layer, quantity) for layer in range(1, MAX_LAYERS + 1) for quantity in ("span", "age")],
    Chart("Spans", "the mean falls, the longest stays", _has("memory/layer1/span_mean"), _spans),
    Chart(
        "Dependence on memory", "reliance rises, the effect of shorter spans stays small",
        _has("forgetting/reliance"), _reliance,
    ),
    Chart("What memory costs", "bytes fall, saved attention rises", _has("memory/attention_saved"), _cost),
    Chart("Training speed", "rises as memories are forgotten", _has("time/time_elapsed"), _speed),
    Chart("Losses", "the value loss falls", _has("train/value_loss"), _losses),
]  # fmt: skip


def _first_number(name: str) -> int:
    """Sort key of a class of episodes, such as 3 for success/3-20."""
    digits = "".join(c for c in name.split("/")[1].split("-")[0] if c.isdigit())
    return int(digits or 0)


def _layer_name(layer: str) -> str:
    return layer.replace("layer", "layer ")


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _style(index: int) -> str:
    return STYLES[index % len(STYLES)]


def _label_steps(axis: Axes) -> None:
    """Label the horizontal axis, shared by all charts."""
    axis.set_xlabel("environment steps (millions)", fontsize=9)
    axis.margins(x=0.01)


def _draw_legend(axis: Axes, other: Axes, **where: Any) -> None:
    """Draw one legend for both vertical scales."""
    handles = [*axis.get_lines(), *other.get_lines()]
    shown = [line for line in handles if not str(line.get_label()).startswith("_")]
    axis.legend(shown, [str(line.get_label()) for line in shown], fontsize=8, **where)
