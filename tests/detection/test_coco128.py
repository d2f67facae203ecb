"""The official yolov3-tiny on real images: known figures, and what the attack does to them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunekit.attacks import PRESETS, pgd
from prunekit.attacks.presets import PAPER
from prunekit.detection import (
    AveragePrecision,
    Batch,
    CocoDataset,
    Detections,
    DetectionTask,
    Detector,
    collate,
    decode,
    detection_loss,
    evaluate_detections,
    load_darknet_weights,
    nms,
    yolov3_tiny,
)
from prunekit.detection.boxes import Heads
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.evaluation.overload import candidate_counts, with_overload
from tests.support.external_files import coco128, official_tiny_weights


@pytest.fixture(scope="module")
def net() -> Detector:
    net = yolov3_tiny().eval()
    load_darknet_weights(net, official_tiny_weights())
    return net


def batches(dataset: CocoDataset, size: int = 8) -> list[Batch]:
    starts = range(0, len(dataset), size)
    return [collate(dataset[i] for i in range(start, min(start + size, len(dataset)))) for start in starts]


def detect(net: Detector, images: Tensor, batch: Batch) -> dict[int, Detections]:
    with torch.no_grad():
        boxes, scores = decode(net(images), Heads.of(net))
    found = nms(boxes, scores, score_threshold=0.001, iou_threshold=0.45)
    return {
        image_id: Detections(letterbox.to_image(d.boxes), d.scores, d.classes)
        for image_id, letterbox, d in zip(batch.image_ids, batch.letterboxes, found, strict=True)
    }


def evaluate_clean(net: Detector, dataset: CocoDataset) -> AveragePrecision:
    found: dict[int, Detections] = {}
    for batch in batches(dataset):
        found |= detect(net, batch.images, batch)
    return evaluate_detections(dataset, found)


def test_the_official_model_has_its_known_average_precision(net: Detector) -> None:
    result = evaluate_clean(net, CocoDataset.open(coco128()))
    assert result.ap == pytest.approx(0.150, abs=0.006)
    assert result.ap50 == pytest.approx(0.298, abs=0.010)


def test_the_papers_attack_lowers_it_to_under_a_third(net: Detector) -> None:
    dataset = CocoDataset.open(coco128(), limit=8)
    found: dict[int, Detections] = {}
    for batch in batches(dataset):

        def loss(outputs: tuple[Tensor, ...], batch: Batch = batch) -> Tensor:
            return detection_loss(outputs, batch.targets, Heads.of(net)).total

        x_adv = pgd(net, batch.images, loss, PAPER)
        assert float((x_adv - batch.images).abs().max()) <= 0.05 + 1e-6
        found |= detect(net, x_adv, batch)
    clean = evaluate_clean(net, dataset)
    assert clean.ap > 0.1
    assert evaluate_detections(dataset, found).ap < clean.ap / 3


def test_an_attack_on_latency_multiplies_candidates_at_least_by_ten(net: Detector) -> None:
    dataset, task = CocoDataset.open(coco128(), 224, limit=2), DetectionTask.of(net)
    batch = collate(dataset[index] for index in range(2))
    options = EvaluationConfig()
    losses = with_overload(task.attack_losses(batch.targets), task, options)
    x_adv = PRESETS["latency"](net, batch.images, losses)
    assert float((x_adv - batch.images).abs().max()) <= 0.05 + 1e-6
    with torch.no_grad():
        before, after = (sum(candidate_counts(task, net(x), options)) for x in (batch.images, x_adv))
    assert after >= 10 * before > 0
