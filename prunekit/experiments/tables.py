"""Tables of comparisons, means and single runs as CSV, Markdown and LaTeX, in the layout of the report's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.experiments.comparisons import Comparison, Point, sample
from prunekit.experiments.sentences import number, spread
from prunekit.experiments.values import Configuration, Values
from prunekit.files import csv_text, write_text

_SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", **{sign: f"\\{sign}" for sign in "&%$#_{}"}}


@dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        stem: Of its files.
        title: Its caption.
        headings: Of the columns; the first one holds what a row is called.
        rows: Cells in the columns' order.
    """

    stem: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """Return it as CSV with a header."""
        return csv_text(self.headings, self.rows)

    def markdown(self) -> str:
        """Return it in the Markdown of GitHub."""
        rule = "|---" + "|---:" * (len(self.headings) - 1) + "|"
        first, *rest = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in self._lines())
        return "\n".join([f"{self.title}\n", first, rule, *rest]) + "\n"

    def latex(self) -> str:
        """Return it as a LaTeX table, which needs the package booktabs."""
        first, *rest = (" & ".join(map(_escaped, row)) + r" \\" for row in self._lines())
        columns = "l" + "r" * (len(self.headings) - 1)
        lines = [
            r"\begin{table}", rf"\caption{{{_escaped(self.title)}}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule",
            first, r"\midrule", *rest, r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"

    def _lines(self) -> list[tuple[str, ...]]:
        return [self.headings, *self.rows]


_FORMATS: dict[str, Callable[[Table], str]] = {"csv": Table.csv, "md": Table.markdown, "tex": Table.latex}


def write_tables(tables: Sequence[Table], folder: Path) -> None:
    """Write each table as CSV, Markdown and LaTeX."""
    for table in tables:
        for suffix, text in _FORMATS.items():
            write_text(folder / f"{table.stem}.{suffix}", text(table))


def p_value_table(comparisons: Sequence[Comparison], metric: str, values: Values) -> Table:
    """Return the p-values of a metric as in the report's tables I to IV: comparison by ratio."""
    rows = [
        (comparison.name, *_by_ratio(comparison, values.ratios, lambda point: _p(point.anova_p)))
        for comparison in comparisons
        if comparison.metric == metric
    ]
    return Table(f"p-values-{metric}", f"p-values from ANOVA tests on {metric}", _headings(values), tuple(rows))


def mean_table(metric: str, values: Values) -> Table:
    """Return mean ± standard deviation over the runs of a metric: configuration by ratio."""
    rows = [
        (values.name(configuration), *(_mean(values, configuration, metric, ratio) for ratio in values.ratios))
        for configuration in values.configurations
    ]
    return Table(f"means-{metric}", f"{metric}: mean ± standard deviation (n − 1)", _headings(values), tuple(rows))


def run_tables(metric: str, values: Values) -> list[Table]:
    """Return a metric's single values as in the report's tables V to XIV: run by ratio, one table a configuration."""
    return [_run_table(metric, configuration, values) for configuration in values.configurations]


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """Return all that is known of each comparison at each ratio, a row each."""
    headings = (
        "metric", "comparison", "factor", "pruning_ratio_percent", "first", "first_runs", "first_mean", "first_sd",
        "second", "second_runs", "second_mean", "second_sd", "anova_p", "welch_p", "holm_p", "hedges_g", "hedges_g_low",
        "hedges_g_high", "same_model", "significant",
    )  # fmt: skip
    rows = tuple(_long_row(comparison, point) for comparison in comparisons for point in comparison.points)
    return Table("comparisons", "All comparisons", headings, rows)


def all_tables(values: Values, comparisons: Sequence[Comparison]) -> list[Table]:
    """Return every table of the values: comparisons, p-values, means, single runs."""
    tables = [comparison_table(comparisons)]
    for metric in values.metrics:
        tables += [p_value_table(comparisons, metric, values), mean_table(metric, values), *run_tables(metric, values)]
    return tables


def _run_table(metric: str, configuration: Configuration, values: Values) -> Table:
    columns = [values.of(configuration, metric, ratio) for ratio in values.ratios]
    runs = dict.fromkeys(run for column in columns for run in column)
    rows = [(f"run {run}", *(_cell(column.get(run)) for column in columns)) for run in runs]
    samples = [sample(list(column.values())) if column else None for column in columns]
    rows += [("max", *(_cell(max(column.values(), default=None)) for column in columns))]
    rows += [("min", *(_cell(min(column.values(), default=None)) for column in columns))]
    rows += [("mean", *("–" if found is None else f"{found.mean:.4g}" for found in samples))]
    rows += [("standard deviation", *("–" if f is None or f.sd is None else f"{f.sd:.1e}" for f in samples))]
    name = values.name(configuration)
    stem = f"runs-{metric}-{name.replace(', ', '-').replace(' ', '_').replace('/', '_')}"
    return Table(stem, f"{metric} of each run: {name}", _headings(values), tuple(rows))


def _long_row(comparison: Comparison, point: Point) -> tuple[str, ...]:
    cells: list[object] = [comparison.metric, comparison.name, comparison.factor, f"{point.ratio:g}"]
    for name, found in zip(comparison.names, (point.first, point.second), strict=True):
        cells += [name, found.count, found.mean, found.sd]
    effect = point.effect
    cells += [point.anova_p, point.welch_p, point.holm_p]
    cells += [effect.g, effect.low, effect.high] if effect else [None] * 3
    cells += [point.is_same_model, point.is_significant]
    return tuple("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells)


def _headings(values: Values) -> tuple[str, ...]:
    return ("Pruning ratio", *map(values.target, values.ratios))


def _by_ratio(comparison: Comparison, ratios: Sequence[float], show: Callable[[Point], str]) -> list[str]:
    points = {point.ratio: show(point) for point in comparison.points}
    return [points.get(ratio, "–") for ratio in ratios]


def _mean(values: Values, configuration: Configuration, metric: str, ratio: float) -> str:
    found = list(values.of(configuration, metric, ratio).values())
    return f"{spread(sample(found))} ({len(found)})" if found else "–"


def _p(p: float | None) -> str:
    return "–" if p is None else number(p)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
