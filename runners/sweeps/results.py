"""Tables of a sweep: one row per run, and one row per setting with confidence intervals.

table.csv, table.parquet        tidy: a row for every run (and every test setting)
summary.csv, summary.parquet    a row for every setting: all seeds, with intervals
options.yaml                    options equal in all runs, and options that differ
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memory_suite.configs.command_line import Scalar
from memory_suite.runners.sweeps.folder import Member, Sweep, SweepError, TestSetting, flat_options
from memory_suite.runners.sweeps.robust_statistics import (
    Estimate,
    Statistic,
    estimate,
    interquartile_mean,
    mean,
)

TableRow = dict[str, Scalar | None]

RUN_COLUMNS = ("run", "seed", "env", "episodes")
"""columns that identify a run, besides those that the sweep varies"""
MEASURES = (
    *("success", "success_low", "success_high", "return_mean", "length_mean"),
    *("rows_held", "rows_possible", "bytes_held", "cue_recall", "cue_precision"),
    *("steps", "training_seconds"),
)
"""columns of results; docs/sweeps.md explains them"""

_MISSING_PACKAGE = 'the tables and pictures of a sweep need {}: pip install -c constraints.txt -e ".[sweep]"'


def check_packages() -> None:
    """Check that the packages for tables and figures are installed, before training starts.

    Raises:
        SweepError: a package is missing.
    """
    missing = [name for name in ("pyarrow", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise SweepError(_MISSING_PACKAGE.format(" and ".join(missing)))


def collect(sweep: Sweep) -> list[TableRow]:
    """A row for every result, in the order of the members.

    A member with test settings has a row for each of them; any other member has one row.
    """
    rows: list[TableRow] = []
    for member in sweep.members():
        for setting in member.test_settings or (None,):
            if sweep.has_trained(member.name) and sweep.evaluation_file(member.name, setting).is_file():
                rows.append(_row(sweep, member, setting))
    return rows


def _row(sweep: Sweep, member: Member, setting: TestSetting | None) -> TableRow:
    result = json.loads(sweep.evaluation_file(member.name, setting).read_bytes())
    low, high = result["success_ci95"] or (None, None)
    return {
        "run": member.name,
        **member.columns,
        **({} if setting is None else setting.columns),
        "env": member.config.env,
        "episodes": result["episodes"],
        "success": result["success_rate"],
        "success_low": low,
        "success_high": high,
        "return_mean": result["return_mean"],
        "length_mean": result["length_mean"],
        "rows_held": sum(result["retained_mean"], 0.0),
        "rows_possible": result["possible_mean"] * len(result["retained_mean"]),
        "bytes_held": result["bytes_held_mean"],
        "cue_recall": result["cue_recall"],
        "cue_precision": result["cue_precision"],
        "steps": sweep.trained_steps(member.name),
        "training_seconds": sweep.training_seconds(member.name),
    }


def varied_columns(rows: Sequence[TableRow]) -> list[str]:
    """Columns that the sweep varies, in order, without the seed."""
    return [column for column in rows[0] if column not in (*RUN_COLUMNS, *MEASURES)] if rows else []


def score_column(rows: Sequence[TableRow]) -> str:
    """Column of the score: success, or the return if the environment does not report success."""
    return "success" if all(row["success"] is not None for row in rows) else "return_mean"


def groups(rows: Sequence[TableRow]) -> dict[tuple[Scalar | None, ...], list[TableRow]]:
    """Rows that differ only in the seed, by the values of the varied columns."""
    columns = varied_columns(rows)
    found: dict[tuple[Scalar | None, ...], list[TableRow]] = {}
    for row in rows:
        found.setdefault(tuple(row[column] for column in columns), []).append(row)
    return found


def summary(rows: Sequence[TableRow]) -> list[TableRow]:
    """A row for every group: interquartile mean of the score, means of memory and cost."""
    score = score_column(rows)
    columns = varied_columns(rows)
    summaries: list[TableRow] = []
    for values, group in groups(rows).items():
        entry: TableRow = dict(zip(columns, values, strict=True))
        entry |= {"env": group[0]["env"], "runs": len(group)}
        for column, statistic in _STATISTICS:
            if column == "score":
                entry |= _estimated(group, score, f"{score}_iqm", statistic)
            else:
                entry |= _estimated(group, column, f"{column}_mean", statistic)
        summaries.append(entry)
    return summaries


_STATISTICS: tuple[tuple[str, Statistic], ...] = (
    ("score", interquartile_mean),
    ("rows_held", mean),
    ("bytes_held", mean),
    ("steps", mean),
    ("training_seconds", mean),
)


def _estimated(group: Sequence[TableRow], column: str, name: str, statistic: Statistic) -> TableRow:
    """A statistic of a column and its interval; a sweep has one environment, so one stratum."""
    found: Estimate = estimate([[float(row[column] or 0.0) for row in group]], statistic)
    low, high = (None if math.isnan(end) else end for end in (found.low, found.high))
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def write_tables(sweep: Sweep, rows: Sequence[TableRow]) -> list[Path]:
    """Write table and summary as CSV and Parquet, and the options; return their paths."""
    written: list[Path] = []
    for name, table in (("table", rows), ("summary", summary(rows))):
        written.append(sweep.write(f"{name}.csv", _csv(table).encode()))
        written.append(sweep.write(f"{name}.parquet", _parquet(table)))
    text = yaml.safe_dump(_equal_and_varied(sweep.members()), sort_keys=False)
    written.append(sweep.write("options.yaml", text.encode()))
    return written


def _equal_and_varied(members: Sequence[Member]) -> dict[str, Any]:
    options = [flat_options(member.config) for member in members]
    equal = {name: value for name, value in options[0].items() if all(o.get(name) == value for o in options)}
    varied = {
        member.name: {name: value for name, value in own.items() if name not in equal}
        for member, own in zip(members, options, strict=True)
    }
    return {"equal_for_all": equal, "varied": varied}


def _csv(rows: Sequence[TableRow]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _parquet(rows: Sequence[TableRow]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    buffer = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue().to_pybytes()


def read_table(path: Path) -> list[TableRow]:
    """A table.csv, with numbers as numbers.

    Raises:
        SweepError: there is none, or it is no table of a sweep.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{path} cannot be read: {error}") from None
    if not rows:
        raise SweepError(f"{path} has no row")
    missing = [name for name in (*RUN_COLUMNS, *MEASURES) if name not in rows[0]]
    if missing:
        raise SweepError(f"{path} is no table of a sweep: it lacks the columns {', '.join(missing)}")
    return rows


def _value(text: str | None) -> Scalar | None:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
