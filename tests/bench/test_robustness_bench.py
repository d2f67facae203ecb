"""bench/robustness.py on data so small that its figures mean nothing: what is measured, kept and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.robustness import Cell, Rows, Start, make_start, measure_seed, parse_cells, parse_numbers, table
from prunekit.demo import DemoConfig
from prunekit.errors import InputError
from prunekit.pipeline import SilentProgress

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("robustness")


def _start(out: Path, seed: int) -> Start:
    sizes = {"num_train": 8, "num_val": 4, "image_size": 64, "epochs": 1, "pretrain_epochs": 1, "finetune_epochs": 1}
    return make_start(DemoConfig(out / f"seed-{seed}", seed, width=0.06, **sizes), SilentProgress())  # type: ignore[arg-type]


def test_every_step_is_a_row_and_none_is_measured_twice(out: Path) -> None:
    start, cells = _start(out, 0), (Cell("filter", 25),)
    rows = Rows(out / "rows.jsonl")
    measure_seed(start, cells, longer=(), equal_passes=True, rows=rows)
    # As given and pre-trained; one-shot and optimized before and after, one-shot also after one more epoch.
    assert [(row["pruning"], row["finetune_epochs"]) for row in rows.rows] == [
        ("none", 0), ("none", 0), ("one-shot", 0), ("one-shot", 1), ("one-shot", 2), ("optimized", 0), ("optimized", 1),
    ]  # fmt: skip
    pruned = [row for row in rows.rows if row["structure"] == "filter"]
    assert {row["kept_weights_share"] < 1 - 0.25 for row in pruned} == {True}  # what reads a dropped filter goes too
    path = out / "rows.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"seed": 0, "step"')  # killed in the middle of a line
    again = Rows(path)
    measure_seed(start, cells, longer=(), equal_passes=True, rows=again)
    assert again.rows == rows.rows
    again.add(rows.rows[0] | {"seed": 1})
    assert Rows(path).rows == [*rows.rows, rows.rows[0] | {"seed": 1}]


def test_the_table_has_mean_and_spread_over_the_seeds() -> None:
    step = {"step": "pruned", "structure": "filter", "ratio": 75.0, "pruning": "one-shot", "finetune_epochs": 0}
    figures = {"ap50": 0.5, "attacked_ap": 0.0, "attacked_ap50": None, "churn": 0.0}
    rows = [{"seed": seed, **step, **figures, "ap": ap} for seed, ap in ((0, 0.9), (1, 0.2), (0, 0.1))]
    line = table(rows).splitlines()[-1]  # of seed 0 the newer row counts
    assert line.startswith("| filter 75 %, one-shot | 2 | 0.150 ± 0.071 | 0.500 ± 0.000 | 0.000 ± 0.000 | – |")


@pytest.mark.parametrize("text", ["filters:75", "filter", "filter:0", "filter:100", "filter:1.2.3", "", "filter:75,"])
def test_cells_that_make_no_sense_are_refused(text: str) -> None:
    assert parse_cells("filter:75,hybrid:12.5") == (Cell("filter", 75), Cell("hybrid", 12.5))
    with pytest.raises(InputError, match=r"--cells: expected parts such as filter:75, .* got '"):
        parse_cells(text)


def test_seeds_that_are_no_numbers_are_refused() -> None:
    assert parse_numbers("--seeds", "0,12") == (0, 12)
    with pytest.raises(InputError, match="--seeds: expected whole numbers"):
        parse_numbers("--seeds", "0,x")
