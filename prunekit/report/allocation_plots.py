"""Figures on where to prune: sensitivities of modules, and the ratio that each layer got beside what it costs."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as PlotFigure

from prunekit.files import write_bytes
from prunekit.prune.sensitivity import Sensitivity
from prunekit.report.plots import BLUE, GRAY, GREEN, ORANGE, PALETTE, SHAPES

_WIDTH_A_LAYER, _LEAST_WIDTH, _PANEL_HEIGHT = 0.16, 6.4, 1.7  # inches
#: One layer of a unit: what it lost, what it is of the unpruned model, its sensitivity where that is known.
LayerRow = Mapping[str, Any]


def write_sensitivity_plot(path: Path, found: Mapping[str, Sensitivity]) -> None:
    """Draw the sensitivity of each module, and that to first order, in the model's order; write a PNG."""
    figure = _figure(len(found), 1)
    axes = figure.axes[0]
    places, exact = range(len(found)), [one.exact for one in found.values() if one.exact is not None]
    if len(exact) == len(found):
        axes.plot(places, exact, color=BLUE, marker="o", markersize=4, label="sensitivity")
    first_order = [one.first_order for one in found.values()]
    axes.plot(places, first_order, color=ORANGE, marker="s", markersize=4, linestyle="--", label="to first order")
    axes.set_ylabel("rise of the attacked loss")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    _write(figure, list(found), path)


def write_allocation_plot(path: Path, units: Mapping[str, Sequence[LayerRow]]) -> None:
    """Draw, layer by layer, the ratio of each unit, sensitivities, and shares of weights and milliseconds.

    Args:
        path: The PNG.
        units: Label → the rows of its layers, in the model's order, the same layers for all.
    """
    rows = next(iter(units.values()))
    panels = {"sensitivity": BLUE, "weights": GRAY, "ms": GREEN}
    shown = {name: color for name, color in panels.items() if all(row.get(name) is not None for row in rows)}
    figure = _figure(len(rows), 1 + len(shown))
    for number, (label, layers) in enumerate(units.items()):
        look: dict[str, Any] = {"color": PALETTE[number % len(PALETTE)], "marker": SHAPES[number % len(SHAPES)]}
        figure.axes[0].plot([row["ratio"] for row in layers], label=label, markersize=4, linewidth=1.2, **look)
    figure.axes[0].set_ylabel("ratio in %")
    figure.axes[0].set_ylim(-2, 102)
    figure.axes[0].legend(frameon=False, fontsize=8)
    for axes, (name, color) in zip(figure.axes[1:], shown.items(), strict=True):
        total = 1.0 if name == "sensitivity" else sum(row[name] for row in rows) / 100
        axes.bar(range(len(rows)), [row[name] / max(total, 1e-12) for row in rows], color=color)
        axes.set_ylabel({"sensitivity": "sensitivity", "weights": "% of weights", "ms": "% of ms"}[name])
    _write(figure, [row["layer"] for row in rows], path)


def write_rounds_plot(rounds: Path) -> None:
    """Draw the ratios of each round of a rounds.json, beside the last round's sensitivities, into a PNG of its name."""
    content = json.loads(rounds.read_text())
    units = {f"round {one['round']}: {one['budget']}": one["layers"] for one in reversed(content)}
    write_allocation_plot(rounds.with_suffix(".png"), units)


def _figure(num_layers: int, num_panels: int) -> PlotFigure:
    width = max(_LEAST_WIDTH, _WIDTH_A_LAYER * num_layers)
    figure = PlotFigure(dpi=160, layout="constrained", figsize=(width, 1.2 + _PANEL_HEIGHT * (num_panels + 1) / 1.5))
    figure.subplots(num_panels, 1, sharex=True, squeeze=False)
    return figure


def _write(figure: PlotFigure, names: Sequence[str], path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.axes[-1].set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())
