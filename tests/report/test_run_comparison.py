"""Runs next to each other: what differs between them, and their models at equal structure and ratio."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from prunekit.pipeline import RunFolder
from prunekit.report import write_run_comparison
from tests.support.written_runs import written_run


@pytest.fixture
def runs(tmp_path: Path) -> list[RunFolder]:
    of = ("scaled", "one-shot")
    first: list[tuple[object, ...]] = [  # its unpruned model is there for each variant
        *((0, s, *of, 0.4, 0.2, a, "") for s in ("unstructured", "filter") for a in ("uniform", "lamp")),
        (50, "unstructured", *of, 0.35, 0.15, "uniform", ""),
        (43.2, "filter", *of, 0.3, 0.1, "lamp", "macs=50%"),
    ]
    second: list[tuple[object, ...]] = [
        (0, "filter", *of, 0.41, 0.21, "uniform", ""),
        (41.7, "filter", *of, 0.31, 0.11, "uniform", "macs=50%"),
        (90, "unstructured", "deeplift", "optimized", 0.2, 0.05, "uniform", ""),
    ]
    return [written_run(tmp_path / "a", 0, 1, *first), written_run(tmp_path / "b", 1, 2, *second)]


def _lines(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]


def test_models_are_next_to_each_other_at_equal_structure_and_ratio(runs: list[RunFolder], tmp_path: Path) -> None:
    lines = _lines(write_run_comparison(runs, tmp_path / "out").read_text())
    start = lines.index(["unpruned"])
    shown = [line[:5] for line in lines[start:]]
    assert shown == [
        ["unpruned"], ["a", "", "", "", "0.400"], ["b", "", "", "", "0.410"],
        ["unstructured, 50 %"], ["a", "scaled", "one-shot", "uniform", "0.350"],
        ["unstructured, 90 %"], ["b", "deeplift", "optimized", "uniform", "0.200"],
        ["filter, macs=50%"], ["a", "scaled", "one-shot", "lamp", "0.300"],
        ["b", "scaled", "one-shot", "uniform", "0.310"],
    ]  # fmt: skip


def test_only_settings_that_differ_are_shown(runs: list[RunFolder], tmp_path: Path) -> None:
    lines = _lines(write_run_comparison(runs, tmp_path / "out").read_text())
    assert lines[: lines.index(["", "", "", "", "clean", "attacked", "one image, median ms"])] == [
        ["", "a", "b"], ["seed", "0", "1"], ["finetune.epochs", "1", "2"], ["threads", "1", "2"],
    ]  # fmt: skip


def test_all_rows_are_in_the_table(runs: list[RunFolder], tmp_path: Path) -> None:
    write_run_comparison(runs, tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["a"] * 6 + ["b"] * 3
    assert rows[-1]["scores"] == "deeplift"


def test_runs_of_the_same_name_are_told_apart(runs: list[RunFolder], tmp_path: Path) -> None:
    other = written_run(tmp_path / "more" / "a", 0, 1, (0, "filter", "scaled", "one-shot", 0.4, 0.2, "uniform", ""))
    page = write_run_comparison([runs[0], other], tmp_path / "out").read_text()
    assert f"<td>{tmp_path / 'more' / 'a'}</td>" in page
    assert "All settings, inputs, versions and machines are the same." in page
