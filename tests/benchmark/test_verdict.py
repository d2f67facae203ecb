"""The two comparisons, at the same precision and of the best of each: sentences, table, and lines of the plot."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from prunekit.benchmark.plot import draw
from prunekit.benchmark.rows import Row
from prunekit.benchmark.summary import Curve, Point, curves, table
from prunekit.benchmark.verdict import break_even, verdict

_COMMON: dict[str, Any] = {
    "run": "r", "date": "2026-01-01T00:00:00+00:00", "question": "end-to-end", "system": "s", "cpu": "c",
    "instruction_set": "avx2", "versions": {}, "kernels": "k", "threads": 1, "load": 0.0, "model": "net", "width": 1.0,
    "image_size": 32, "layer": None, "count": 1, "density": 1.0, "kept_macs": 1, "weight_bytes": 1, "choices": {},
    "runs": 2, "spread": 0.01, "gflops": 1.0, "percent_of_peak": 50.0, "peak_gflops": 64.0, "peak_kind": "fma",
    "dense_gemm_gflops": 64.0, "stream_gb_per_s": 16.0, "bound_ms": 1.0,
}  # fmt: skip
FLOAT32_MS, INT8_MS, EAGER_MS = 80.0, 20.0, 100.0


def row(name: str, ms: float, precision: str = "float32", ratio: float = 0.0, kind: str = "peer", **more: Any) -> Row:
    best, against = (INT8_MS, "engine, int8") if more.pop("has_lower", True) else (FLOAT32_MS, "engine")
    own = {"competitor": name, "kind": kind, "precision": precision, "ratio": ratio, "relative_rms": 0.004}
    times = {"median_ms": ms, "p90_ms": ms, "p99_ms": ms, "speedup_over_eager": EAGER_MS / ms}
    speedups = {"speedup": FLOAT32_MS / ms, "speedup_over_any": best / ms, "against": "engine", "against_any": against}
    return Row(**{**_COMMON, **own, **times, **speedups, "not_timed": {}, **more})


def rows_of(times: dict[float, float], has_lower: bool = True, **more: Any) -> list[Row]:
    """Rows of three peers, and of prunekit in so many milliseconds at each ratio."""
    more = {"has_lower": has_lower, **more}
    lower = [row("engine, int8", INT8_MS, "int8", **more)] if has_lower else []
    peers = [row("torch eager", EAGER_MS, **more), row("engine", FLOAT32_MS, **more), *lower]
    return peers + [row("prunekit", ms, ratio=ratio, kind="prunekit", **more) for ratio, ms in times.items()]


def curve_of(times: dict[float, float], has_lower: bool = True, **more: Any) -> Curve:
    (curve,) = curves(rows_of(times, has_lower, **more))
    return curve


def text_of(curve: Curve) -> str:
    console = Console(width=80, record=True)
    with console.capture() as capture:
        console.print(table(curve))
    return capture.get()


def test_both_comparisons_are_drawn_from_the_same_rows() -> None:
    same, best = verdict(curve_of({50.0: 40.0, 90.0: 10.0, 99.0: 5.0}))
    assert same == "Same precision, float32: faster than engine (80.00 ms) at all measured ratios, 16.00× at 99 %."
    assert best == (
        "Best of each, any precision: faster than engine, int8 (20.00 ms, relative RMS 4e-03) from about 78 % zeros on "
        "(interpolated), 4.00× at 99 %; at 50 % it would have to be 2.00× faster."
    )


def test_a_loss_at_every_ratio_says_how_much_is_missing() -> None:
    same, best = verdict(curve_of({50.0: 90.0, 90.0: 50.0}))
    assert "from about" in same
    assert best.endswith("(20.00 ms, relative RMS 4e-03) at 90 % zeros, where it would have to be 2.50× faster.")
    assert "slower than engine, int8" in best


def test_without_a_lower_precision_nothing_is_claimed_about_it() -> None:
    why = "openvino and nncf not installed (pip install 'prunekit[peers]')"
    lines = list(verdict(curve_of({90.0: 10.0}, has_lower=False, not_timed={"OpenVINO, int8": why, "OpenVINO": why})))
    assert lines[1:] == ["Best of each: no peer below float32 was timed.", f"OpenVINO, int8: not timed, {why}."]
    assert list(verdict(curve_of({}))) == []


@pytest.mark.parametrize(
    ("times", "pays"),
    [({50.0: 40.0, 90.0: 10.0, 99.0: 5.0}, "from about 78 % on"), ({50.0: 90.0}, "at none of the measured ratios")],
)
def test_beside_a_matrix_unit_it_is_said_from_where_on_zeros_pay(times: dict[float, float], pays: str) -> None:
    same, best, amx = verdict(curve_of(times, matrix_unit=True))
    assert "float32" in same
    assert "Best of each" in best
    assert f"scattered zeros cannot use: here they pay {pays}." in amx
    assert len(list(verdict(curve_of(times, has_lower=False, matrix_unit=True)))) == 2  # nothing to pay against


def test_layers_are_summed_and_each_has_its_own_fastest_peer() -> None:
    counts = {"a": 1, "b": 3}
    shapes: list[dict[str, Any]] = [{"question": "layers", "layer": name, "count": counts[name]} for name in counts]
    all_rows = [one for shape in shapes for one in rows_of({90.0: 10.0}, **shape)]
    (curve,) = curves(all_rows)
    assert (curve.points[0].ms, curve.points[0].dense_ms, curve.points[0].any_ms) == pytest.approx((40.0, 320.0, 80.0))
    assert (curve.lower[0].ms, curve.lower[0].speedup) == pytest.approx((80.0, 4.0))
    assert all("each layer's fastest peer" in line for line in verdict(curve))
    assert "2.00×" in text_of(curve)
    only_one = [one for one in all_rows if one.precision == "float32" or one.layer == "a"]
    assert curves(only_one)[0].lower == ()


def test_the_table_states_differences_and_fits_a_terminal() -> None:
    text = text_of(curve_of({90.0: 10.0}))
    line = next(line for line in text.splitlines() if "engine, int8" in line)
    assert [cell.strip() for cell in line.split("│")[1:-1]] == [
        "engine, int8", "20.00", "1%", "4.00×", "1.00×", "4e-03", "–"
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "RMS" not in text_of(curve_of({90.0: 10.0}, has_lower=False))


def test_the_plot_has_a_line_and_the_difference_for_each_lower_precision() -> None:
    (axes,) = draw([curve_of({50.0: 40.0, 90.0: 10.0})]).axes
    (lower,) = [line for line in axes.lines if line.get_linestyle() == "-." and len(np.asarray(line.get_xdata()))]
    assert set(np.asarray(lower.get_ydata())) == {4.0}
    assert [text.get_text() for text in axes.texts] == ["engine, int8 (4e-03)"]
    (plain,) = draw([curve_of({50.0: 40.0, 90.0: 10.0}, has_lower=False)]).axes
    assert not [line for line in plain.lines if line.get_linestyle() == "-."]


def points(**times: float) -> list[Point]:
    return [Point(float(ratio[1:]), ms, 100.0, 100.0, 100.0, 1.0) for ratio, ms in times.items()]


def test_break_even_is_exact_where_time_is_a_power_of_what_is_left() -> None:
    """The time 200 · (1 − s) is 100 at half; 200 · √(1 − s) at three quarters."""
    assert break_even(points(_0=200.0, _75=50.0, _99=2.0), lambda p: p.speedup) == pytest.approx(50.0)
    assert break_even(points(_0=200.0, _99=20.0), lambda p: p.speedup) == pytest.approx(75.0)


def test_break_even_counts_from_the_last_loss() -> None:
    assert break_even(points(_0=90.0, _50=110.0, _90=50.0), lambda p: p.speedup) == pytest.approx(
        100 * (1 - 0.5 * 0.2 ** (math.log(1.1) / math.log(2.2)))
    )
    assert break_even(points(_25=100.0, _50=90.0), lambda p: p.speedup) == 25.0
    assert break_even(points(_25=90.0, _50=100.1), lambda p: p.speedup) is None


def test_int8_is_compared_with_int8_and_the_better_precision_with_the_best() -> None:
    rows = rows_of({50.0: 40.0, 90.0: 10.0})
    rows += [row("prunekit, int8", ms, "int8", ratio, "prunekit") for ratio, ms in ((50.0, 16.0), (90.0, 12.0))]
    (curve,) = curves(rows)
    assert [point.ms for point in curve.points] == [40.0, 10.0]
    assert [point.ms for point in curve.int8] == [16.0, 12.0]
    assert [point.ms for point in curve.best] == [16.0, 10.0]
    _, int8, best = verdict(curve)
    assert int8 == "Same precision, int8: faster than engine, int8 (20.00 ms) at all measured ratios, 1.67× at 90 %."
    assert best.endswith("at all measured ratios, 2.00× at 90 %.")
    assert "prunekit, int8, 90 %" in text_of(curve)
    (axes,) = draw([curve]).axes
    assert "prunekit in int8: net, 1 thread" in {str(line.get_label()) for line in axes.lines}
