"""What an experiment's folder measured, from rows that are written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.experiments import Plan, compare, measured_values
from prunekit.experiments.records import ROWS, keep_plan
from prunekit.experiments.sentences import summarize
from prunekit.experiments.tables import mean_table
from prunekit.files import csv_text
from tests.support.toy_work import PLAN

COLUMNS = (
    "run", "seed", "ratio", "structure", "scores", "pruning", "ap", "attacked_ap", "latency_ms", "allocation", "budget",
)  # fmt: skip


def _experiment(out: Path) -> Path:
    """Write three runs that were pruned by two budgets, each shared in two ways."""
    factors = {"allocation": ["uniform", "lamp"], "budget": ["macs=50%", "macs=25%"]}
    keep_plan(Plan(**PLAN | {"factors": factors, "ratios": []}), out)
    rows: list[list[object]] = []
    for seed in range(3):
        for allocation, lead in (("uniform", 0.0), ("lamp", 0.1)):
            variant = ("unstructured", "scaled", "one-shot", 0.5 + lead + seed / 100, 0.3, 9.0, allocation)
            rows.append([f"seed_{seed}", seed, 0, *variant, ""])
            rows.append([f"seed_{seed}", seed, 40 + seed + 100 * lead, *variant, "macs=50%"])
            rows.append([f"seed_{seed}", seed, 70 + seed + 100 * lead, *variant, "macs=25%"])
    (out / ROWS).write_text(csv_text(COLUMNS, rows))
    (out / "runs" / "seed_0").mkdir(parents=True)
    (out / "runs" / "seed_0" / "config.yaml").write_text("model: yolov3-tiny\n")
    return out


def test_runs_are_compared_at_equal_budgets(tmp_path: Path) -> None:
    values = measured_values(_experiment(tmp_path))
    assert values.ratios == pytest.approx((0, 46, 76))
    assert [len(cell) for cell in values.cells.values()] == [3] * 2 * 3 * 3
    assert mean_table("ap", values).headings[1:] == ("0 %", "macs=50%", "macs=25%")
    (found,) = (comparison for comparison in compare(values) if comparison.metric == "ap")
    after = "after Holm's correction lamp is higher at macs=50% and macs=25%"
    assert summarize(found) == f"ap, uniform vs. lamp: {after}."
