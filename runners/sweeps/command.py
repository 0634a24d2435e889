"""Main function of all sweep commands: add members, run them, write tables and figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memory_suite.configs.command_line import display_path, exit_on_error
from memory_suite.runners.plotting.matplotlib_style import image_bytes
from memory_suite.runners.run.processes import usable_cores
from memory_suite.runners.run.signals import EXIT_SAVED, GracefulStop
from memory_suite.runners.sweeps import ray_tune, results, slurm, wandb_sweep
from memory_suite.runners.sweeps.attempts import run_attempts
from memory_suite.runners.sweeps.folder import Member, Sweep, SweepError
from memory_suite.runners.sweeps.options import SweepOptions, check_environments
from memory_suite.runners.sweeps.results import TableRow
from memory_suite.runners.sweeps.watch import FAILED, Watch
from memory_suite.runners.sweeps.worker import LocalAttempt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Draw = Callable[[Sequence[TableRow], str], "Figure"]
"""draws the rows of a table, with a caption"""


Backend = Callable[[Watch, GracefulStop], None]
"""runs the unfinished members of a watch until they end or a stop is requested"""


def run_sweep(
    sweep: Sweep, members: Sequence[Member], options: SweepOptions, draw: Draw, *, online: bool = False
) -> int:
    """Train the unfinished members, then write tables and figures of the finished ones.

    An invalid option ends the program with exit code 2, before training starts.

    Args:
        sweep: the folder.
        members: members of this command.
        options: options of the command.
        draw: draws the figure.
        online: register and run a W&B sweep instead of only writing its definition.

    Returns:
        0: all is finished, or handed over to agents; 75: interrupted and saved; 1: some member failed.
    """
    if options.redraw:
        for path in exit_on_error(lambda: _redraw(sweep, draw, members[0].columns)):
            print(f"written to {display_path(path)}")
        return 0
    exit_on_error(lambda: _write_down(sweep, members))
    watch = Watch(sweep, members)
    if watch.left():
        backend = exit_on_error(lambda: _make_backend(sweep, watch.left(), options, online))
        with GracefulStop() as stop, watch:
            backend(watch, stop)
    rows = results.collect(sweep)
    for path in _write_results(sweep, rows, draw) if rows else []:
        watch.note(f"written to {display_path(path)}")
    if watch.count(FAILED):
        return 1
    handed_over = options.backend == "wandb" and not online
    return EXIT_SAVED if watch.left() and not handed_over else 0


def _write_down(sweep: Sweep, members: Sequence[Member]) -> None:
    results.check_packages()
    check_environments(members)
    sweep.add(members)


def _make_backend(sweep: Sweep, left: Sequence[Member], options: SweepOptions, online: bool) -> Backend:
    cores = len(usable_cores())
    match options.backend:
        case "local":
            workers = options.workers or cores
            return functools.partial(
                run_attempts, sweep, LocalAttempt.start, workers=workers, retries=options.retries
            )
        case "slurm":
            executor = options.slurm_executor
            return functools.partial(
                run_attempts,
                sweep,
                slurm.make_start(sweep, executor, options.slurm_args),
                workers=options.workers or (None if executor == "slurm" else cores),
                retries=options.retries,
                poll_seconds=slurm.POLL_SECONDS[executor],
            )
        case "ray":
            threads = max(member.config.threads for member in left)
            ray_tune.connect(options.address, None if options.workers is None else options.workers * threads)
            return functools.partial(
                ray_tune.run_trials, sweep, threads=threads, workers=options.workers, retries=options.retries
            )
        case "wandb":
            return wandb_sweep.make_backend(sweep, left, agents=options.workers or cores, online=online)


def _redraw(sweep: Sweep, draw: Draw, columns: Iterable[str]) -> list[Path]:
    """Write tables and figures of the finished members, or figures of table.csv if it is all there is.

    Raises:
        SweepError: there is neither, or the sweep varies other `columns`.
    """
    results.check_packages()
    collected = results.collect(sweep)
    rows = collected or results.read_table(sweep.path / "table.csv")
    missing = [name for name in columns if name not in rows[0]]
    if missing:
        raise SweepError(f"run: {sweep.path} holds another kind of sweep: {', '.join(missing)} is not in it")
    return _write_results(sweep, rows, draw) if collected else _write_pictures(sweep, rows, draw)


def _write_results(sweep: Sweep, rows: Sequence[TableRow], draw: Draw) -> list[Path]:
    return [*results.write_tables(sweep, rows), *_write_pictures(sweep, rows, draw)]


def _write_pictures(sweep: Sweep, rows: Sequence[TableRow], draw: Draw) -> list[Path]:
    """Draw the rows of a table as PNG and PDF."""
    figure = draw(rows, _caption(rows))
    return [sweep.write(f"{sweep.path.name}.{form}", image_bytes(figure, form)) for form in ("png", "pdf")]


def _caption(rows: Sequence[TableRow]) -> str:
    """The figure's caption: environment, statistic, seeds and episodes."""
    seeds = sorted({len(group) for group in results.groups(rows).values()})
    episodes = sorted({int(row["episodes"] or 0) for row in rows})
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    played = " or ".join(f"{count:,}" for count in episodes)
    envs = ", ".join(sorted({str(row["env"]) for row in rows}))
    return (
        f"{envs}: interquartile mean of {number} seeds, 95% stratified bootstrap intervals, "
        f"{played} unseen episodes per run"
    )
