"""Plots stay readable from one variant to many: every line told apart, named once, and nothing over the data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from prunekit.console import results_table
from prunekit.pipeline.known_names import PRUNINGS
from prunekit.prune import SCORES, STRUCTURES
from prunekit.report.plots import (
    GIVEN,
    PLOTS,
    UNPRUNED,
    Row,
    draw_accuracy,
    draw_latency,
    variants,
    write_plots,
)
from prunekit.task import Figure as ShownFigure

Variant = tuple[str, str, str]
Draw = Callable[[Sequence[Row], Sequence[ShownFigure]], Figure]

SHOWN = (ShownFigure("ap", "AP"), ShownFigure("ap50", "AP50"))

RATIOS = (0.0, 25.0, 50.0, 65.0, 75.0, 85.0, 90.0, 95.0, 99.0)
EIGHT = list(itertools.product(("unstructured", "filter"), ("scaled", "deeplift"), ("one-shot", "optimized")))
ALL = list(itertools.product(STRUCTURES, SCORES, PRUNINGS))
COUNTS = {"one": EIGHT[:1], "two": EIGHT[:2], "eight": EIGHT, "all": ALL}
FIGURES = ("ap", "ap50", "attacked_ap", "attacked_ap50", "latency_ms", "latency_ms_control", "speedup")


def make_rows(of: Sequence[Variant], given: bool = True, attack: str = "paper") -> list[Row]:
    """Return rows as results.csv has them: each variant has its own row at 0 %, all of one and the same model."""
    random = np.random.default_rng(0)

    def row(variant: Variant, ratio: float, figures: np.ndarray) -> Row:
        structure, scores, pruning = variant
        measured = dict(zip(FIGURES, map(str, figures), strict=True))
        bands = {f"{name}_p90": str(2 * float(measured[name])) for name in ("latency_ms", "latency_ms_control")}
        settings = {"images": "150", "attack": attack, "image_size": "128", "threads": "1"}
        what = {"structure": structure, "scores": scores, "pruning": pruning, "ratio": str(ratio)}
        return what | measured | bands | settings

    unpruned = random.random(len(FIGURES))
    rows = [row(("none", "none", "as given"), 0.0, random.random(len(FIGURES)))] if given else []
    for variant, ratio in itertools.product(of, RATIOS):
        rows.append(row(variant, ratio, unpruned if ratio == 0 else random.random(len(FIGURES))))
    return rows


def legend_texts(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("name", PLOTS)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("count", COUNTS)
def test_the_legend_is_below_the_axes_inside_the_picture_and_names_each_line_once(
    count: str, given: bool, name: str
) -> None:
    figure = PLOTS[name](make_rows(COUNTS[count], given), SHOWN)
    figure.draw_without_rendering()  # lays it out
    (legend,) = figure.legends
    box = legend.get_window_extent()
    for axes in figure.axes:
        assert axes.get_legend() is None
        labeled = axes.get_tightbbox()
        assert labeled is not None
        assert box.y1 <= labeled.y0
        assert axes.get_window_extent().height > 250  # pixels, of 160 an inch
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= figure.bbox.x1
    texts = legend_texts(figure)
    assert len(texts) == len(set(texts))
    if count in ("eight", "all"):
        lines = {variant for variant in variants(make_rows(COUNTS[count])) if variant not in (GIVEN, UNPRUNED)}
        assert set(texts) - lines == ({GIVEN, UNPRUNED} if given else {UNPRUNED})


@pytest.mark.parametrize("draw", [draw_accuracy, draw_latency])
@pytest.mark.parametrize("count", ["two", "eight", "all"])
def test_no_two_lines_look_alike(count: str, draw: Draw) -> None:
    figure = draw(make_rows(COUNTS[count]), SHOWN)
    for axes in figure.axes:
        looks = [
            (line.get_color(), line.get_marker(), line.get_linestyle(), to_hex(line.get_markerfacecolor()))
            for line in axes.lines
        ]
        assert len(set(looks)) == len(looks) == len(COUNTS[count]) + 2


def test_color_says_structure_and_scores_dashes_say_pruning() -> None:
    (clean, attacked) = draw_accuracy(make_rows(EIGHT), SHOWN).axes
    for axes in (clean, attacked):
        lines = {str(line.get_label()): line for line in axes.lines}
        for structure, scores in itertools.product(("unstructured", "filter"), ("scaled", "deeplift")):
            one_shot, optimized = (lines[f"{structure}, {scores}, {pruning}"] for pruning in ("one-shot", "optimized"))
            assert one_shot.get_color() == optimized.get_color()
            assert (one_shot.get_linestyle(), optimized.get_linestyle()) == ("--", "-")
        assert len({line.get_color() for line in axes.lines}) == 4 + 1  # gray for what is not pruned


def test_every_line_starts_at_the_unpruned_model_and_follows_its_rows() -> None:
    rows = make_rows(EIGHT)
    for axes, column in zip(draw_accuracy(rows, SHOWN).axes, ("ap50", "attacked_ap50"), strict=True):
        lines = {str(line.get_label()): line for line in axes.lines}
        for variant in EIGHT:
            own = [row for row in rows if (row["structure"], row["scores"], row["pruning"]) == variant]
            line = lines[", ".join(variant)]
            assert np.asarray(line.get_xdata()).tolist() == list(RATIOS)
            assert np.asarray(line.get_ydata()).tolist() == [float(row[column]) for row in own]


def test_panels_share_one_scale_that_shows_all_of_it() -> None:
    rows = [dict(row) for row in make_rows(EIGHT)]
    rows[-1]["latency_ms_control"] = "50"  # only in the second panel
    accelerated, control = draw_latency(rows).axes
    assert accelerated.get_ylim() == control.get_ylim()
    assert accelerated.get_ylim()[0] == 0
    assert accelerated.get_ylim()[1] > 50


def test_without_an_attack_nothing_is_said_of_one() -> None:
    assert len(draw_accuracy(make_rows(EIGHT, attack="none"), SHOWN).axes) == 1
    assert legend_texts(draw_accuracy(make_rows(EIGHT[:1], given=False, attack="none"), SHOWN)) == [
        "AP50, clean",
        "AP, clean",
    ]


def test_an_empty_cell_is_a_gap() -> None:
    rows = [dict(row) for row in make_rows(EIGHT[:1], given=False)]
    rows[3]["ap50"] = ""
    (line, *_) = draw_accuracy(rows, SHOWN).axes[0].lines
    assert np.flatnonzero(np.isnan(np.asarray(line.get_ydata()))).tolist() == [3]


def test_labels_of_near_ticks_do_not_touch() -> None:
    rows = [
        dict(row, ratio=str(ratio))
        for row, ratio in zip(make_rows(EIGHT[:1], False), (0, 90, 95, 98, 99), strict=False)
    ]
    (axes,) = draw_latency(rows).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "90", "95", "", "99"]


def test_the_unpruned_model_is_one_row_of_the_console_table() -> None:
    rows = make_rows(EIGHT)
    table = results_table(rows, SHOWN)
    assert table.row_count == 1 + 1 + len(EIGHT) * (len(RATIOS) - 1)
    assert list(variants(rows))[:2] == [GIVEN, UNPRUNED]
    assert len(variants(rows)[UNPRUNED]) == 1


def test_a_run_of_nothing_but_the_unpruned_model_is_drawn(tmp_path: Path) -> None:
    rows = [row for row in make_rows(EIGHT, given=False) if row["ratio"] == "0.0"]
    for path in write_plots(rows, tmp_path, SHOWN).values():
        with Image.open(path) as image:
            assert image.width > 800
