"""Average precision of what torchvision's detectors find, by the protocol of torchvision's references.

There a label is the category id, and pycocotools is given boxes as xywh in pixels of the original images.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from prunekit.detection import CocoDataset, Detections
from prunekit.detection.torchvision_families import FAMILIES
from tests.support.torchvision_nets import CLASSES, WITH_BACKGROUND, Thresholds, problem, torchvision_twin

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
Found = Mapping[int, Mapping[str, Tensor]]  # by image id, as torchvision returns it: boxes xyxy, scores, labels


@pytest.mark.parametrize("name", FAMILIES)
def test_average_precision_is_that_of_torchvision_s_protocol(name: str, tmp_path: Path) -> None:
    case, first = problem(name), int(name in WITH_BACKGROUND)
    options = Thresholds(max_detections=100)
    twin = torchvision_twin(case, options)
    images = [noise(tmp_path, 3, 96, 64), noise(tmp_path, 9, 60, 90)]
    write_coco(tmp_path, images, [{"image_id": 3, "category_id": first, "bbox": [0, 0, 9, 9]}], first)
    data = CocoDataset.open(tmp_path, case.x.shape[-1])

    theirs: dict[int, dict[str, Tensor]] = {}
    ours: dict[int, Detections] = {}
    for sample in (data[index] for index in range(len(data))):
        with torch.no_grad():
            found = twin([sample.image])[0]
        theirs[sample.image_id] = {**found, "boxes": sample.letterbox.to_image(found["boxes"])}
        ours |= case.task.predict(case.model, sample.image[None], data.collate([sample]), options)
        assert_same(ours[sample.image_id], theirs[sample.image_id], first)
    write_coco(tmp_path, images, moved(theirs), first)
    data = CocoDataset.open(tmp_path, case.x.shape[-1])
    figures = case.task.metrics(ours, data)
    expected = torchvision_s_figures(tmp_path / "annotations" / "instances.json", theirs)
    assert 0.01 < expected["ap"] < 0.99
    assert {figure: figures[figure] for figure in FIGURES} == pytest.approx(expected, rel=1e-9, nan_ok=True)


def noise(folder: Path, number: int, width: int, height: int) -> dict[str, Any]:
    """Write an image, and return its entry of the annotations."""
    pixels = torch.randint(256, (height, width, 3), generator=torch.Generator().manual_seed(number))
    Image.fromarray(pixels.byte().numpy()).save(folder / f"{number}.png")
    return {"id": number, "file_name": f"{number}.png", "width": width, "height": height}


def write_coco(folder: Path, images: list[dict[str, Any]], objects: list[dict[str, Any]], first: int) -> None:
    """Write annotations of categories whose ids are torchvision's labels, from `first` on."""
    annotations = [
        {"id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3], **entry}
        for number, entry in enumerate(objects, 1)
    ]
    categories = [{"id": first + label, "name": f"class {label}"} for label in range(CLASSES)]
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances.json").write_text(json.dumps(content))


def moved(found: Found) -> list[dict[str, Any]]:
    """Return two of three boxes, shrunk towards their centers by up to a sixth, as objects that are there."""
    objects = []
    for image_id, one in found.items():
        for number, (box, label) in enumerate(zip(one["boxes"].tolist(), one["labels"].tolist(), strict=True)):
            (x1, y1, x2, y2), share = box, number % 8 / 42
            if number % 3 and x2 - x1 > 2 and y2 - y1 > 2:
                width, height = (x2 - x1) * (1 - share), (y2 - y1) * (1 - share)
                bbox = [(x1 + x2 - width) / 2, (y1 + y2 - height) / 2, width, height]
                objects.append({"image_id": image_id, "category_id": label, "bbox": bbox})
    return objects


def torchvision_s_figures(annotations: Path, found: Found) -> dict[str, float]:
    """Evaluate as torchvision's references do."""
    results = []
    for image_id, one in found.items():
        boxes, labels, scores = (one[key].tolist() for key in ("boxes", "labels", "scores"))
        for (x1, y1, x2, y2), label, score in zip(boxes, labels, scores, strict=True):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": image_id, "category_id": label, "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), iouType="bbox")
        evaluation.params.imgIds = sorted(found)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats[: len(FIGURES)].tolist()
    return {figure: value if value >= 0 else float("nan") for figure, value in zip(FIGURES, stats, strict=True)}


def assert_same(ours: Detections, theirs: Mapping[str, Tensor], first: int) -> None:
    torch.testing.assert_close(ours.boxes, theirs["boxes"])
    torch.testing.assert_close(ours.scores, theirs["scores"])
    assert torch.equal(ours.classes + first, theirs["labels"])
