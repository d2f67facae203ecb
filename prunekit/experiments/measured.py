"""The values of an experiment's folder: what its finished runs measured, by the factors of its plan."""

from __future__ import annotations

import csv
from pathlib import Path

from prunekit.errors import InputError
from prunekit.experiments.records import ROWS, kept_plan
from prunekit.experiments.values import Values, collect
from prunekit.pipeline import RunFolder


def measured_values(folder: Path) -> Values:
    """Collect accuracy under attack and clean, and latency, of all finished runs; a run is called by its seed.

    Raises:
        InputError: When the folder is no experiment's, or no run in it is finished.
    """
    factors = kept_plan(folder).factor_names
    with _rows(folder).open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise InputError(f"Expected finished runs, got none in {folder}: run prunekit experiment again.")
    main = RunFolder(folder / "runs" / rows[0]["run"]).task().figures[0].column
    values = [
        {name: row[name] for name in factors}
        | {"metric": metric, "run": row["seed"], "ratio": row["ratio"], "value": row[metric]}
        for metric in (f"attacked_{main}", main, "latency_ms")
        for row in rows
        if row.get(metric)
    ]
    return collect(values, list(values[0]), str(folder))


def _rows(folder: Path) -> Path:
    path = folder / ROWS
    if not path.is_file():
        raise InputError(f"Expected finished runs, got no {ROWS} in {folder}: run prunekit experiment again.")
    return path
