"""Plots of a run: average precision and latency against the pruning ratio, as PNG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prunekit.files import write_bytes

Row = Mapping[str, str]

# Okabe and Ito's palette: told apart by colour-blind readers; the marker tells them apart in grey.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"


def column(rows: Sequence[Row], name: str) -> list[float]:
    """Return one column of results.csv as numbers; an empty cell is nan."""
    return [float(row[name]) if row[name] else float("nan") for row in rows]


def write_plots(rows: Sequence[Row], folder: Path) -> dict[str, Path]:
    """Draw every plot of `PLOTS` into `folder`.

    Args:
        rows: Rows of results.csv.
        folder: Gets one PNG a plot.

    Returns:
        Plot name → path of its PNG.
    """
    paths = {}
    for name, draw in PLOTS.items():
        figure = Figure(figsize=(6.4, 4.0), dpi=160, layout="constrained")
        draw(figure.add_subplot(), rows)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        paths[name] = folder / f"{name}.png"
        write_bytes(paths[name], buffer.getvalue())
    return paths


def draw_average_precision(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw AP and AP50, clean and attacked, against the ratio."""
    ratio = column(rows, "ratio")
    axes.plot(ratio, column(rows, "ap50"), "--o", color=BLUE, alpha=0.6, label="AP50, clean")
    axes.plot(ratio, column(rows, "ap"), "-o", color=BLUE, label="AP, clean")
    if rows[0]["attack"] != "none":
        axes.plot(ratio, column(rows, "attacked_ap50"), "--s", color=ORANGE, alpha=0.6, label="AP50, attacked")
        axes.plot(ratio, column(rows, "attacked_ap"), "-s", color=ORANGE, label="AP, attacked")
    axes.set_ylim(bottom=0)
    _finish(axes, ratio, "Average precision", f"{rows[0]['images']} images, attack: {rows[0]['attack']}")


def draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the latency of artefact and control against the ratio, in a band up to the 90th percentile."""
    ratio = column(rows, "ratio")
    series = (
        ("latency_ms_control", "-s", GREY, "masked dense model (control)"),
        ("latency_ms", "-o", GREEN, "accelerated model"),
    )
    for name, style, colour, label in series:
        median = column(rows, name)
        axes.plot(ratio, median, style, color=colour, label=label)
        axes.fill_between(ratio, median, column(rows, f"{name}_p90"), color=colour, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    size, threads = rows[0]["image_size"], rows[0]["threads"]
    title = f"Network only, one {size}×{size} image, {threads} thread{'s' if threads != '1' else ''}"
    _finish(axes, ratio, "Latency in ms (line: median, band: to p90)", title)


def _finish(axes: Axes, ratio: Sequence[float], y_label: str, title: str) -> None:
    axes.set_xlabel("Pruning ratio in %")
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left", fontsize=10, color="#444444")
    axes.set_xticks(ratio, [f"{value:g}" for value in ratio])
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)


PLOTS: dict[str, Callable[[Axes, Sequence[Row]], None]] = {
    "average_precision": draw_average_precision,
    "latency": draw_latency,
}
