"""What an experiment's folder measured, and what its models found, from files that are written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from prunekit.experiments import Plan, compare, measured_values
from prunekit.experiments.measured import named_level
from prunekit.experiments.records import ROWS, keep_plan
from prunekit.experiments.sentences import summarize
from prunekit.experiments.tables import mean_table
from prunekit.files import csv_text
from prunekit.report.samples import write_samples
from tests.support.toy_work import PLAN

COLUMNS = (
    "run", "seed", "attack", "ratio", "structure", "scores", "pruning", "ap", "attacked_ap", "latency_ms", "allocation",
    "budget",
)  # fmt: skip
OBJECT = {"id": 7, "file_name": "7.png", "boxes": [[4, 4, 40, 40]], "labels": [0], "width": 64}
FOUND = [{"image_id": 7, "category_id": 1, "bbox": [4, 4, 36, 36], "score": 0.9}]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three runs that were pruned by two budgets, each shared in two ways."""
    factors = {"allocation": ["uniform", "lamp"], "budget": ["macs=50%", "macs=25%"]}
    keep_plan(Plan(**PLAN | {"factors": factors, "ratios": []}), tmp_path)
    rows: list[list[object]] = []
    for seed in range(3):
        for allocation, lead in (("uniform", 0.0), ("lamp", 0.1)):
            variant = ("unstructured", "scaled", "one-shot", 0.5 + lead + seed / 100, 0.3, 9.0, allocation)
            for ratio, budget in ((0, ""), (40 + seed + 100 * lead, "macs=50%"), (70 + seed + 100 * lead, "macs=25%")):
                rows.append([f"seed_{seed}", seed, "paper", ratio, *variant, budget])
    (tmp_path / ROWS).write_text(csv_text(COLUMNS, rows))
    (tmp_path / "runs" / "seed_0").mkdir(parents=True)
    (tmp_path / "runs" / "seed_0" / "config.yaml").write_text("model: yolov3-tiny\n")
    return tmp_path


def _keep_what_was_seen(run: Path) -> None:
    """Write what a run keeps of one image, clean and attacked through each model; the unpruned one finds its object."""
    (run / "examples" / "clean").mkdir(parents=True)
    (run / "detections").mkdir()
    example = OBJECT | {"categories": [{"id": 1, "name": "circle"}]}
    (run / "examples" / "examples.json").write_text(json.dumps({"images": [example]}))
    Image.new("RGB", (64, 64), "white").save(run / "examples" / "clean" / "7.png")
    pruned = [f"unstructured-scaled-one-shot-{of}macs_{n}_percent" for of in ("", "lamp-") for n in (50, 25)]
    for stem in ("ratio_0", *pruned):
        (run / "examples" / f"{stem}_attacked").mkdir()
        Image.new("RGB", (64, 64), "navy").save(run / "examples" / f"{stem}_attacked" / "7.png")
        (run / "detections" / f"{stem}_attacked.json").write_text(json.dumps(FOUND if stem == "ratio_0" else []))


def test_runs_are_compared_at_equal_budgets(experiment: Path) -> None:
    values = measured_values(experiment)
    assert values.ratios == pytest.approx((0, 46, 76))
    assert [len(cell) for cell in values.cells.values()] == [3] * 2 * 3 * 3
    assert mean_table("ap", values).headings[1:] == ("0 %", "macs=50%", "macs=25%")
    (found,) = (comparison for comparison in compare(values) if comparison.metric == "ap")
    after = "after Holm's correction lamp is higher at macs=50% and macs=25%"
    assert summarize(found) == f"ap, uniform vs. lamp: {after}."


def test_a_figure_shows_an_image_as_each_model_sees_it(experiment: Path, tmp_path: Path) -> None:
    values = measured_values(experiment)
    assert write_samples(experiment, values, tmp_path / "figures") == []
    _keep_what_was_seen(experiment / "runs" / "seed_0")
    (jpeg,) = write_samples(experiment, values, tmp_path / "figures")
    assert jpeg.startswith(b"\xff\xd8")
    with Image.open(tmp_path / "figures" / "sample-7.png") as figure:
        across, down = figure.width // 3, figure.height // 3
        corners = [[figure.getpixel((x * across + 5, y * down + 30)) for x in range(3)] for y in range(3)]
        places = ((0, 0), (0, 1), (1, 1), (0, 2), (2, 2))  # column and line
        boxes = [len({figure.getpixel((x * across + 30, y * down + n)) for n in range(25, 200)}) > 2 for x, y in places]
    white, navy = (255, 255, 255), (0, 0, 128)
    assert corners == [[white] * 3, [navy] * 3, [navy] * 3]  # the truth, then a line an allocation
    assert boxes == [True, True, False, True, False]  # the truth, unpruned, pruned, unpruned, pruned


@pytest.mark.parametrize(
    ("factor", "level", "name"),
    [
        ("grayscale", "True", "grayscale"),
        ("grayscale", "False", "color"),
        ("augment", "True", "augment"),
        ("augment", "False", "no augment"),
        ("width", "0.25", "width 0.25"),
        ("scores", "deeplift", "deeplift"),
        ("allocation", "", ""),
    ],
)
def test_a_level_can_be_told_without_its_factor(factor: str, level: str, name: str) -> None:
    assert named_level(factor, level) == name
