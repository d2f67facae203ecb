"""The two comparisons of a bench in sentences: at the same precision, and the best of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from prunekit.benchmark.engines.precisions import FLOAT32, INT8
from prunekit.benchmark.peers import PEERS
from prunekit.benchmark.summary import Curve, Point

_LOWER = {peer.name for peer in PEERS.values() if peer.precision != FLOAT32}
Speedup = Callable[[Point], float]


def verdict(curve: Curve) -> Iterator[str]:
    """Yield what a curve says: prunekit against the fastest float32 peer, and against the fastest of any precision."""
    if not curve.points:
        return
    yield f"Same precision, float32: {_against(curve.points, lambda point: point.speedup, _fastest(curve))}."
    in_int8 = [peer for peer in curve.lower if peer.precision == INT8]
    if curve.int8 and in_int8:
        ms, name = in_int8[0].ms, f"{in_int8[0].name} ({in_int8[0].ms:.2f} ms)"
        yield f"Same precision, int8: {_against(curve.int8, lambda point: ms / point.ms, name)}."
    if curve.lower:
        over_any = _against(curve.best, lambda point: point.speedup_over_any, _best(curve))
        yield f"Best of each, any precision: {over_any}."
        if curve.first.matrix_unit:
            yield _beside_a_matrix_unit(curve)
    else:
        yield "Best of each: no peer below float32 was timed."
    not_timed = {name: why for row in curve.rows for name, why in row.not_timed.items() if name in _LOWER}
    for name, why in not_timed.items():
        yield f"{name}: not timed, {why}."


def _beside_a_matrix_unit(curve: Curve) -> str:
    """Say from where on zeros pay on a processor whose dense engines have a unit that zeros cannot use."""
    ratio = break_even(curve.best, lambda point: point.speedup_over_any)
    pays = "at none of the measured ratios" if ratio is None else f"from about {ratio:.0f} % on"
    return (
        "This processor has AMX, a unit for products of dense int8 and bfloat16 matrices, which scattered zeros cannot "
        f"use: here they pay {pays}. Filters that are removed (prunekit compact) make dense engines faster too."
    )


def break_even(points: Sequence[Point], speedup: Speedup) -> float | None:
    """Return the percentage of zeros from which on prunekit is at least as fast.

    Between two measured ratios, log(speedup) is taken as linear in log(1 − ratio / 100): a time proportional to a power
    of what is left.

    Args:
        points: By growing ratio.
        speedup: Of a point, over what it is compared with.

    Returns:
        The ratio in percent; the lowest measured one where prunekit is faster at all of them, None where it is slower
        at the highest.
    """
    faster = len(points)
    while faster and speedup(points[faster - 1]) >= 1:
        faster -= 1
    if faster == len(points):
        return None
    if not faster:
        return points[0].ratio
    below, above = points[faster - 1], points[faster]
    low, high = math.log(speedup(below)), math.log(speedup(above))
    left, right = math.log1p(-below.ratio / 100), math.log1p(-above.ratio / 100)
    return -100 * math.expm1(left + (right - left) * -low / (high - low))


def _against(points: Sequence[Point], speedup: Speedup, peer: str) -> str:
    first, last = points[0], points[-1]
    ratio = break_even(points, speedup)
    at_most = f"{speedup(last):.2f}× at {last.ratio:g} %"
    if ratio is None:
        return (
            f"slower than {peer} at {last.ratio:g} % zeros, where it would have to be {1 / speedup(last):.2f}× faster"
        )
    if ratio == first.ratio:
        return f"faster than {peer} at all measured ratios, {at_most}"
    return f"faster than {peer} from about {ratio:.0f} % zeros on (interpolated), {at_most}{_losses(points, speedup)}"


def _losses(points: Sequence[Point], speedup: Speedup) -> str:
    """Name the highest ratio that loses, and by how much."""
    lost = [point for point in points if speedup(point) < 1][-1]
    return f"; at {lost.ratio:g} % it would have to be {1 / speedup(lost):.2f}× faster"


def _fastest(curve: Curve) -> str:
    if curve.first.question == "layers":
        return "each layer's fastest peer"
    return f"{curve.first.against} ({curve.points[0].dense_ms:.2f} ms)"


def _best(curve: Curve) -> str:
    if curve.first.question == "layers":
        return "each layer's fastest peer"
    name = curve.first.fastest_any
    differences = [f", relative RMS {peer.relative_rms:.0e}" for peer in curve.lower if peer.name == name]
    return f"{name} ({curve.points[0].any_ms:.2f} ms{''.join(differences)})"
