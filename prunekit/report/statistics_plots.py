"""Curves of many runs: means of configurations against the pruning ratio with error bars, as the report draws them."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure as PlotFigure

from prunekit.experiments.comparisons import Comparison, sample
from prunekit.experiments.values import Configuration, Values
from prunekit.files import write_bytes
from prunekit.report.plots import PALETTE, PANEL_SIZE, SHAPES, finish_axes, with_legend

# Text stays text in an SVG; without it, and without date and random ids, equal figures are equal files.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "prunekit"}


def write_statistics_plots(values: Values, comparisons: Sequence[Comparison], folder: Path) -> dict[str, list[bytes]]:
    """Draw each metric of the configurations that are compared, as PNG and SVG; return the PNGs by metric."""
    images: dict[str, list[bytes]] = {metric: [] for metric in values.metrics}
    for metric in values.metrics:
        for number, (factors, configurations) in enumerate(_groups(values, comparisons, metric), 1):
            name = f"{metric}-{number}-{'-'.join(factors)}" if factors else metric
            figure = draw_means(values, metric, configurations)
            images[metric].append(_saved(figure, folder / f"{name}.png"))
            _saved(figure, folder / f"{name}.svg")
    return images


def _groups(
    values: Values, comparisons: Sequence[Comparison], metric: str
) -> list[tuple[list[str], tuple[Configuration, ...]]]:
    """Return which configurations share a figure: those that are compared by a factor, under the factors' names."""
    groups: dict[tuple[Configuration, ...], list[str]] = {}
    found = [comparison for comparison in comparisons if comparison.metric == metric]
    for factor in dict.fromkeys(comparison.factor for comparison in found):
        compared = {c for each in found if each.factor == factor for c in (each.first, each.second)}
        groups.setdefault(tuple(c for c in values.configurations if c in compared), []).append(factor)
    return [(factors, configurations) for configurations, factors in groups.items()] or [([], values.configurations)]


def draw_means(values: Values, metric: str, configurations: Sequence[Configuration]) -> PlotFigure:
    """Draw the means of a metric against the ratio with standard deviations as error bars; dashed, what was given."""
    figure = PlotFigure(dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for index, configuration in enumerate(configurations):
        found = {ratio: list(values.of(configuration, metric, ratio).values()) for ratio in values.ratios}
        samples = {ratio: sample(each) for ratio, each in found.items() if each}
        axes.errorbar(
            list(samples),
            [each.mean for each in samples.values()],
            [each.sd or 0.0 for each in samples.values()],
            label=values.name(configuration),
            color=PALETTE[values.configurations.index(configuration) % len(PALETTE)],
            marker=SHAPES[index % len(SHAPES)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    if given := values.given.get(metric):
        axes.axhline(statistics.fmean(given), color="black", linestyle="--", linewidth=1, label="weights as given")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(metric)
    finish_axes(axes, values.ratios, "mean ± standard deviation of the runs")
    return with_legend(figure, width=PANEL_SIZE[0], columns=2)


def _saved(figure: PlotFigure, path: Path) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SVG):
        figure.savefig(buffer, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    write_bytes(path, buffer.getvalue())
    return buffer.getvalue()
