"""Tests, corrections, effects and sentences on few numbers whose answers are known."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy import stats

from prunekit.errors import InputError
from prunekit.experiments import Comparison, Values, compare, read_values
from prunekit.experiments.comparisons import hedges_g, holm, is_same_model
from prunekit.experiments.sentences import describe, oddities, summarize
from prunekit.experiments.tables import all_tables, mean_table, p_value_table, run_tables
from tests.support.external_files import report_tables

HEADER = "structure,scores,metric,run,pruning_ratio_percent,value\n"
LEVELS = (("unstructured", "deeplift"), ("unstructured", "scaled"), ("filter", "scaled"))


def table(path: Path, lines: Sequence[tuple[object, ...]]) -> Values:
    path.write_text(HEADER + "".join(f"{','.join(map(str, line))}\n" for line in lines))
    return read_values(path)


@pytest.fixture
def values(tmp_path: Path) -> Values:
    """At 0 % a difference that cannot be, at 50 % a large one, at 90 % a small one."""
    of = {
        ("deeplift", 0): (0.50, 0.51, 0.52), ("scaled", 0): (0.40, 0.41, 0.42),
        ("deeplift", 50): (0.30, 0.31, 0.32), ("scaled", 50): (0.10, 0.11, 0.12),
        ("deeplift", 90): (0.05, 0.06, 0.07), ("scaled", 90): (0.02, 0.03, 0.045),
    }  # fmt: skip
    lines = [
        (structure, scores, "map", run, ratio, value + 0.001 * (structure == "filter"))
        for structure, scores in LEVELS
        for ratio in (0, 50, 90)
        for run, value in enumerate(of[scores, ratio], 1)
    ]
    lines += [("none", "none", "map", 1, 0, 0.2)]
    return table(tmp_path / "values.csv", lines)


def _of_scores(values: Values) -> Comparison:
    (found,) = (comparison for comparison in compare(values) if comparison.factor == "scores")
    return found


def test_holms_correction_of_a_textbooks_numbers() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_effect_by_hand() -> None:
    effect = hedges_g([1, 2, 3], [2, 3, 4])
    assert effect is not None
    assert (effect.g, effect.high - effect.g) == pytest.approx((-0.8, 1.959964 * math.sqrt(0.72)))
    assert hedges_g([1], [2, 3]) is None
    assert hedges_g([1, 1], [1, 1]) is None


def test_p_values_by_the_formulas(values: Values) -> None:
    point = _of_scores(values).points[2]
    a, b = ([0.05, 0.06, 0.07], [0.02, 0.03, 0.045])
    mean_a, mean_b = sum(a) / 3, sum(b) / 3
    var_a, var_b = (sum((x - mean) ** 2 for x in each) / 2 for each, mean in ((a, mean_a), (b, mean_b)))
    t = (mean_a - mean_b) / math.sqrt(var_a / 3 + var_b / 3)
    df = (var_a / 3 + var_b / 3) ** 2 / ((var_a / 3) ** 2 / 2 + (var_b / 3) ** 2 / 2)
    assert point.anova_p == pytest.approx(stats.f.sf(t * t, 1, 4))
    assert point.welch_p == pytest.approx(2 * stats.t.sf(abs(t), df))
    assert point.anova_p != pytest.approx(point.welch_p)


def test_only_pairs_that_differ_in_one_factor_are_compared(values: Values) -> None:
    assert [(c.factor, c.name) for c in compare(values)] == [
        ("structure", "unstructured vs. filter"),
        ("scores", "deeplift vs. scaled"),
    ]


def test_a_difference_at_zero_percent_is_never_significant(values: Values) -> None:
    comparison = _of_scores(values)
    at_zero, at_half, at_ninety = comparison.points
    assert at_zero.differs
    assert not at_zero.is_significant
    assert "not called significant" in describe(comparison, at_zero)
    assert at_half.is_significant
    assert describe(comparison, at_half).endswith("deeplift is higher.")
    assert at_ninety.differs
    (sentence,) = oddities(values, compare(values))
    assert "map, deeplift vs. scaled at 0 %" in sentence
    assert "3 of 3 runs differ" in sentence


def test_summaries_say_what_survives(values: Values, tmp_path: Path) -> None:
    structure, scores = compare(values)
    assert summarize(structure) == "map, unstructured vs. filter: no difference at any ratio."
    assert summarize(scores) == "map, deeplift vs. scaled: after Holm's correction deeplift is higher at 50 and 90 %."
    lines: list[tuple[object, ...]]
    lines = [("a", "x", "map", run, ratio, run) for ratio in (10, 20, 30) for run in range(3)]
    lines += [
        ("a", "y", "map", run, ratio, run + shift) for ratio, shift in ((10, 9), (20, 0), (30, 2.4)) for run in range(3)
    ]
    (found,) = compare(table(tmp_path / "more.csv", lines))
    kept = "map, x vs. y: after Holm's correction y is higher at 10 %; p < 0.05 at 30 % does not survive."
    assert summarize(found) == kept
    assert describe(found, found.points[1]).endswith("The data do not tell them apart.")
    weak: list[tuple[object, ...]]
    weak = [("a", "x", "map", run, ratio, run) for ratio in (10, 20, 30) for run in range(3)]
    weak += [
        ("a", "y", "map", run, ratio, run + (2.4 if ratio == 10 else 0.1)) for ratio in (10, 20, 30) for run in range(3)
    ]
    (found,) = compare(table(tmp_path / "weak.csv", weak))
    assert summarize(found) == "map, x vs. y: p < 0.05 at 10 %; no difference survives Holm's correction."
    assert "if this were the only test" in describe(found, found.points[0])


def test_one_run_and_equal_values_are_no_test(tmp_path: Path) -> None:
    lines = [("a", scores, "map", run, 0, 0.5) for scores in ("x", "y") for run in (1, 2)]
    lines += [("a", scores, "map", 1, 50, 0.5 + 0.1 * (scores == "x")) for scores in ("x", "y")]
    (comparison,) = compare(table(tmp_path / "few.csv", lines))
    assert [point.anova_p for point in comparison.points] == [None, None]
    assert "all values are equal" in describe(comparison, comparison.points[0])
    assert "two runs or more" in describe(comparison, comparison.points[1])
    assert "nothing can be said" in summarize(comparison)


def test_what_is_one_model_at_zero_percent() -> None:
    assert is_same_model("scores", "map", 0)
    assert not is_same_model("scores", "map", 25)
    assert not is_same_model("images", "map", 0)
    assert is_same_model("images", "latency_ms", 0)


def test_tables_hold_the_numbers_in_three_formats(values: Values) -> None:
    comparisons = compare(values)
    means = mean_table("map", values)
    assert means.headings == ("Pruning ratio", "0 %", "50 %", "90 %")
    assert means.rows[0] == (
        "unstructured, deeplift", "0.5100 ± 0.0100 (3)", "0.3100 ± 0.0100 (3)", "0.0600 ± 0.0100 (3)",
    )  # fmt: skip
    assert r"unstructured, deeplift & 0.5100 $\pm$ 0.0100 (3) &" in means.latex()
    assert r"0 \% & 50 \%" in means.latex()
    assert "| unstructured, deeplift | 0.5100 ± 0.0100 (3) |" in means.markdown()
    p_values = list(csv.reader(p_value_table(comparisons, "map", values).csv().splitlines()))
    assert float(p_values[2][2]) == pytest.approx(comparisons[1].points[1].anova_p, rel=5e-3)
    of_runs = run_tables("map", values)[0]
    assert of_runs.rows[1] == ("run 2", "0.51", "0.31", "0.06")
    assert of_runs.rows[-1] == ("standard deviation", "1.0e-02", "1.0e-02", "1.0e-02")
    assert len({each.stem for each in all_tables(values, comparisons)}) == 1 + 1 + 1 + 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric,run,value\n", "got none pruning_ratio_percent"),
        ("", "got none metric"),
        (HEADER, "Expected values, one a line, got none"),
        (HEADER + "a,b,map,1,0,high\n", "Expected a number as value, got 'high' in line 2"),
        (HEADER + "a,b,map,1,,0.5\n", "Expected a number as pruning_ratio_percent, got '' in line 2"),
        (HEADER + "a,b,map,1,0,nan\n", "Expected a number as value, got 'nan'"),
        (HEADER + "a,b,map,1,0,0.5\na,b,map,1,0,0.6\n", "got 1 again in line 3"),
    ],
)
def test_tables_that_make_no_sense_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "values.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_values(path)


# What the report calls its comparisons → what they are called here.
PUBLISHED = {
    "DeepLIFT vs. HYDRA (Unstructured)": "deeplift vs. scaled (unstructured)",
    "DeepLIFT vs. HYDRA (Structured)": "deeplift vs. scaled (structured)",
    "Unstructured vs. Structured (DeepLIFT)": "unstructured vs. structured (deeplift)",
    "Unstructured vs. Structured (HYDRA)": "unstructured vs. structured (scaled)",
    "Greyscale vs Colour (Un-structured DeepLIFT)": "colour vs. greyscale",
}


def test_the_reports_ninety_p_values_follow_from_its_values() -> None:
    folder = report_tables()
    comparisons = {(c.metric, c.name): c for c in compare(read_values(folder / "appendix_a.csv"))}
    with (folder / "anova_p_values.csv").open(newline="") as file:
        published = list(csv.DictReader(file))
    assert len(published) == 90
    assert len(comparisons) == 10
    for row in published:
        points = comparisons[row["metric"], PUBLISHED[row["comparison"]]].points
        (point,) = (point for point in points if point.ratio == float(row["pruning_ratio_percent"]))
        assert point.anova_p == pytest.approx(float(row["p_value"]), rel=0.01)


def test_what_survives_of_the_reports_claims() -> None:
    values = read_values(report_tables() / "appendix_a.csv")
    comparisons = compare(values)
    found = {c.name: [p.ratio for p in c.points if p.is_significant] for c in comparisons if c.metric == "map"}
    assert found["deeplift vs. scaled (unstructured)"] == [50, 65, 75, 85]
    assert found["deeplift vs. scaled (structured)"] == [50, 65, 75]
    points = [(c.metric, point) for c in comparisons for point in c.points]
    for metric, below, same, significant in (("map", 34, 2, 27), ("latency_ms", 29, 3, 22)):  # of docs/report.md
        differing = [point for name, point in points if name == metric and point.differs]
        counts = (len(differing), sum(p.is_same_model for p in differing), sum(p.is_significant for p in differing))
        assert counts == (below, same, significant)
    assert all((point.welch_p or 1) < 0.05 for _, point in points if point.differs)
    sentences = oddities(values, comparisons)
    assert any("map, unstructured vs. structured (scaled) at 0 %" in each and "9.00e-04" in each for each in sentences)
