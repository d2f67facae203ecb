"""Files that hold data and detectors: COCO annotations, darknet's weights, the pipeline's detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prunekit.detection import (
    CocoDataset,
    DetectionTask,
    Detector,
    Sample,
    collate,
    evaluate_detections,
    load_darknet_weights,
    save_darknet_weights,
    yolov3_tiny,
)
from prunekit.pipeline.checkpoint import Checkpoint, open_checkpoint, save_model, spec_of
from prunekit.prune import MaskRule, apply_masks, score_model
from prunekit.task import task_of

_IMAGE_SIZE = 64  # pixels
_NUM_CLASSES, _WIDTH = 2, 0.02


class CocoKind:
    """A COCO annotation file with three images beside it: boxes, polygons, run lengths and a crowd."""

    name = "coco"

    def write(self, folder: Path) -> Path:
        """Write images and the JSON."""
        sizes = {"a.png": (60, 40), "b.jpg": (30, 50), "c.png": (32, 32)}
        for file_name, size in sizes.items():
            Image.new("RGB", size, (90, 120, 30)).save(folder / file_name)
        file = folder / "instances.json"
        file.write_text(json.dumps(_coco_content(sizes)))
        return file

    def open(self, path: Path) -> object:
        """Decode all samples and evaluate an empty list of detections against them."""
        dataset = CocoDataset.open(path, _IMAGE_SIZE, on_bad_image="skip")
        samples = [dataset[index] for index in range(len(dataset))]
        collate(samples)
        evaluate_detections(dataset, {})
        return samples

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether all boxes lie in their image; which ones there are, the damage may have changed."""
        assert isinstance(found, list)
        return bool(found) and all(_is_in_range(sample) for sample in found)


class ImageKind:
    """A JPEG of noise between two whole ones; `on_bad_image="skip"` has to find whatever it cannot decode."""

    name = "image"

    def write(self, folder: Path) -> Path:
        """Write three images and the JSON."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (40, 60, 3), generator=generator, dtype=torch.uint8).numpy()
        sizes = dict.fromkeys(("a.jpg", "b.jpg", "c.jpg"), (60, 40))
        for file_name in sizes:
            Image.fromarray(pixels).save(folder / file_name)
        content = _coco_content(sizes)
        content["annotations"] = [{"id": i, "image_id": i, "category_id": 2, "bbox": [5, 5, 9, 9]} for i in (1, 2, 3)]
        (folder / "instances.json").write_text(json.dumps(content))
        return folder / "b.jpg"

    def open(self, path: Path) -> object:
        """Take every sample of the data set beside the image."""
        dataset = CocoDataset.open(path.parent / "instances.json", _IMAGE_SIZE, on_bad_image="skip")
        return [dataset[index] for index in range(len(dataset))]

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether the other two images came, and every box lies in its image."""
        assert isinstance(found, list)
        return {1, 3} <= {sample.image_id for sample in found} and all(map(_is_in_range, found))


class DarknetKind:
    """Weights of a narrow YOLOv3-tiny as darknet writes them."""

    name = "darknet"

    def write(self, folder: Path) -> Path:
        """Write random weights."""
        save_darknet_weights(narrow_detector(), folder / "net.weights", images_seen=12345)
        return folder / "net.weights"

    def open(self, path: Path) -> object:
        """Load them into a detector."""
        net = narrow_detector()
        load_darknet_weights(net, path)
        return net

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether all weights are finite; the format has no digest that would tell a changed one."""
        assert isinstance(found, Detector)
        return all(bool(value.isfinite().all()) for value in found.state_dict().values())


class DetectorKind:
    """A pruned detector as the pipeline writes it, masks included."""

    name = "detector"

    def write(self, folder: Path) -> Path:
        """Write a masked detector."""
        net = narrow_detector()
        masks = MaskRule(70)(score_model(net, "scaled"))
        apply_masks(net, masks)
        save_model(folder / "net.safetensors", net, DetectionTask.of(net, _WIDTH).spec, masks)
        return folder / "net.safetensors"

    def open(self, path: Path) -> object:
        """Find out what it is and open it, as the commands do."""
        spec = spec_of(path)
        assert spec is not None
        return open_checkpoint(path, task_of(spec))

    def is_right(self, expected: object, found: object) -> bool:
        """Return whether weights and masks are the written ones, bit for bit."""
        assert isinstance(expected, Checkpoint)
        assert isinstance(found, Checkpoint)
        same = expected.drops_filters == found.drops_filters and expected.task.spec == found.task.spec
        return same and _equal(_tensors(expected), _tensors(found))


def _coco_content(sizes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    images = [
        {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        for number, (name, size) in enumerate(sizes.items(), start=1)
    ]
    polygon = [[4, 4, 24, 4, 24, 16, 4, 16]]
    run_lengths = {"size": [50, 30], "counts": [204, 12, *[38, 12] * 9, 834]}
    crowd = {"bbox": [0, 0, 60, 40], "area": 900, "iscrowd": 1, "segmentation": {"size": [40, 60], "counts": "PPP1"}}
    annotations: list[dict[str, Any]] = [
        {"id": 1, "image_id": 1, "category_id": 44, "bbox": [10, 5, 20, 30], "area": 500, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, **crowd},
        {"id": 3, "image_id": 2, "category_id": 2, "bbox": [5.5, 10, 4, 4.25], "segmentation": polygon},
        {"id": 4, "image_id": 2, "category_id": 2, "segmentation": run_lengths, "iscrowd": 0},
        {"id": 5, "image_id": 3, "category_id": 44, "segmentation": polygon, "iscrowd": 0},
    ]
    categories = [{"id": 44, "name": "bottle"}, {"id": 2, "name": "bicycle"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _is_in_range(sample: Sample) -> bool:
    boxes = sample.boxes
    inside = (boxes >= 0).all() and (boxes <= _IMAGE_SIZE + 1e-3).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    return bool(inside) and bool(sample.image.isfinite().all())


def narrow_detector() -> Detector:
    """Return a small YOLOv3-tiny, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return yolov3_tiny(_NUM_CLASSES, _WIDTH).eval()


def _tensors(detector: Checkpoint) -> dict[str, Tensor]:
    masks = {f"mask:{name}": mask for name, mask in (detector.masks or {}).items()}
    return {**detector.model.state_dict(), **masks}


def _equal(expected: dict[str, Tensor], found: dict[str, Tensor]) -> bool:
    return expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
