"""The plot: speed-up against sparsity, with what arithmetic and the machine allow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import blended_transform_factory

from prunekit.benchmark.rows import Row
from prunekit.benchmark.summary import Curve, Point, curves, layer_points
from prunekit.errors import InputError
from prunekit.files import check_writable_file, write_bytes
from prunekit.report.plots import GRAY, PALETTE

FORMATS = ("png", "svg")
_MARKERS = "osD^vP*X"
_PANEL_INCHES = (7.2, 5.4)
_PLATE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.4}  # behind a name that crosses lines
_NAME: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 6.5, "bbox": _PLATE}
_BOUNDS = {"fma": "the multiply-add peak", "dense_gemm": "a dense matrix product's rate"}


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Draw rows into a PNG or SVG file: a panel for whole nets, one for layers.

    Raises:
        InputError: the file's name ends in neither, or there is nothing to draw.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"--out: expected a name that ends in .png or .svg, got {path.name!r}.")
    check_writable_file(path, "--out")
    drawable = [curve for curve in curves(rows) if any(point.ratio > 0 for point in curve.points)]
    if not drawable:
        raise InputError("Expected rows of prunekit at a ratio above 0 to draw, got none.")
    figure = draw(drawable)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    write_bytes(path, buffer.getvalue())


def draw(drawable: Sequence[Curve]) -> Figure:
    """Return the figure: a panel for each question that the curves answer."""
    panels: dict[str, list[Curve]] = {}
    for curve in drawable:
        panels.setdefault(curve.first.question, []).append(curve)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), dpi=160, layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (question, group) in zip(all_axes, panels.items(), strict=True):
        _draw_panel(axes, question, group)
    figure.suptitle(_machines(drawable), x=0.01, ha="left", fontsize=9, color="#444444")
    return figure


def _draw_panel(axes: Axes, question: str, group: Sequence[Curve]) -> None:
    ratios = sorted({point.ratio for curve in group for point in curve.points})
    sparsity = np.linspace(ratios[0], ratios[-1], 200)
    axes.plot(_x(sparsity), 1 / (1 - sparsity / 100), "--", color=GRAY, label="1 / (1 − sparsity)")
    axes.axhline(1, color="#000000", linewidth=0.8)
    for index, curve in enumerate(group):
        _draw_curve(axes, curve, PALETTE[index % len(PALETTE)], _MARKERS[index % len(_MARKERS)])
    bounds = sorted({_BOUNDS[row.peak_kind] for curve in group for row in curve.rows})
    axes.plot([], [], ":", color="#000000", label=f"at best, by {' or '.join(bounds)} and memory")
    if any(curve.lower for curve in group):
        axes.plot([], [], "-.", color="#000000", label="dense peers in a lower precision (relative RMS from float32)")
    if any(curve.control for curve in group):
        axes.plot([], [], "x", color="#000000", label="pruned weights in torch eager (control)")
    _finish(axes, question, ratios)


def _finish(axes: Axes, question: str, ratios: Sequence[float]) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(_x(ratios), [f"{ratio:g}" for ratio in ratios])
    axes.set_xlabel("Weights of convolutions that are zero, in % (spaced by the logarithm of what is left)")
    axes.set_ylabel("Speed-up against the fastest float32 dense peer (1×)")
    what = "Whole net" if question == "end-to-end" else "Convolutions alone: thick their sum, thin each shape"
    axes.set_title(what, loc="left", fontsize=10, color="#444444")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str) -> None:
    if curve.first.question == "layers":
        for layer in layer_points(curve):
            axes.plot(_ratios(layer), [p.speedup for p in layer], "-", color=color, alpha=0.25, linewidth=0.7)
    points = curve.points
    axes.plot(_ratios(points), [p.speedup for p in points], f"-{marker}", color=color, label=f"prunekit: {curve.name}")
    axes.plot(_ratios(points), [p.speedup_bound for p in points], ":", color=color)
    if curve.int8:
        label = f"prunekit in int8: {curve.name}"
        look: dict[str, Any] = {"color": color, "markerfacecolor": "white"}
        axes.plot(_ratios(curve.int8), [p.speedup for p in curve.int8], f"--{marker}", label=label, **look)
    _draw_lower(axes, curve, color)
    if curve.control is not None:
        axes.plot(_ratios([curve.control]), [curve.control.speedup], "x", color=color)


def _draw_lower(axes: Axes, curve: Curve, color: str) -> None:
    """Draw a line for each peer of a lower precision; the names stand in a diagonal, as lines may be close."""
    place = blended_transform_factory(axes.transAxes, axes.transData)
    for index, peer in enumerate(curve.lower):
        axes.axhline(peer.speedup, linestyle="-.", color=color, linewidth=0.9)
        text = f"{peer.name} ({peer.relative_rms:.0e})"
        axes.text(0.99 - 0.24 * index, peer.speedup, text, transform=place, color=color, **_NAME)


def _x(ratios: Sequence[float] | np.ndarray) -> np.ndarray:
    """Place a ratio by what it leaves: the limit 1 / (1 − s) is then a straight line, and 90 to 99 % have room."""
    return -np.log10(1 - np.asarray(ratios) / 100)


def _ratios(points: Sequence[Point]) -> np.ndarray:
    return _x([point.ratio for point in points])


def _machines(drawable: Sequence[Curve]) -> str:
    lines = []
    for curve in drawable:
        row = curve.first
        day = max(row.date for row in curve.rows)[:10]
        against = "; ".join(sorted({row.against for row in curve.rows}))
        lines.append(
            f"{curve.name}, {row.image_size} px: {row.cpu}, {row.system}, {row.instruction_set or 'no'} kernels, "
            f"{day}; fastest dense: {against}"
        )
    return "\n".join(dict.fromkeys(lines))
