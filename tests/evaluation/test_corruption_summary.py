"""What figures under corruptions amount to, against sums by hand; what is called mPC, rPC and mCE only if it is."""

from __future__ import annotations

from typing import Any

import pytest

from prunekit.evaluation.corruptions import BENCHMARK, VALIDATION, Cell, parse_corruptions
from prunekit.evaluation.corruptions.summary import CorruptionSummary
from prunekit.task import Figure

AP, ACCURACY = Figure("ap", "AP"), Figure("accuracy", "accuracy")


def value_of(cell: Cell) -> float:
    """Return something else for each cell."""
    return 0.5 - 0.05 * cell.severity - 0.01 * len(cell.corruption)


def summary(text: str, figure: Figure = AP, **more: Any) -> CorruptionSummary:
    values = {cell: value_of(cell) for cell in parse_corruptions(text)}
    return CorruptionSummary(figure, 0.4, values, figure is ACCURACY, **more)


def test_mpc_is_the_mean_of_the_benchmark_alone() -> None:
    expected = sum(value_of(Cell(name, severity)) for name in BENCHMARK for severity in range(1, 6)) / 75
    for text in ("benchmark", "all"):
        found = summary(text).figures()
        assert found["mpc"] == pytest.approx(expected)
        assert found["rpc"] == pytest.approx(expected / 0.4)
        assert found["cells"] == 75
        (line,) = summary(text).sentences()
        assert line == (
            f"Corruptions: P 0.400, mPC {expected:.3f}, rPC {expected / 0.4:.1%} "
            "(AP, mean over 15 corruptions at 5 severities)"
        )
    assert len(summary("all").figures()["by_cell"]) == 95


@pytest.mark.parametrize("text", ["fog,snow:3", "validation", "benchmark:3"])
def test_a_mean_of_other_cells_has_another_name(text: str) -> None:
    found, cells = summary(text).figures(), parse_corruptions(text)
    assert not {"mpc", "rpc", "mce"} & found.keys()
    assert found["mean"] == pytest.approx(sum(map(value_of, cells)) / len(cells))
    (line,) = summary(text).sentences()
    assert f"over {len(cells)} cells, not the 75 of the benchmark" in line
    assert "mPC" not in line


def test_errors_are_relative_to_a_baselines() -> None:
    baseline = {cell: 0.5 + 0.02 * cell.severity for cell in parse_corruptions("all")}
    ratios = []
    for name in BENCHMARK:
        cells = [Cell(name, severity) for severity in range(1, 6)]
        ratios.append(sum(1 - value_of(cell) for cell in cells) / sum(1 - baseline[cell] for cell in cells))
    found = summary("all", ACCURACY, baseline=baseline)
    assert found.figures()["mce"] == pytest.approx(sum(ratios) / 15)
    assert "mpc" not in found.figures()
    assert found.sentences()[1] == f"mCE relative to the baseline: {sum(ratios) / 15:.1%}"
    itself = summary("benchmark", ACCURACY, baseline={cell: value_of(cell) for cell in baseline})
    assert itself.corruption_error == pytest.approx(1)


def test_errors_of_other_cells_are_no_mce() -> None:
    baseline = dict.fromkeys(parse_corruptions("all"), 0.5)
    found = summary("fog", ACCURACY, baseline=baseline)
    assert "mce" not in found.figures()
    assert found.figures()["mean_corruption_error"] == pytest.approx(sum(1 - value_of(c) for c in found.values) / 2.5)
    assert "which is not mCE" in found.sentences()[1]
    assert "--corruption-baseline" in summary("fog", ACCURACY).sentences()[1]
    assert "mean_corruption_error" not in summary("fog", ACCURACY).figures()


def test_a_baseline_without_errors_gives_none() -> None:
    baseline = dict.fromkeys(parse_corruptions("benchmark"), 1.0)
    found = summary("benchmark", ACCURACY, baseline=baseline)
    assert found.figures()["mce"] is None
    assert "not defined" in found.sentences()[1]


def test_nothing_to_measure_on_is_no_zero() -> None:
    values: dict[Cell, float | None] = {Cell("fog", 1): 0.2, Cell("fog", 2): None}
    found = CorruptionSummary(AP, 0.4, values)
    assert (found.mean, found.relative, found.of_corruption("fog")) == (None, None, None)
    assert "mean not defined" in found.sentences()[0]
    assert CorruptionSummary(AP, 0.0, {Cell("fog", 1): 0.2}).relative is None


def test_a_corruptions_mean_is_over_its_own_severities() -> None:
    found = summary("snow:2,snow:4,fog:1")
    assert found.of_corruption("snow") == pytest.approx((value_of(Cell("snow", 2)) + value_of(Cell("snow", 4))) / 2)
    assert found.of_corruption(next(iter(VALIDATION))) is None
