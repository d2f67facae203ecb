"""The picture to decide by: accuracy against milliseconds, every model of a run a point in each of its precisions."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as PlotFigure

from prunekit.files import write_bytes
from prunekit.report.plots import GRAY, PALETTE, PANEL_SIZE, UNPRUNED, Row, column, variants, with_legend
from prunekit.task import Figure

#: Markers of precisions, as the legend names them.
_MARKERS = {"float32": "o", "int8": "D"}
_CONTROL = "unpruned, torch eager"


@dataclass(frozen=True)
class Point:
    """A model as it is deployed.

    Attributes:
        variant: Its name among the run's; "" of a single one.
        precision: "float32" or "int8".
        ratio: Of pruning, in percent.
        ms: Median milliseconds of the network for one image.
        clean, attacked: The task's main figure; nan where it was not measured.
    """

    variant: str
    precision: str
    ratio: float
    ms: float
    clean: float
    attacked: float


def points_of(rows: Sequence[Row], figure: Figure) -> list[Point]:
    """Return the points of a run's rows: where filters went, of the faster of masked and compacted model."""
    points = []
    for name, group in variants(rows).items():
        for row in group:
            times = [_number(row, n) for n in ("latency_ms", "latency_ms_compacted_accelerated")]
            figures = {prefix: _figures(row, prefix + figure.column, f"{prefix}attacked_{figure.column}")
                       for prefix in ("", "int8_")}  # fmt: skip
            ratio = float(row["ratio"])
            points.append(Point(name, "float32", ratio, min(t for t in times if not math.isnan(t)), *figures[""]))
            if not math.isnan(ms := _number(row, "int8_latency_ms")):
                points.append(Point(name, "int8", ratio, ms, *figures["int8_"]))
    return points


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto front of (milliseconds, accuracy): what nothing else beats in both, the fastest first."""
    found: list[tuple[float, float]] = []
    for ms, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not math.isnan(accuracy) and (not found or accuracy > found[-1][1]):
            found.append((ms, accuracy))
    return found


@dataclass(frozen=True)
class Gain:
    """A point beside the unpruned model.

    Attributes:
        point: The model as it is deployed.
        over_unpruned: How many times faster than the unpruned model in float32 on the same engine.
        over_dense: How many times faster than the unpruned model on the fastest dense engine; nan if none was timed.
        clean, attacked: Share of the unpruned model's figure that is left; nan where that is unknown or 0.
    """

    point: Point
    over_unpruned: float
    over_dense: float
    clean: float
    attacked: float


def gains(rows: Sequence[Row], figure: Figure, dense: Mapping[str, float] | None = None) -> list[Gain]:
    """Return what each model gains and loses by pruning and precision; nothing without an unpruned model."""
    points, fastest = points_of(rows, figure), min((dense or {}).values(), default=math.nan)
    whole = next((p for p in points if p.ratio == 0 and p.precision == "float32"), None)
    if whole is None:
        return []
    return [
        Gain(p, whole.ms / p.ms, fastest / p.ms, _share(p.clean, whole.clean), _share(p.attacked, whole.attacked))
        for p in points
    ]


def _share(value: float, whole: float) -> float:
    return value / whole if whole else math.nan


def draw_tradeoff(rows: Sequence[Row], figure: Figure, dense: Mapping[str, float] | None = None) -> PlotFigure:
    """Draw accuracy against milliseconds, clean and under attack side by side, with the Pareto front of each.

    Args:
        rows: Of results.csv.
        figure: The task's main one.
        dense: Milliseconds of the unpruned model on dense engines, the fastest of which is a line.
    """
    points, attack = points_of(rows, figure), rows[0]["attack"]
    panels = {"clean": "clean"} if attack == "none" else {"clean": "clean", f"attack: {attack}": "attacked"}
    plot = PlotFigure(dpi=160, layout="constrained")
    all_axes = plot.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for axes, (heading, kind) in zip(all_axes, panels.items(), strict=True):
        _draw_panel(axes, points, kind)
        _draw_control(axes, rows, figure.column if kind == "clean" else f"attacked_{figure.column}")
        if dense:
            name = min(dense, key=lambda engine: dense[engine])
            axes.axvline(dense[name], color=GRAY, linestyle="--", linewidth=1, label=f"unpruned, {name}")
        axes.set_title(heading, loc="left", fontsize=10, color="#444444")
    all_axes[0].set_ylabel(figure.name)
    all_axes[0].set_ylim(bottom=0)
    all_axes[0].set_xlim(left=0)
    return with_legend(plot, width=PANEL_SIZE[0] * (1 if len(panels) == 1 else 1.8), columns=3)


def write_tradeoff_plot(
    path: Path, rows: Sequence[Row], figure: Figure, dense: Mapping[str, float] | None = None
) -> None:
    """Write the picture of a run's rows as PNG; the arguments are those of `draw_tradeoff`."""
    buffer = io.BytesIO()
    draw_tradeoff(rows, figure, dense).savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


def _draw_panel(axes: Axes, points: Sequence[Point], kind: str) -> None:
    colors = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(p.variant for p in points))}
    for (variant, precision), group in _grouped(points).items():
        color = GRAY if variant == UNPRUNED else colors[variant]
        label = f"{variant}, {precision}" if variant else precision
        values = [getattr(point, kind) for point in group]
        axes.plot([p.ms for p in group], values, _MARKERS[precision], color=color, markersize=5, label=label)
        for point, value in zip(group, values, strict=True):
            if not math.isnan(value):
                place = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 6.5, "color": color}
                axes.annotate(f"{point.ratio:g} %", (point.ms, value), **place)  # type: ignore[arg-type]
    best = front([(point.ms, getattr(point, kind)) for point in points])
    axes.plot([ms for ms, _ in best], [y for _, y in best], "-", color="#000000", linewidth=0.8, label="Pareto front")
    axes.set_xlabel("Median milliseconds of the network for one image")
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_control(axes: Axes, rows: Sequence[Row], name: str) -> None:
    unpruned = next((row for row in rows if float(row["ratio"]) == 0), None)
    if unpruned is not None and name in unpruned:
        axes.plot(column([unpruned], "latency_ms_control"), column([unpruned], name), "x", color=GRAY, label=_CONTROL)


def _grouped(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.variant, point.precision), []).append(point)
    return groups


def _figures(row: Row, clean: str, attacked: str) -> tuple[float, float]:
    return _number(row, clean), _number(row, attacked)


def _number(row: Row, name: str) -> float:
    return float(row[name]) if row.get(name) else math.nan
