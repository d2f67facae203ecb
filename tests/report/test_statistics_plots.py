"""Curves of many runs: what they show are the means of the values, with their spread."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer

from prunekit.experiments.values import collect
from prunekit.report.statistics_plots import draw_means

COLUMNS = ("scores", "metric", "run", "ratio", "value")
FOUND = {
    ("deeplift", "0"): "0.5 0.6 0.7",
    ("deeplift", "90"): "0.2 0.2 0.2",
    ("scaled", "0"): "0.4 0.5",
    ("scaled", "90"): "0.1",
}


def test_curves_are_means_with_standard_deviations_and_a_dashed_line() -> None:
    rows = [
        dict(zip(COLUMNS, (scores, "map", str(run), ratio, value), strict=True))
        for (scores, ratio), found in FOUND.items()
        for run, value in enumerate(found.split())
    ]
    values = collect(rows, COLUMNS, "here").with_given({"map": 0.176})
    (axes,) = draw_means(values, "map", values.configurations).axes
    curves = {bar.get_label(): bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)}
    means = {name: np.asarray(bar.lines[0].get_ydata()).tolist() for name, bar in curves.items()}
    assert means["deeplift"] == pytest.approx([0.6, 0.2])
    assert means["scaled"] == pytest.approx([0.45, 0.1])
    (lower, upper), _ = curves["deeplift"].lines[2][0].get_segments()
    assert (lower[1], upper[1]) == pytest.approx((0.5, 0.7))
    (dashed,) = (line for line in axes.lines if line.get_label() == "weights as given")
    assert np.asarray(dashed.get_ydata()).tolist() == [0.176] * 2
    assert dashed.get_linestyle() == "--"
