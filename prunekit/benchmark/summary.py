"""Curves of speed-up against sparsity, from the rows of one or many runs, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from prunekit.benchmark.rows import Row, latest
from prunekit.console import titled


@dataclass(frozen=True)
class Point:
    """A net at one pruning ratio.

    Attributes:
        ratio: percent of each layer's weights that are zero.
        ms: prunekit's median; of layers, the sum over all of them.
        dense_ms: the fastest dense peer's; of layers, the sum of each layer's own fastest peer.
        eager_ms: torch eager's, likewise.
        bound_ms: what the machine's multiply-add rate and its memory allow at best, likewise.
    """

    ratio: float
    ms: float
    dense_ms: float
    eager_ms: float
    bound_ms: float

    @property
    def speedup(self) -> float:
        """How many times faster than the fastest dense peer."""
        return self.dense_ms / self.ms

    @property
    def speedup_bound(self) -> float:
        """How many times faster than the fastest dense peer this machine could be at best."""
        return self.dense_ms / self.bound_ms


@dataclass(frozen=True)
class Curve:
    """A net on one machine at one number of threads.

    Attributes:
        rows: the last run's of the net, or of each of its layers.
        points: by growing ratio; of layers, only ratios at which every layer was timed.
        control: the control's, where there is one.
    """

    rows: tuple[Row, ...]
    points: tuple[Point, ...]
    control: Point | None

    @property
    def first(self) -> Row:
        """Any row, for what all have in common."""
        return self.rows[0]

    @property
    def name(self) -> str:
        """The net and the threads."""
        row = self.first
        width = "" if row.width == 1 else f" at width {row.width:g}"
        return f"{row.model}{width}, {row.threads} thread{'s'[: row.threads > 1]}"


def curves(rows: Sequence[Row]) -> list[Curve]:
    """Return a curve for each net, number of threads and machine among `rows`, from the last runs only."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in latest(rows):
        groups.setdefault(row.net, []).append(row)
    return [_curve(group) for group in groups.values()]


def layer_points(curve: Curve) -> list[list[Point]]:
    """Return the points of each layer, for a curve of layers."""
    layers: dict[str | None, list[Row]] = {}
    for row in curve.rows:
        layers.setdefault(row.layer, []).append(row)
    return [list(_curve(group).points) for group in layers.values()]


def table(curve: Curve) -> Table:
    """Return a curve for the terminal: competitors for a net, sums for layers."""
    return _table_of_net(curve) if curve.first.question == "end-to-end" else _table_of_layers(curve)


def _curve(rows: Sequence[Row]) -> Curve:
    num_layers = len({row.layer for row in rows})
    points = []
    for ratio in sorted({row.ratio for row in rows if row.kind == "prunekit"}):
        group = [row for row in rows if row.kind == "prunekit" and row.ratio == ratio]
        if len(group) == num_layers:
            points.append(_sum(group))
    control = [row for row in rows if row.kind == "control"]
    return Curve(tuple(rows), tuple(points), _sum(control) if len(control) == num_layers else None)


def _sum(rows: Sequence[Row]) -> Point:
    return Point(
        ratio=rows[0].ratio,
        ms=sum(row.count * row.median_ms for row in rows),
        dense_ms=sum(row.count * row.fastest_dense_ms for row in rows),
        eager_ms=sum(row.count * row.eager_ms for row in rows),
        bound_ms=sum(row.count * row.bound_ms for row in rows),
    )


def _table_of_net(curve: Curve) -> Table:
    title = f"{curve.name}, {curve.first.image_size}×{curve.first.image_size}"
    lines = titled(title, ["competitor"], ("ms", "spread", "against\ndense", "against\neager", "% of\npeak"))
    has_memory = any(row.serving_mib is not None for row in curve.rows)
    if has_memory:
        lines.add_column("\nMiB", justify="right")
    for row in curve.rows:
        cells = [
            f"{row.median_ms:.2f}",
            f"{row.spread:.0%}",
            f"{row.speedup:.2f}×",
            f"{row.speedup_over_eager:.2f}×",
            f"{row.percent_of_peak:.0f}",
        ]
        memory = ["–" if row.serving_mib is None else f"{row.serving_mib:.0f}"] if has_memory else []
        lines.add_row(row.label, *cells, *memory)
    return lines


def _table_of_layers(curve: Curve) -> Table:
    layers = layer_points(curve)
    count = sum({row.layer: row.count for row in curve.rows}.values())
    shapes = f"{len(layers)} shape{'s'[: len(layers) > 1]}"
    title = f"{curve.name}, {count} convolutions of {shapes}, {curve.first.image_size} pixels"
    times = ("ratio", "fastest\ndense ms", "prunekit\nms")
    speedups = ("against\nfastest dense", "against\neager", "slowest\nshape", "fastest\nshape")
    lines = titled(title, (), (*times, *speedups))
    for point in curve.points:
        by_shape = [one.speedup for layer in layers for one in layer if one.ratio == point.ratio]
        lines.add_row(
            f"{point.ratio:g} %",
            f"{point.dense_ms:.2f}",
            f"{point.ms:.2f}",
            f"{point.speedup:.2f}×",
            f"{point.eager_ms / point.ms:.2f}×",
            f"{min(by_shape):.2f}×",
            f"{max(by_shape):.2f}×",
        )
    return lines
