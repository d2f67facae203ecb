"""Curves of speed-up against sparsity, from the rows of one or many runs, and tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from prunekit.benchmark.engines.precisions import FLOAT32, INT8, Precision
from prunekit.benchmark.problems import UNSTRUCTURED
from prunekit.benchmark.rows import Row, latest
from prunekit.console import titled


@dataclass(frozen=True)
class Point:
    """A net at one pruning ratio.

    Attributes:
        ratio: percent of each layer's weights that are zero.
        ms: prunekit's median; of layers, the sum over all of them.
        dense_ms: the fastest float32 peer's; of layers, the sum of each layer's own fastest peer.
        any_ms: the fastest peer's of any precision, likewise.
        eager_ms: torch eager's, likewise.
        bound_ms: what the machine's multiply-add rate and its memory allow at best, likewise.
    """

    ratio: float
    ms: float
    dense_ms: float
    any_ms: float
    eager_ms: float
    bound_ms: float

    @property
    def speedup(self) -> float:
        """How many times faster than the fastest float32 peer."""
        return self.dense_ms / self.ms

    @property
    def speedup_over_any(self) -> float:
        """How many times faster than the fastest peer of any precision."""
        return self.any_ms / self.ms

    @property
    def speedup_bound(self) -> float:
        """How many times faster than the fastest float32 peer this machine could be at best."""
        return self.dense_ms / self.bound_ms


@dataclass(frozen=True)
class LowerPeer:
    """A dense peer of a lower precision than float32.

    Attributes:
        name: for people.
        precision: what it computes in.
        ms: its median; of layers, the sum over all of them.
        speedup: how many times faster than the fastest float32 peer.
        relative_rms: how far its outputs are from float32's; of layers, the largest.
    """

    name: str
    precision: Precision
    ms: float
    speedup: float
    relative_rms: float


@dataclass(frozen=True)
class Curve:
    """A net on one machine at one number of threads.

    Attributes:
        rows: the last run's of the net, or of each of its layers.
        points: by growing ratio; of layers, only ratios at which every layer was timed.
        control: the control's, where there is one.
        lower: peers of lower precisions that were timed on the net, or on all of its layers, the fastest first.
        int8: prunekit's in int8, likewise by growing ratio.
    """

    rows: tuple[Row, ...]
    points: tuple[Point, ...]
    control: Point | None
    lower: tuple[LowerPeer, ...]
    int8: tuple[Point, ...] = ()

    @property
    def best(self) -> tuple[Point, ...]:
        """The faster of prunekit's two precisions at each ratio."""
        in_int8 = {point.ratio: point for point in self.int8}
        return tuple(min(point, in_int8.get(point.ratio, point), key=lambda p: p.ms) for point in self.points)

    @property
    def first(self) -> Row:
        """Any row, for what all have in common."""
        return self.rows[0]

    @property
    def name(self) -> str:
        """The net, the structure of its zeros unless there is none, and the threads."""
        row = self.first
        width = "" if row.width == 1 else f" at width {row.width:g}"
        structure = "" if row.structure == UNSTRUCTURED else f", {row.structure}"
        return f"{row.model}{width}{structure}, {row.threads} thread{'s'[: row.threads > 1]}"


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
    own = [row for row in rows if row.kind == "prunekit"]
    float32, int8 = (
        _points([row for row in own if row.precision == precision], num_layers) for precision in (FLOAT32, INT8)
    )
    control = [row for row in rows if row.kind == "control"]
    whole_control = _sum(control) if len(control) == num_layers else None
    return Curve(tuple(rows), float32, whole_control, _lower(rows, num_layers), int8)


def _points(rows: Sequence[Row], num_layers: int) -> tuple[Point, ...]:
    """Return the points of prunekit's rows in one precision, of ratios at which every layer was timed."""
    by_ratio = [[row for row in rows if row.ratio == ratio] for ratio in sorted({row.ratio for row in rows})]
    return tuple(_sum(group) for group in by_ratio if len(group) == num_layers)


def _lower(rows: Sequence[Row], num_layers: int) -> tuple[LowerPeer, ...]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "peer" and row.precision != FLOAT32:
            groups.setdefault(row.competitor, []).append(row)
    peers = [_lower_peer(group) for group in groups.values() if len(group) == num_layers]
    return tuple(sorted(peers, key=lambda peer: peer.ms))


def _lower_peer(rows: Sequence[Row]) -> LowerPeer:
    total = _sum(rows)
    difference = max(row.relative_rms for row in rows)
    return LowerPeer(rows[0].competitor, rows[0].precision, total.ms, total.speedup, difference)


def _sum(rows: Sequence[Row]) -> Point:
    return Point(
        ratio=rows[0].ratio,
        ms=sum(row.count * row.median_ms for row in rows),
        dense_ms=sum(row.count * row.fastest_dense_ms for row in rows),
        any_ms=sum(row.count * row.fastest_any_ms for row in rows),
        eager_ms=sum(row.count * row.eager_ms for row in rows),
        bound_ms=sum(row.count * row.bound_ms for row in rows),
    )


def _table_of_net(curve: Curve) -> Table:
    title = f"{curve.name}, {curve.first.image_size}×{curve.first.image_size}"
    columns = _columns(curve)
    lines = titled(title, ["competitor"], columns)
    for row in curve.rows:
        lines.add_row(row.label, *(show(row) for show in columns.values()))
    return lines


def _columns(curve: Curve) -> dict[str, Callable[[Row], str]]:
    """Return the columns of a net's table, of which a terminal of 80 characters has room for six.

    Beside lower precisions torch eager makes room: it has a row of its own.
    """
    has_lower = any(row.precision != FLOAT32 for row in curve.rows)
    has_memory = any(row.serving_mib is not None for row in curve.rows)
    lower: dict[str, Callable[[Row], str]] = {
        "against\nany": lambda row: f"{row.fastest_any_ms / row.median_ms:.2f}×",
        "relative\nRMS": lambda row: f"{row.relative_rms:.0e}",
    }
    eager: dict[str, Callable[[Row], str]] = {"against\neager": lambda row: f"{row.speedup_over_eager:.2f}×"}
    memory: dict[str, Callable[[Row], str]] = {
        "\nMiB": lambda row: "–" if row.serving_mib is None else f"{row.serving_mib:.0f}"
    }
    return {
        "ms": lambda row: f"{row.median_ms:.2f}",
        "spread": lambda row: f"{row.spread:.0%}",
        "against\nfloat32" if has_lower else "against\ndense": lambda row: f"{row.speedup:.2f}×",
        **(lower if has_lower else eager),
        # The peak is float32's.
        "% of\npeak": lambda row: f"{row.percent_of_peak:.0f}" if row.precision == FLOAT32 else "–",
        **(memory if has_memory else {}),
    }


def _table_of_layers(curve: Curve) -> Table:
    layers = layer_points(curve)
    count = sum({row.layer: row.count for row in curve.rows}.values())
    shapes = f"{len(layers)} shape{'s'[: len(layers) > 1]}"
    title = f"{curve.name}, {count} convolutions of {shapes}, {curve.first.image_size} pixels"
    times = ("ratio", "fastest\ndense ms", "prunekit\nms")
    against = ("against\nfloat32", "against\nany") if curve.lower else ("against\nfastest dense", "against\neager")
    lines = titled(title, (), (*times, *against, "slowest\nshape", "fastest\nshape"))
    for point in curve.points:
        by_shape = [one.speedup for layer in layers for one in layer if one.ratio == point.ratio]
        lines.add_row(
            f"{point.ratio:g} %",
            f"{point.dense_ms:.2f}",
            f"{point.ms:.2f}",
            f"{point.speedup:.2f}×",
            f"{point.speedup_over_any if curve.lower else point.eager_ms / point.ms:.2f}×",
            f"{min(by_shape):.2f}×",
            f"{max(by_shape):.2f}×",
        )
    return lines
