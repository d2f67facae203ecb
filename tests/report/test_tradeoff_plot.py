"""The picture to decide by: every model a point in each precision, and the front of those that nothing beats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prunekit.report.plots import UNPRUNED
from prunekit.report.tradeoff_plot import draw_tradeoff, front, gains, points_of
from prunekit.task import Figure
from tests.report.test_plots import EIGHT, RATIOS, make_rows

AP = Figure("ap", "AP")


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(3.0, 0.5), (1.0, 0.2), (2.0, 0.4), (2.5, 0.3), (4.0, 0.5), (0.5, math.nan), (1.0, 0.1)]
    assert front(points) == [(1.0, 0.2), (2.0, 0.4), (3.0, 0.5)]
    assert front([]) == []


def test_every_model_is_a_point_in_each_precision_that_it_has() -> None:
    rows = [dict(row) for row in make_rows(EIGHT[:2], given=False)]
    rows[-1] |= {"int8_latency_ms": "0.125", "int8_ap": "0.25", "int8_attacked_ap": "0.0625"}
    rows[-2] |= {"int8_latency_ms": "", "latency_ms_compacted_accelerated": "0.001"}
    points = points_of(rows, AP)
    assert len(points) == 1 + 2 * (len(RATIOS) - 1) + 1
    (int8,) = (point for point in points if point.precision == "int8")
    assert (int8.ms, int8.clean, int8.attacked, int8.ratio) == (0.125, 0.25, 0.0625, RATIOS[-1])
    assert min(point.ms for point in points) == 0.001  # of the compacted model


@pytest.mark.parametrize(("attack", "panels"), [("paper", 2), ("none", 1)])
def test_the_picture_names_each_kind_of_point_once(attack: str, panels: int) -> None:
    rows = [dict(row, int8_latency_ms="0.2", int8_ap="0.4") for row in make_rows(EIGHT[:2], given=False, attack=attack)]
    figure = draw_tradeoff(rows, AP)
    assert len(figure.axes) == panels
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(set(texts)) == len(texts) == 2 * 3 + 2
    assert {f"{UNPRUNED}, float32", f"{UNPRUNED}, int8", "Pareto front", "unpruned, torch eager"} <= set(texts)


def test_the_fastest_dense_engine_is_a_line_in_each_panel() -> None:
    rows, dense = make_rows(EIGHT[:2], given=False), {"slow": 9.0, "quick": 0.5}
    figure = draw_tradeoff(rows, AP, dense)
    for axes in figure.axes:
        (line,) = (line for line in axes.lines if line.get_label() == "unpruned, quick")
        assert np.unique(line.get_xdata()).tolist() == [0.5]
    assert "unpruned, quick" in {text.get_text() for text in figure.legends[0].get_texts()}


def test_gains_are_relative_to_the_unpruned_model_and_the_fastest_dense_engine() -> None:
    rows = [dict(row) for row in make_rows(EIGHT[:2], given=False)]
    for row in rows:
        row |= {"latency_ms": "2" if float(row["ratio"]) else "8", "latency_ms_compacted_accelerated": ""}
        row |= {"ap": "0.25" if float(row["ratio"]) else "0.5", "attacked_ap": "0"}
    rows[0] |= {"int8_latency_ms": "4", "int8_ap": "0.4"}
    unpruned, int8, *pruned = gains(rows, AP, {"slow": 30.0, "quick": 6.0})
    assert (unpruned.over_unpruned, unpruned.over_dense, unpruned.clean) == (1, 0.75, 1)
    assert (int8.point.precision, int8.over_unpruned, int8.over_dense, int8.clean) == ("int8", 2, 1.5, 0.8)
    assert {(gain.over_unpruned, gain.over_dense, gain.clean) for gain in pruned} == {(4, 3, 0.5)}
    assert all(math.isnan(gain.attacked) for gain in pruned)
    assert math.isnan(gains(rows, AP)[0].over_dense)
    assert gains([row for row in rows if float(row["ratio"])], AP) == []
