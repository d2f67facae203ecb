from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from prunekit.detection import Annotation, Category, CocoDataset, Detections, ImageRecord
from prunekit.detection.average_precision import _found, _ground_truth
from prunekit.detection.coco_json import CocoAnnotations
from prunekit.detection.rates import attack_success, confident, false_positives, match_all


def dataset_of(*images: list[tuple[list[float], int, bool]], num_classes: int = 3) -> CocoDataset:
    """Images 100×100 with objects (box, label, is_crowd); ids count from 1."""
    records = [
        ImageRecord(number, f"{number}.png", 100, 100, [annotation(*an_object) for an_object in objects])
        for number, objects in enumerate(images, start=1)
    ]
    categories = [Category(10 * label, f"class {label}") for label in range(num_classes)]
    return CocoDataset(CocoAnnotations(records, categories, []), Path())


def annotation(box: list[float], label: int, is_crowd: bool) -> Annotation:
    x1, y1, x2, y2 = box
    return Annotation((x1, y1, x2, y2), label, (x2 - x1) * (y2 - y1), is_crowd)


def detected(*found: tuple[list[float], float, int]) -> Detections:
    """Detections (box, score, class), best first."""
    boxes = torch.tensor([box for box, _, _ in found]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in found])
    return Detections(boxes, scores, torch.tensor([label for _, _, label in found], dtype=torch.int64))


A, NEAR_A, B, C = [10.0, 10, 30, 30], [11.0, 10, 30, 31], [50.0, 50, 90, 90], [0.0, 60, 20, 90]


def test_a_second_box_another_class_and_an_empty_place_are_false() -> None:
    dataset = dataset_of([(A, 0, False), (B, 1, False)], [])
    found = {
        1: detected((A, 0.9, 0), (NEAR_A, 0.8, 0), (B, 0.7, 2), (B, 0.6, 1), (C, 0.55, 0), (C, 0.4, 0)),
        2: detected((A, 0.7, 0)),
    }
    rates = false_positives(dataset, found)
    assert (rates.per_image, rates.share, rates.detections) == (4 / 2, 4 / 6, 6)


def test_without_detections_there_is_no_share() -> None:
    rates = false_positives(dataset_of([(A, 0, False)]), {})
    assert (rates.per_image, rates.detections) == (0, 0)
    assert math.isnan(rates.share)


def test_an_object_goes_to_the_best_score_not_to_the_best_box() -> None:
    (matching,) = match_all(dataset_of([(A, 0, False)]), {1: detected((NEAR_A, 0.9, 0), (A, 0.8, 0))})
    assert matching.is_false.tolist() == [False, True]


def test_each_detection_takes_the_best_box_that_is_free() -> None:
    dataset = dataset_of([(NEAR_A, 0, False), (A, 0, False)])
    (matching,) = match_all(dataset, {1: detected((A, 0.9, 0), (A, 0.8, 0))})
    assert matching.is_found.tolist() == [True, True]
    assert matching.is_false.tolist() == [False, False]


def test_crowds_excuse_detections_of_their_class_and_are_not_to_be_found() -> None:
    dataset = dataset_of([(A, 0, False), ([40.0, 40, 100, 100], 1, True)])
    found = {1: detected((A, 0.9, 0), (B, 0.8, 1), (B, 0.7, 2))}
    (matching,) = match_all(dataset, found)
    assert matching.is_found.tolist() == [True]
    assert matching.is_false.tolist() == [False, False, True]


def test_confident_begins_at_one_half() -> None:
    kept = confident({7: detected((A, 0.9, 0), (B, 0.5, 1), (C, 0.4999, 2))})
    assert kept[7].classes.tolist() == [0, 1]


def test_success_is_what_was_found_clean_and_is_not_any_more() -> None:
    dataset = dataset_of([(A, 0, False), (B, 1, False), (C, 2, False)], [(A, 0, False)])
    clean = {1: detected((A, 0.9, 0), (B, 0.9, 1), (C, 0.9, 2))}  # the second image's object is not found clean
    attacked = {1: detected((A, 0.9, 0), (B, 0.8, 2), (C, 0.3, 2)), 2: detected((A, 0.9, 0))}
    success = attack_success(dataset, clean, attacked)
    assert (success.rate, success.lost, success.mislabeled, success.objects) == (2 / 3, 1 / 3, 1 / 3, 3)
    assert attack_success(dataset, clean, clean).rate == 0


def test_where_nothing_was_found_clean_no_attack_can_succeed() -> None:
    success = attack_success(dataset_of([(A, 0, False)], []), {}, {1: detected((A, 0.9, 0))})
    assert math.isnan(success.rate)
    assert success.objects == 0


def random_boxes(count: int, generator: torch.Generator) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * 40
    return torch.cat([corner, corner + 20 + 40 * torch.rand(count, 2, generator=generator)], dim=1)


@pytest.mark.parametrize("seed", range(5))
def test_matches_are_pycocotools(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, found = [], {}
    for number in range(1, 9):
        objects = random_boxes(6, generator)
        crowded = [number % 3 == 0, *[False] * 5]
        images.append(
            [(box, k % 2, crowd) for k, (box, crowd) in enumerate(zip(objects.tolist(), crowded, strict=True))]
        )
        boxes = torch.cat([objects + torch.randn(6, 4, generator=generator) * 3, random_boxes(8, generator)])
        scores = (0.5 + torch.rand(14, generator=generator) / 2).sort(descending=True).values
        found[number] = Detections(boxes, scores, torch.randint(2, (14,), generator=generator))
    dataset = dataset_of(*images)
    evaluation = COCOeval(_ground_truth(dataset), _found(dataset, found), iouType="bbox")
    evaluation.evaluate()
    # First area range (all) and first threshold (IoU 0.5), image by image and class by class.
    per_image = [entry for entry in evaluation.evalImgs if entry and entry["aRng"] == [0, 1e10]]
    expected_false = sum(int(((e["dtMatches"][0] == 0) & ~e["dtIgnore"][0].astype(bool)).sum()) for e in per_image)
    expected_found = sum(int(((e["gtMatches"][0] > 0) & ~e["gtIgnore"].astype(bool)).sum()) for e in per_image)
    matchings = match_all(dataset, found)
    assert sum(int(m.is_false.sum()) for m in matchings) == expected_false > 0
    assert sum(int(m.is_found.sum()) for m in matchings) == expected_found > 0
