"""What was measured, over and over: each metric of each configuration at each pruning ratio, one value a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from prunekit.errors import InputError

#: One level of each factor, in the factors' order: ("unstructured", "deeplift", "colour").
Configuration = tuple[str, ...]
#: The level of the factor `structure` that marks weights as they were given, which no configuration pruned.
GIVEN = "none"
_RATIOS, _MEASURED = ("pruning_ratio_percent", "ratio"), ("metric", "run", "value")
_LABELS = ("table",)  # columns that only say where a value was printed


class Cell(NamedTuple):
    """What was measured of what.

    Attributes:
        configuration: Of the models.
        metric: Its name: "map", "latency_ms".
        ratio: Pruning ratio in percent.
    """

    configuration: Configuration
    metric: str
    ratio: float


@dataclass(frozen=True)
class Values:
    """Measured values.

    Attributes:
        factors: The names of what configurations differ in.
        cells: Values by run, by what was measured.
        given: Values of the weights as they were given, before any training, by metric.
        budgets: What was asked for instead of a ratio, by the ratio that it came to.
    """

    factors: tuple[str, ...]
    cells: Mapping[Cell, Mapping[str, float]]
    given: Mapping[str, tuple[float, ...]]
    budgets: Mapping[float, str] = field(default_factory=dict)

    @property
    def configurations(self) -> tuple[Configuration, ...]:
        """All configurations, in the order in which they were met."""
        return tuple(dict.fromkeys(cell.configuration for cell in self.cells))

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics, in the order in which they were met."""
        return tuple(dict.fromkeys(cell.metric for cell in self.cells))

    @property
    def ratios(self) -> tuple[float, ...]:
        """All pruning ratios in percent, ascending."""
        return tuple(sorted({cell.ratio for cell in self.cells}))

    def of(self, configuration: Configuration, metric: str, ratio: float) -> Mapping[str, float]:
        """Return the values of a cell by run; empty where nothing was measured."""
        return self.cells.get(Cell(configuration, metric, ratio), {})

    def with_given(self, given: Mapping[str, float]) -> Values:
        """Return the same with values of the weights as they were given; InputError for a metric that is not there."""
        for metric in given:
            if metric not in self.metrics:
                raise InputError(f"--given: expected a metric among {', '.join(self.metrics)}, got {metric!r}.")
        return replace(self, given={**self.given, **{metric: (value,) for metric, value in given.items()}})

    def target(self, ratio: float) -> str:
        """Return what people call a ratio: 50 %, or the budget that came to it."""
        return self.budgets.get(ratio, f"{ratio:g} %")

    def name(self, configuration: Configuration) -> str:
        """Return what people call a configuration: the levels of the factors that vary."""
        varying = [len({other[i] for other in self.configurations}) > 1 for i in range(len(self.factors))]
        levels = [level for level, varies in zip(configuration, varying, strict=True) if varies]
        return ", ".join(levels or configuration)


def is_latency(metric: str) -> bool:
    """Return whether a metric is a time, which is lower for better models and depends on the machine."""
    return metric.endswith("_ms") or "latency" in metric


def read_values(path: Path) -> Values:
    """Read a table of values as CSV.

    A line is one value: its columns `metric`, `run`, `value` and `pruning_ratio_percent` (or `ratio`); any other column
    is a factor, but for `table`, a label.

    Raises:
        InputError: When there is no such file, a column is missing, or a value is no number or there twice.
    """
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            return collect(list(reader), reader.fieldnames or [], str(path))
    except (OSError, UnicodeDecodeError, csv.Error):
        raise InputError(f"Expected a table of values as CSV, but {path} cannot be read.") from None


def collect(rows: Sequence[Mapping[str, str]], columns: Sequence[str], where: str) -> Values:
    """Collect values from rows with these columns, as `read_values` describes them; `where` is named in messages."""
    ratio = next((name for name in _RATIOS if name in columns), _RATIOS[0])
    if absent := [name for name in (*_MEASURED, ratio) if name not in columns]:
        raise InputError(
            f"Expected values with the columns {', '.join((*_MEASURED, ratio))}, got none {absent[0]} in {where}."
        )
    if not rows:
        raise InputError(f"Expected values, one a line, got none in {where}.")
    factors = tuple(name for name in columns if name and name not in (*_MEASURED, *_RATIOS, *_LABELS))
    cells: dict[Cell, dict[str, float]] = {}
    given: dict[str, tuple[float, ...]] = {}
    for line, row in enumerate(rows, 2):
        value = _number(row, "value", f"line {line} of {where}")
        if row.get("structure") == GIVEN:
            given[row["metric"]] = (*given.get(row["metric"], ()), value)
            continue
        configuration = tuple(row[name] or "" for name in factors)
        runs = cells.setdefault(Cell(configuration, row["metric"], _number(row, ratio, f"line {line} of {where}")), {})
        if row["run"] in runs:
            raise InputError(
                f"Expected each run once in a configuration, got {row['run']} again in line {line} of {where}."
            )
        runs[row["run"]] = value
    return Values(factors, cells, given)


def _number(row: Mapping[str, str | None], name: str, where: str) -> float:
    try:
        value = float(row[name] or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"Expected a number as {name}, got {row[name]!r} in {where}.")
    return value
