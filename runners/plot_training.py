"""Draw a training run: success, memories retained, and what forgetting cost.

    python runners/plot_training.py --run runs/NAME --out training.png

Needs matplotlib: `pip install -c constraints.txt -e ".[docs]"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from runners/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass
from typing import Any

from configs import command_line
from configs.schema import from_yaml
from runners.run_folder import RunFolder
from runners.tracking import read_metrics

CLASS_COLORS = ("#4c72b0", "#55a868", "#dd8452", "#c44e52", "#8172b3", "#937860")
LAYER_COLORS = ("#2f4b7c", "#a05195", "#f95d6a", "#ffa600")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlotCommand:
    """Draw a training run."""

    run: Path
    """run folder"""
    out: Path | None = None
    """picture to write (its ending says the format); none: training.png in the run folder"""


def main(argv: list[str] | None = None) -> int:
    """Read metrics.jsonl, write a picture."""
    command = command_line.parse(PlotCommand, argv)
    folder = command_line.or_exit(lambda: RunFolder.open(command.run))
    rows = read_metrics(folder.metrics_file)
    if not rows:
        sys.stderr.write(f"error: {folder.metrics_file} has no row yet\n")
        return 2
    out = folder.path / "training.png" if command.out is None else command.out
    draw(rows, from_yaml(folder.config_file).memory.ramp, folder.name, out)
    print(f"written to {out}")
    return 0


def draw(rows: list[dict[str, Any]], ramp: int, title: str, out: Path) -> None:
    """Three charts over the same steps, one below the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = sorted({name for row in rows for name in row})

    def series(name: str) -> tuple[list[float], list[float]]:
        known = [(row["time/total_timesteps"] / 1e6, row[name]) for row in rows if row.get(name) is not None]
        return [x for x, _ in known], [y for _, y in known]

    figure, (success, memory, spans) = plt.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    classes = [name for name in names if name.startswith("success/") and name != "success/worst"]
    classes.sort(
        key=lambda name: int("".join(c for c in name.split("/")[1].split("-")[0] if c.isdigit()) or 0)
    )
    styles = ("-", "--", "-.", ":")
    for index, name in enumerate(classes):
        label = name.removeprefix("success/")
        success.plot(*series(name), styles[index % 4], color=CLASS_COLORS[index % 6], label=label)
    success.axhline(0.5, color="0.7", linewidth=0.8)
    success.set_ylabel("success, by class of episodes")
    success.set_ylim(0, 1.02)
    success.legend(loc="lower right", fontsize="small")
    layers = [name for name in names if name.endswith("/retained_mean")]
    for index, name in enumerate(layers):
        label = name.split("/")[1].replace("layer", "layer ")
        memory.plot(*series(name), color=LAYER_COLORS[index % 4], label=f"retained, {label}")
    memory.plot(*series("memory/possible_mean"), color="0.6", label="possible")
    memory.axhline(ramp, color="0.6", linestyle=":", label="ramp length")
    memory.set_ylabel("memories")
    memory.set_ylim(bottom=0)
    memory.legend(loc="upper right", fontsize="small")
    for index, name in enumerate(layers):
        layer = name.split("/")[1]
        color = LAYER_COLORS[index % 4]
        spans.plot(*series(f"memory/{layer}/span_mean"), color=color, label=f"mean span, {layer}")
        spans.plot(
            *series(f"memory/{layer}/span_max"), color=color, linestyle="--", label=f"longest span, {layer}"
        )
    spans.set_yscale("log")
    spans.set_ylabel("span (steps)")
    spans.set_xlabel("environment steps (millions)")
    spans.legend(loc="center left", fontsize="small")
    weight = spans.twinx()
    weight.plot(*series("memory/penalty_weight"), color="#c44e52", linewidth=0.8)
    weight.set_ylabel("penalty weight", color="#c44e52")
    figure.suptitle(title)
    figure.savefig(out, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(command_line.run(main))
