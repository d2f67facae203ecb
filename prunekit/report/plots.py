"""Plots of a run: accuracy and latency against the pruning ratio, as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as PlotFigure

from prunekit.files import write_bytes
from prunekit.pipeline.variants import UNIFORM
from prunekit.task import Figure

Row = Mapping[str, str]

GIVEN, UNPRUNED = "weights as given", "unpruned"  # groups of `variants` that are not pruned

# Okabe and Ito's palette without its yellow, too pale on white: told apart by color-blind readers.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
SHAPES = ("o", "s", "^", "D", "v")  # told apart in gray; 5 has no factor in common with 7, so 35 pairs are different
LINES = {"one-shot": "--", "optimized": "-"}  # the markers of dashed lines are hollow

MIN_LABEL_GAP = 3.5  # percent of the ratios' span: labels of nearer ticks would touch
PANEL_SIZE, LEGEND_LINE = (6.4, 3.8), 0.22  # inches


@dataclass(frozen=True)
class Curve:
    """One line of a plot: a column of results.csv against the ratio.

    Attributes:
        label: Its text in the legend.
        column: What is drawn.
        look: Arguments of `Axes.plot`.
        band: A column up to which a band is drawn, or "".
    """

    label: str
    column: str
    look: Mapping[str, Any]
    band: str = ""


def column(rows: Sequence[Row], name: str) -> list[float]:
    """Return one column of results.csv as numbers; an empty cell is nan."""
    return [float(row[name]) if row[name] else float("nan") for row in rows]


def write_plots(rows: Sequence[Row], folder: Path, figures: Sequence[Figure]) -> dict[str, Path]:
    """Draw every plot of `PLOTS` into `folder`.

    Args:
        rows: Rows of results.csv.
        folder: Gets one PNG a plot.
        figures: The task's.

    Returns:
        Plot name → path of its PNG.
    """
    paths = {}
    for name, draw in PLOTS.items():
        buffer = io.BytesIO()
        draw(rows, figures).savefig(buffer, format="png")
        paths[name] = folder / f"{name}.png"
        write_bytes(paths[name], buffer.getvalue())
    return paths


def variants(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows by variant, each row once.

    Returns:
        Name → rows. The name says what tells the variants apart. Of several variants, the model at 0 %, which they
        share, is the group `UNPRUNED`. A single variant is called "pre-trained" beside `GIVEN` and "" alone.
    """
    rows = [{"allocation": UNIFORM, **row} for row in rows]  # earlier versions had no other
    parts = ("structure", "scores", "pruning", "allocation")
    pruned = [row for row in rows if row["structure"] != "none"]
    telling = [part for part in parts if len({row[part] for row in pruned}) > 1]
    single = "pre-trained" if len(pruned) < len(rows) else ""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(row[part] for part in telling) or single
        if row["structure"] == "none":
            name = GIVEN
        elif telling and float(row["ratio"]) == 0:
            name = UNPRUNED
            if name in groups:
                continue
        groups.setdefault(name, []).append(row)
    return groups


def is_comparison(rows: Sequence[Row]) -> bool:
    """Return whether the rows are of several variants; their plots have two panels side by side."""
    return len(_lines(rows)) > 1


def draw_accuracy(rows: Sequence[Row], figures: Sequence[Figure]) -> PlotFigure:
    """Draw the last of the figures against the ratio, clean and attacked, of each variant; of one variant, all."""
    main, *others = reversed(figures)
    curves = []
    for figure, is_main in ((main, True), *((figure, False) for figure in others)):
        clean_look = {"marker": "o"} if is_main else {"marker": "o", "linestyle": ":", "alpha": 0.6}
        attacked_look = {"marker": "s", "linestyle": "--"} if is_main else clean_look | {"marker": "s"}
        curves.append(Curve(f"{figure.name}, clean", figure.column, {"color": BLUE, **clean_look}))
        attacked = Curve(f"{figure.name}, attacked", f"attacked_{figure.column}", {"color": ORANGE, **attacked_look})
        curves.append(attacked)
    panels = {"clean": main.column, f"attack: {rows[0]['attack']}": f"attacked_{main.column}"}
    images = f"{rows[0]['images']} images"
    if rows[0]["attack"] == "none":
        curves, panels = curves[::2], {"clean": main.column}
    if is_comparison(rows):
        return _compare(rows, panels, main.name, images)
    what = "Average precision" if main.column.startswith("ap") else main.name
    return _single(rows, curves, what, f"{images}, attack: {rows[0]['attack']}")


def draw_latency(rows: Sequence[Row], figures: Sequence[Figure] = ()) -> PlotFigure:
    """Draw the latency of artifact and control against the ratio; of a single variant with a band up to p90."""
    accelerated, control = "accelerated model", "masked dense model (control)"
    size, threads = rows[0]["image_size"], rows[0]["threads"]
    title = f"network only, one {size}×{size} image, {threads} thread{'s' if threads != '1' else ''}"
    if is_comparison(rows):
        panels = {accelerated: "latency_ms", control: "latency_ms_control"}
        return _compare(rows, panels, "Median latency in ms", title)
    curves = [
        Curve(accelerated, "latency_ms", {"color": GREEN, "marker": "o"}, "latency_ms_p90"),
        Curve(
            control,
            "latency_ms_control",
            {"color": GRAY, "marker": "s", "linestyle": ":"},
            "latency_ms_control_p90",
        ),
    ]
    if any(row.get("latency_ms_compacted") for row in rows):
        look = {"color": BLUE, "marker": "^", "linestyle": "--"}
        curves.append(Curve("compacted model", "latency_ms_compacted", look, "latency_ms_compacted_p90"))
        look = {"color": ORANGE, "marker": "v", "linestyle": "--"}
        curves.append(Curve("compacted and accelerated", "latency_ms_compacted_accelerated", look))
    return _single(rows, curves, "Latency in ms (line: median, band: to p90)", title)


def _single(rows: Sequence[Row], curves: Sequence[Curve], y_label: str, title: str) -> PlotFigure:
    """Draw several columns of one variant into one panel."""
    figure = PlotFigure(dpi=160, layout="constrained")
    axes = figure.add_subplot()
    given = variants(rows).get(GIVEN, [])
    line = [row for row in rows if row["structure"] != "none"]
    for curve in curves:
        ratio, values = column(line, "ratio"), column(line, curve.column)
        axes.plot(ratio, values, label=curve.label, **curve.look)
        color = curve.look["color"]
        if curve.band:
            axes.fill_between(ratio, values, column(line, curve.band), color=color, alpha=0.12, linewidth=0)
        axes.plot(column(given, "ratio"), column(given, curve.column), "x", color=color)
    if given:
        axes.plot([], [], "x", color=GRAY, label=GIVEN)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(y_label)
    finish_axes(axes, column(rows, "ratio"), title)
    return with_legend(figure, width=PANEL_SIZE[0], columns=2)


def _compare(rows: Sequence[Row], panels: Mapping[str, str], y_label: str, title: str) -> PlotFigure:
    """Draw one column of all variants into each panel, title → column, on one scale."""
    figure = PlotFigure(dpi=160, layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    groups, lines = variants(rows), _lines(rows)
    looks = _looks(lines)
    for axes, (heading, shown) in zip(all_axes, panels.items(), strict=True):
        for name, line in lines.items():
            axes.plot(column(line, "ratio"), column(line, shown), label=name, **looks[name])
        for name, marker in ((UNPRUNED, "o"), (GIVEN, "x")):
            if point := groups.get(name):
                axes.plot(column(point, "ratio"), column(point, shown), marker, color=GRAY, markersize=7, label=name)
        finish_axes(axes, column(rows, "ratio"), f"{heading}, {title}" if axes is all_axes[0] else heading)
    all_axes[0].set_ylim(bottom=0)  # after all panels: it ends the scaling by what is drawn
    all_axes[0].set_ylabel(y_label)
    return with_legend(figure, width=PANEL_SIZE[0] * (1 if len(panels) == 1 else 1.8), columns=3)


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return each pruned variant's rows, the shared ones at 0 % before them."""
    groups = variants(rows)
    shared = groups.get(UNPRUNED, [])
    return {name: shared + group for name, group in groups.items() if name not in (GIVEN, UNPRUNED)}


def _looks(lines: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, Any]]:
    """Choose each line's color and marker by structure and scores, its dashes and filling by the pruning."""
    of_line = {
        name: tuple(rows[-1][part] for part in ("structure", "scores", "allocation")) for name, rows in lines.items()
    }
    order = {pair: index for index, pair in enumerate(dict.fromkeys(of_line.values()))}
    looks = {}
    for name, pair in of_line.items():
        color = PALETTE[order[pair] % len(PALETTE)]
        dashes = LINES[lines[name][-1]["pruning"]]
        looks[name] = {
            "color": color,
            "marker": SHAPES[order[pair] % len(SHAPES)],
            "linestyle": dashes,
            "markerfacecolor": color if dashes == "-" else "white",
            "markersize": 5,
            "linewidth": 1.4,
        }
    return looks


def finish_axes(axes: Axes, ratio: Sequence[float], title: str) -> None:
    """Say what the ratio's axis and the panel show, and draw quiet lines to read values by."""
    axes.set_xlabel("Pruning ratio in %")
    axes.set_title(title, loc="left", fontsize=10, color="#444444")
    ticks = sorted(set(ratio))
    axes.set_xticks(ticks, _tick_labels(ticks), fontsize=9)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return a label for each of the sorted ticks, "" where it would touch the one before."""
    labels: list[str] = []
    last = float("-inf")
    for tick in ticks:
        is_clear = tick - last >= MIN_LABEL_GAP / 100 * (ticks[-1] - ticks[0])
        labels.append(f"{tick:g}" if is_clear else "")
        last = tick if is_clear else last
    return labels


def with_legend(figure: PlotFigure, width: float, columns: int) -> PlotFigure:
    """Add a legend below the panels, which names each line once, and as much height as it needs."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = min(columns, len(labels))
    figure.set_size_inches(width, PANEL_SIZE[1] + LEGEND_LINE * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, handlelength=3)
    return figure


PLOTS: dict[str, Callable[[Sequence[Row], Sequence[Figure]], PlotFigure]] = {
    "average_precision": draw_accuracy,
    "latency": draw_latency,
}
