"""Draw the charts of a run, and an episode, as one page: what Weights & Biases shows, offline.

    python runners/report.py --run runs/NAME                   report.html in the run folder
    python runners/report.py --run runs/NAME --out report.pdf  or .png, the charts alone

Needs matplotlib: `pip install -c constraints.txt -e ".[docs]"`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a script: import from the checkout, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1] / "src")

import json
from dataclasses import dataclass

from memory_suite.agents.serialization.archive import write_file_atomically
from memory_suite.configs import command_line
from memory_suite.configs.agent_schema import from_yaml
from memory_suite.configs.command_line import exit_on_error
from memory_suite.runners.plotting.matplotlib_style import require_matplotlib
from memory_suite.runners.rendering.picture import draw_sheet
from memory_suite.runners.rendering.report_page import report_page
from memory_suite.runners.rendering.run_charts import charts_of, draw_charts
from memory_suite.runners.rendering.run_data import RunData
from memory_suite.runners.rendering.video import png_bytes
from memory_suite.runners.run.folder import RunFolder
from memory_suite.runners.run.metrics_file import read_metrics
from memory_suite.runners.training.trained_agent import TrainedAgent


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportCommand:
    """Draw the charts of a run as one page."""

    run: Path
    """run folder"""
    out: Path | None = None
    """file to write, .html, .pdf or .png; none: report.html in the run folder"""
    episode: bool = True
    """also play an episode of the best checkpoint and show it (HTML only)"""

    def __post_init__(self) -> None:
        """Validate."""
        if self.out is not None and self.out.suffix not in (".html", ".pdf", ".png"):
            raise ValueError(f"out must end in .html, .pdf or .png, got {self.out}")
        command_line.check_output(self.out, "out")


def main(argv: list[str] | None = None) -> int:
    """Read the metrics of a run, write the page."""
    command = command_line.parse(ReportCommand, argv)
    print(f"written to {exit_on_error(lambda: write_report(command))}")
    return 0


def write_report(command: ReportCommand) -> Path:
    """Write the report; return its path.

    Raises:
        ValueError: the folder is no run of an agent, or has no row of metrics yet.
    """
    require_matplotlib()
    folder = RunFolder.open(command.run)
    config = from_yaml(folder.config_file)
    rows = read_metrics(folder.metrics_file)
    if not rows:
        raise ValueError(f"{folder.metrics_file} has no row yet")
    out = folder.path / "report.html" if command.out is None else command.out
    data = RunData(rows, config)
    charts = charts_of(data)
    if out.suffix == ".html":
        evaluation = None
        if folder.evaluation_file.is_file():
            evaluation = json.loads(folder.evaluation_file.read_text(encoding="utf-8"))
        sheet = _episode_sheet(command.run) if command.episode else None
        page = report_page(folder.name, data, charts, evaluation=evaluation, sheet=sheet)
        write_file_atomically(out, page.encode())
    else:
        figure = draw_charts(data, charts, title=f"{config.env}, {config.algo.upper()}, seed {config.seed}")
        figure.savefig(out, dpi=100)
    return out


def _episode_sheet(run: Path) -> bytes | None:
    """An episode of the best checkpoint as PNG; None if it cannot be played."""
    try:
        trained = TrainedAgent.open(run)
        record = trained.record(seed=trained.config.evaluation.seed, max_steps=2000)
    except ValueError as error:
        sys.stderr.write(f"no episode is shown: {error}\n")
        return None
    return png_bytes(draw_sheet(record))


if __name__ == "__main__":
    sys.exit(command_line.run(main))
