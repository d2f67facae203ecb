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
PALETTE = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")


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


def variants(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Group the rows by variant; the key names what tells the variants apart, and is "" for a single one."""
    parts = ("structure", "scores", "pruning")
    pruned = [row for row in rows if row["structure"] != "none"]
    telling = [part for part in parts if len({row[part] for row in pruned}) > 1]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = ", ".join(row[part] for part in telling) if row["structure"] != "none" else "weights as given"
        groups.setdefault(name, []).append(row)
    return {name or "pre-trained": group for name, group in groups.items()} if len(groups) > 1 else groups


def draw_average_precision(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw AP50 clean and attacked against the ratio, a colour a variant; AP as well where there is but one."""
    groups = variants(rows)
    for (name, group), colour in zip(groups.items(), _colours(len(groups)), strict=True):
        ratio, prefix = column(group, "ratio"), f"{name}: " if name else ""
        attacked_colour = colour if name else ORANGE
        axes.plot(ratio, column(group, "ap50"), "-o", color=colour, label=f"{prefix}AP50, clean")
        if rows[0]["attack"] != "none":
            axes.plot(
                ratio, column(group, "attacked_ap50"), "--s", color=attacked_colour, label=f"{prefix}AP50, attacked"
            )
        if not name:
            axes.plot(ratio, column(group, "ap"), ":o", color=colour, alpha=0.6, label="AP, clean")
            if rows[0]["attack"] != "none":
                axes.plot(ratio, column(group, "attacked_ap"), ":s", color=ORANGE, alpha=0.6, label="AP, attacked")
    axes.set_ylim(bottom=0)
    _finish(
        axes, column(rows, "ratio"), "Average precision", f"{rows[0]['images']} images, attack: {rows[0]['attack']}"
    )


def draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    """Draw the latency of artefact and control against the ratio, in a band up to the 90th percentile."""
    groups = variants(rows)
    for (name, group), colour in zip(groups.items(), _colours(len(groups), GREEN), strict=True):
        ratio, prefix = column(group, "ratio"), f"{name}: " if name else ""
        for kind, style, shade, label in (
            ("latency_ms_control", ":s", GREY if not name else colour, "masked dense model (control)"),
            ("latency_ms", "-o", colour, "accelerated model"),
        ):
            median = column(group, kind)
            axes.plot(ratio, median, style, color=shade, label=prefix + label)
            axes.fill_between(ratio, median, column(group, f"{kind}_p90"), color=shade, alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    size, threads = rows[0]["image_size"], rows[0]["threads"]
    title = f"Network only, one {size}×{size} image, {threads} thread{'s' if threads != '1' else ''}"
    _finish(axes, column(rows, "ratio"), "Latency in ms (line: median, band: to p90)", title)


def _colours(count: int, single: str = BLUE) -> list[str]:
    """Return as many colours; only eight are told apart by everyone, then they repeat."""
    return [single] if count == 1 else [PALETTE[index % len(PALETTE)] for index in range(count)]


def _finish(axes: Axes, ratio: Sequence[float], y_label: str, title: str) -> None:
    axes.set_xlabel("Pruning ratio in %")
    axes.set_ylabel(y_label)
    axes.set_title(title, loc="left", fontsize=10, color="#444444")
    ticks = sorted(set(ratio))
    axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9 if len(axes.lines) <= 4 else 6.5)


PLOTS: dict[str, Callable[[Axes, Sequence[Row]], None]] = {
    "average_precision": draw_average_precision,
    "latency": draw_latency,
}
