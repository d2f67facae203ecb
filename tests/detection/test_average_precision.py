from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prunekit.detection import (
    CocoDataset,
    Detections,
    evaluate_detections,
    write_detections_csv,
    write_detections_json,
)
from prunekit.errors import InputError
from tests.support.coco_files import small_content, write_coco
from tests.support.external_files import coco128


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


@pytest.fixture
def dataset(tmp_path: Path) -> CocoDataset:
    return CocoDataset.open(write_coco(tmp_path, small_content()), image_size=64)


def test_perfect_detections_score_one(dataset: CocoDataset) -> None:
    found = evaluate_detections(
        dataset, {7: detections((10, 5, 30, 35, 0.9, 1)), 3: detections((5.5, 10, 9.5, 14.25, 0.8, 0))}
    )
    assert (found.ap, found.ap50, found.ap75, found.ap_small) == pytest.approx((1, 1, 1, 1))
    # All objects are smaller than 32² pixels.
    assert math.isnan(found.ap_medium)
    assert math.isnan(found.ap_large)


def test_a_detection_counts_up_to_its_overlap(dataset: CocoDataset) -> None:
    # 14 of 20 columns: an IoU of 0.70, so right at 0.50 … 0.70 (five of ten) for one class of two.
    found = evaluate_detections(dataset, {7: detections((10, 5, 24, 35, 0.9, 1))})
    assert (found.ap50, found.ap75) == pytest.approx((0.5, 0))
    assert found.ap == pytest.approx(0.5 * 5 / 10)


def test_detections_inside_a_crowd_are_no_mistakes(dataset: CocoDataset) -> None:
    hit = (5.5, 10.0, 9.5, 14.25, 0.5, 0)
    inside_crowd = detections((1, 1, 20, 20, 0.9, 0))
    assert evaluate_detections(dataset, {3: detections(hit), 7: inside_crowd}).ap50 == pytest.approx(0.5)
    elsewhere = detections((1, 1, 20, 20, 0.9, 0))
    assert evaluate_detections(dataset, {3: detections(hit), 9: elsewhere}).ap50 == pytest.approx(0.25)


def test_no_detections_score_zero(dataset: CocoDataset, capsys: pytest.CaptureFixture[str]) -> None:
    for nothing in ({}, {7: detections()}):
        found = evaluate_detections(dataset, nothing)
        assert (found.ap, found.ap50, found.ap75, found.ap_small) == (0, 0, 0, 0)
        assert math.isnan(found.ap_large)
    assert capsys.readouterr().out == ""


def test_detections_of_unknown_images_are_refused(dataset: CocoDataset) -> None:
    with pytest.raises(InputError, match="image id 8"):
        evaluate_detections(dataset, {8: detections()})


def test_files_hold_cocos_ids_and_boxes(dataset: CocoDataset, tmp_path: Path) -> None:
    found = {7: detections((10, 5, 30, 35.5, 0.875, 1), (0, 0, 1, 2, 0.5, 0)), 3: detections()}
    write_detections_json(tmp_path / "a.json", found, dataset.categories)
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"image_id": 7, "category_id": 44, "bbox": [10, 5, 20, 30.5], "score": 0.875},
        {"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 2], "score": 0.5},
    ]
    write_detections_csv(tmp_path / "a.csv", found, dataset.categories)
    with (tmp_path / "a.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["image_id", "x1", "y1", "x2", "y2", "score", "class"],
            ["7", "10.00", "5.00", "30.00", "35.50", "0.875000", "bottle"],
            ["7", "0.00", "0.00", "1.00", "2.00", "0.500000", "bicycle"],
        ]


def test_figures_are_those_of_pycocotools_on_the_files(tmp_path: Path) -> None:
    """The annotation file and our results file, read by pycocotools alone, give the same figures."""
    dataset = CocoDataset.open(coco128())
    generator = torch.Generator().manual_seed(0)
    found = {}
    for record in dataset.images:
        noise = torch.randn(len(record.boxes), 4, generator=generator)
        boxes = record.boxes + noise * (record.boxes[:, 2:] - record.boxes[:, :2]).repeat(1, 2) / 8
        found[record.id] = Detections(boxes, torch.rand(len(boxes), generator=generator), record.labels)
    write_detections_json(tmp_path / "found.json", found, dataset.categories)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco128() / "annotations" / "instances_train2017.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "found.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = evaluate_detections(dataset, found)
    assert 0.1 < ours.ap < 0.9
    assert [ours.ap, ours.ap50, ours.ap75, ours.ap_small, ours.ap_medium, ours.ap_large] == pytest.approx(
        evaluation.stats[:6].tolist(), rel=1e-9
    )
