"""Sensitivities, budgets and rounds from the command line, for a classifier and a detector."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from prunekit.pipeline import read_rows
from prunekit.pipeline.allocation import read_sensitivities
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, invoke, results, succeed

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED: Options = {"threads": 1}
MEASURED: Options = {"images": 12, "passes": 2, "batch-size": 8}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("colors")
    for part, per_class in (("train", 8), ("test", 3)):
        write_classes(root / part, ("blue", "green", "red"), per_class, size=16, seed=per_class)
    return root


@pytest.fixture(scope="module")
def weights(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "net"
    options = {"model": "resnet20", "width": 0.25, "data": colors, "objective": "clean", "max-steps": 10, "out": out}
    succeed("train", SHARED | options | {"train-batch-size": 8})
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def measured(colors: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "mrs"
    succeed("sensitivity", SHARED | MEASURED | {"weights": weights, "data": colors, "out": out})
    return out


def test_sensitivities_are_a_table_a_file_and_a_plot(measured: Path, colors: Path, weights: Path) -> None:
    with (measured / "sensitivities.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["module", "weights", "sensitivity", "first_order"]
    assert len(rows) == 22  # resnet20 with its two convolutions on shortcuts and the linear layer
    assert all(float(row["sensitivity"]) >= 0 for row in rows)
    assert (measured / "sensitivities.png").stat().st_size > 1000
    again = succeed("sensitivity", SHARED | MEASURED | {"weights": weights, "data": colors, "out": measured})
    assert "Finished earlier" in again.stdout
    assert "Rank correlation" in again.stdout


def test_measuring_goes_on_after_the_modules_that_are_done(
    measured: Path, colors: Path, weights: Path, tmp_path: Path
) -> None:
    options = SHARED | MEASURED | {"weights": weights, "data": colors, "out": tmp_path / "mrs"}
    succeed("sensitivity", options)
    whole = (tmp_path / "mrs/sensitivities.csv").read_text()
    assert whole == (measured / "sensitivities.csv").read_text()
    lines = whole.splitlines(keepends=True)
    lines[2] = lines[2].rpartition(",")[0] + ",123.0\n"  # to see that it is taken as it is
    (tmp_path / "mrs/sensitivities.csv").write_text("".join(lines[:6]))
    (tmp_path / "mrs/done.json").unlink()
    succeed("sensitivity", options)
    assert (tmp_path / "mrs/sensitivities.csv").read_text() == "".join(lines)


def test_a_fast_measurement_has_first_orders_alone(measured: Path, colors: Path, weights: Path, tmp_path: Path) -> None:
    options = SHARED | MEASURED | {"weights": weights, "data": colors, "method": "fast", "out": tmp_path / "mrs"}
    succeed("sensitivity", options)
    fast, exact = (read_sensitivities(out / "sensitivities.csv")[0] for out in (tmp_path / "mrs", measured))
    assert all(one.exact is None for one in fast.values())
    assert {name: one.first_order for name, one in fast.items()} == {k: one.first_order for k, one in exact.items()}


def test_pruning_to_a_budget_by_sensitivities(measured: Path, weights: Path, tmp_path: Path) -> None:
    options = {"weights": weights, "structure": "filter", "budget": "macs=60%", "allocation": "mrs", "image-size": 16}
    file = measured / "sensitivities.csv"
    succeed("prune", SHARED | options | {"sensitivities": file, "out": tmp_path / "half"})
    done = json.loads((tmp_path / "half/allocate/done.json").read_text())
    ratios = done["result"]["ratios"]
    assert 0 < max(ratios.values()) <= 90
    assert min(ratios.values()) == 0
    result = invoke("prune", SHARED | options | {"out": tmp_path / "none"})
    assert result.exit_code == 2
    assert "--allocation mrs needs images to measure sensitivities on" in result.stderr
    result = invoke("prune", SHARED | options | {"allocation": "lamp", "sensitivities": file, "out": tmp_path / "none"})
    assert result.exit_code == 2
    assert "--sensitivities is what --allocation mrs goes by" in result.stderr


def test_a_run_compares_allocations_at_one_budget(colors: Path, weights: Path, tmp_path: Path) -> None:
    options = SHARED | {
        "model": "resnet20", "width": 0.25, "weights": weights, "data": colors, "train-data": colors,
        "objective": "clean", "structure": "filter", "budget": "macs=60%", "allocation": "uniform,mrs", "max-steps": 2,
        "finetune-epochs": 1, "train-batch-size": 8, "attack": "none", "latency-runs": 3, "out": tmp_path / "run",
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text("sensitivity: {images: 12, passes: 1}\n")
    succeed("run", options | {"config": tmp_path / "config.yaml"})
    rows = read_rows(tmp_path / "run/results.csv")
    pruned = [row for row in rows if row["budget"]]
    assert [(row["allocation"], row["budget"]) for row in pruned] == [("uniform", "macs=60%"), ("mrs", "macs=60%")]
    for row in pruned:
        assert 0.5 * int(row["macs"]) < int(row["kept_macs"]) <= 0.6 * int(row["macs"])
        assert float(row["ratio"]) == pytest.approx(100 * float(row["sparsity"]))
    layers = json.loads((tmp_path / "run/layers/filter-scaled-one-shot-mrs-macs_60_percent.json").read_text())
    assert all(layer["sensitivity"] is not None for layer in layers)
    assert len({layer["ratio"] for layer in layers}) > 2
    page = (tmp_path / "run/report.html").read_text()
    assert "after the idea of MRPF" in page
    assert (tmp_path / "run/plots/allocation.png").is_file()


def test_rounds_end_within_the_budget_and_are_not_done_again(colors: Path, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("sensitivity: {images: 12, passes: 1}\n")
    options = SHARED | {
        "weights": weights, "data": colors, "budget": "macs=60%", "rounds": 2, "objective": "trades", "max-steps": 2,
        "train-batch-size": 8, "config": tmp_path / "config.yaml", "out": tmp_path / "mrpf",
    }  # fmt: skip
    succeed("mrpf", options)
    rounds = json.loads((tmp_path / "mrpf/rounds.json").read_text())
    kept = [sum(layer["kept_macs"] for layer in one["layers"]) for one in rounds]
    macs = sum(layer["macs"] for layer in rounds[0]["layers"])
    assert kept[1] < kept[0] < macs
    assert kept[1] <= 0.6 * macs * 1.001
    for first, second in zip(*(one["layers"] for one in rounds), strict=True):
        assert second["ratio"] >= first["ratio"]
    assert (tmp_path / "mrpf/model.prunekit").is_file()
    before = results(tmp_path / "mrpf")
    assert "Finished earlier" in succeed("mrpf", options).stdout
    assert results(tmp_path / "mrpf") == before


def test_a_detector_has_sensitivities_too(trained: Path, shapes_data: Path, tmp_path: Path) -> None:
    options = {"weights": trained / "model.safetensors", "data": shapes_data, "images": 2, "passes": 1}
    succeed("sensitivity", SHARED | options | {"image-size": 64, "out": tmp_path / "mrs"})
    found, weights = read_sensitivities(tmp_path / "mrs/sensitivities.csv")
    assert len(found) == 13
    assert all(one.value >= 0 for one in found.values())
    assert torch.isfinite(torch.tensor([one.value for one in found.values()])).all()
    assert weights.keys() == found.keys()


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"ratio": 50, "budget": "macs=50%"}, "--ratio and --budget say how much goes: give one of the two."),
        ({"budget": "macs=100%"}, "--budget: expected a budget below 100 %, as that is the whole model, got"),
        ({"budget": "macs=99G", "image-size": 16}, "Expected a budget below the"),
        ({"ratio": 50, "allocation": "best"}, "--allocation: must be one of uniform, global, erk, lamp, mrs, latency"),
        ({"budget": "macs=50%", "scope": "global"}, "--scope global is --allocation global"),
        ({"budget": "macs=1%", "structure": "filter", "image-size": 16}, "Expected a budget of at least"),
    ],
)
def test_what_cannot_be_is_one_sentence(choices: Options, sentence: str, weights: Path, tmp_path: Path) -> None:
    result = invoke("prune", SHARED | choices | {"weights": weights, "out": tmp_path / "out"})
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())
