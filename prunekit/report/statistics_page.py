"""The page on many runs: what differs and what does not, with tables, figures and sentences, all from the values."""

from __future__ import annotations

from pathlib import Path

from prunekit.experiments.comparisons import ALPHA, compare
from prunekit.experiments.sentences import describe, oddities, summarize
from prunekit.experiments.tables import all_tables, mean_table, p_value_table, write_tables
from prunekit.experiments.values import Values
from prunekit.files import write_text
from prunekit.report.page import data_uri, template
from prunekit.report.samples import write_samples
from prunekit.report.statistics_plots import write_statistics_plots


def write_statistics(values: Values, out: Path, source: str, experiment: Path | None = None) -> Path:
    """Write statistics.html with tables/ (CSV, Markdown, LaTeX) and figures/ (PNG, SVG) next to it.

    Args:
        values: What was measured.
        out: The folder, made if it is new; files of the same names are replaced.
        source: Where the values come from, for the page.
        experiment: The folder of the experiment that they are of, whose images are shown.

    Returns:
        The page's path.
    """
    comparisons = compare(values)
    write_tables(all_tables(values, comparisons), out / "tables")
    figures = write_statistics_plots(values, comparisons, out / "figures")
    samples = write_samples(experiment, values, out / "figures") if experiment is not None else []
    sections = [
        {
            "metric": metric,
            "figures": [data_uri(png, "png") for png in figures[metric]],
            "tables": [mean_table(metric, values), p_value_table(comparisons, metric, values)],
            "comparisons": [
                (comparison.name, summarize(comparison), [describe(comparison, point) for point in comparison.points])
                for comparison in comparisons
                if comparison.metric == metric
            ],
        }
        for metric in values.metrics
    ]
    page = template("statistics.html").render(
        source=source,
        values=values,
        sections=sections,
        samples=[data_uri(jpeg, "jpeg") for jpeg in samples],
        oddities=oddities(values, comparisons),
        alpha=ALPHA,
    )
    write_text(out / "statistics.html", page)
    return out / "statistics.html"
