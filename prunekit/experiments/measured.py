"""The values of an experiment's folder: what its finished runs measured, by the factors of its plan."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from prunekit.errors import InputError
from prunekit.experiments.plan import BUDGET
from prunekit.experiments.records import ROWS, kept_plan
from prunekit.experiments.values import Values, collect
from prunekit.pipeline import RunFolder

Row = Mapping[str, str]


def measured_values(folder: Path) -> Values:
    """Collect accuracy under attack and clean, and latency, of all finished runs; a run is called by its seed.

    What was pruned by a budget stands at the mean ratio that the budget came to over all runs and configurations.

    Raises:
        InputError: When the folder is no experiment's, or no run in it is finished.
    """
    factors = kept_plan(folder).factor_names
    rows = finished_rows(folder)
    ratios = _ratios_of_budgets(rows)
    main = RunFolder(folder / "runs" / rows[0]["run"]).task().figures[0].column
    values = [
        {name: named_level(name, row[name]) for name in factors}
        | {"metric": metric, "run": row["seed"], "value": row[metric]}
        | {"ratio": str(ratios.get(row.get(BUDGET, ""), row["ratio"]))}
        for metric in (f"attacked_{main}", main, "latency_ms")
        for row in rows
        if row.get(metric)
    ]
    budgets = {ratio: budget for budget, ratio in ratios.items()}
    return replace(collect(values, list(values[0]), str(folder)), budgets=budgets)


def named_level(factor: str, level: str) -> str:
    """Return what people call a level: a word as it stands, a truth value or a number by its factor's name."""
    if level in ("True", "False"):
        opposite = "color" if factor == "grayscale" else f"no {factor}"
        return factor if level == "True" else opposite
    return f"{factor} {level}" if _is_number(level) else level


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def finished_rows(folder: Path) -> list[Row]:
    """Read the rows of all finished runs of an experiment's folder; InputError where there are none."""
    try:
        with (folder / ROWS).open(newline="") as file:
            rows: list[Row] = list(csv.DictReader(file))
    except OSError:
        rows = []
    if not rows:
        raise InputError(f"Expected finished runs, got none in {folder / ROWS}: run prunekit experiment again.")
    return rows


def _ratios_of_budgets(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean ratio in percent that each budget came to."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if budget := row.get(BUDGET):
            found.setdefault(budget, []).append(float(row["ratio"]))
    return {budget: fmean(ratios) for budget, ratios in found.items()}
