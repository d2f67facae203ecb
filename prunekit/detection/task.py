"""Detection as the study's door asks for it: one task for every family of detectors with heads of anchors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import prunekit.detection.compacted  # noqa: F401 - registers how compacted detectors are written
from prunekit.attacks import AttackLosses
from prunekit.detection.anchors import fit_anchors
from prunekit.detection.attack_losses import attack_losses
from prunekit.detection.attribution_target import matched_logits
from prunekit.detection.average_precision import evaluate_detections
from prunekit.detection.boxes import MAX_CANDIDATES, Detections, Heads, decode, nms
from prunekit.detection.coco import SIZE_STEP, USUAL_SIZE, Batch, CocoDataset
from prunekit.detection.darknet_weights import (
    darknet_num_classes,
    load_darknet_weights,
    save_darknet_weights,
    transfer_darknet_weights,
)
from prunekit.detection.detection_files import read_detections_json, write_detections_csv, write_detections_json
from prunekit.detection.divergence import detection_divergence
from prunekit.detection.loss import DetectionLoss, detection_loss
from prunekit.detection.pictures import LabeledBox, draw_boxes
from prunekit.detection.rates import attack_success, confident, false_positives
from prunekit.detection.target import Target
from prunekit.detection.yolov3 import MODELS, Detector
from prunekit.documents import read_document
from prunekit.errors import InputError
from prunekit.file_kinds import is_checkpoint, is_safetensors, kind_of_file
from prunekit.state_dicts import State, Transfer, load, num_classes_in, read_state_dict
from prunekit.task import Figure, Figures, ModelSpec, Options, register_model, register_task, takes_argument

SHOWN_SCORE = 0.3  # detections below it clutter a picture; all of them count for AP
DARKNET_WEIGHTS = "model.weights"
# Close to what the common PyTorch trainers of YOLOv3 use, without mosaics.
AUGMENTATION: dict[str, Any] = {
    "scale": 0.3,
    "translate": 0.1,
    "hue": 0.015,
    "saturation": 0.5,
    "brightness": 0.3,
    "contrast": 0.2,
}
_PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")

Found = Mapping[int, Detections]


@dataclass(frozen=True)
class DetectionTask:
    """A `prunekit.task.Task`: COCO data, the YOLO loss, average precision.

    A family of detectors is a `Detector` built from `num_classes` and whatever else its factory takes.

    Attributes:
        spec: What builds the detector.
        figures: AP50 first in plots, as in the report on robust pruning.
        input_multiple: The coarsest stride.
        image_size: Darknet's.
    """

    spec: ModelSpec
    figures: tuple[Figure, ...] = (Figure("ap", "AP"), Figure("ap50", "AP50"))
    input_multiple: int = SIZE_STEP
    image_size: int = USUAL_SIZE

    def __post_init__(self) -> None:
        self.spec.require_usual(least_classes=1)

    @classmethod
    def of(cls, model: Detector, width: float = 1.0) -> DetectionTask:
        """Return the task of a detector that is there already, of one of the package's families."""
        task = cls(ModelSpec(model.name, {"num_classes": model.num_classes, "width": width}))
        task.__dict__["heads"] = Heads.of(model)  # what the cached property would build the detector again for
        return task

    @cached_property
    def heads(self) -> Heads:
        """The heads of the spec's detector, which is built without memory to be asked."""
        return Heads.of(self.spec.outlined())

    @property
    def augmentation(self) -> dict[str, Any]:
        """Return `AUGMENTATION`."""
        return dict(AUGMENTATION)

    def open_data(self, path: Path, image_size: int | None, grayscale: bool, limit: int | None) -> CocoDataset:
        """Open a data set in COCO's layout."""
        return CocoDataset.open(path, image_size, grayscale, limit)

    def for_data(self, data: CocoDataset) -> DetectionTask:
        """Return the task with the data's number of classes."""
        if takes_argument(self.spec.name, "num_classes"):
            return replace(self, spec=self.spec.updated(num_classes=data.num_classes))
        data.require_num_classes(self.heads.num_classes)
        return self

    def fitted(self, data: CocoDataset, seed: int) -> DetectionTask:
        """Return the task with anchors in clusters of the data's boxes."""
        if not takes_argument(self.spec.name, "anchors"):
            raise InputError(f"--fit-anchors: expected a detector that takes anchors, got {self.spec.name}.")
        counts = [len(sizes) for sizes in self.heads.anchors]
        return replace(self, spec=self.spec.updated(anchors=fit_anchors(data.box_sizes(), counts, seed)))

    def losses(self, outputs: Sequence[Tensor], targets: Sequence[Target]) -> DetectionLoss:
        """Return the training loss of raw logits, in its parts."""
        return detection_loss(outputs, targets, self.heads)

    def loss(self, model: nn.Module, x: Tensor, targets: Sequence[Target]) -> Tensor:
        """Return the training losses [N]."""
        return self.losses(model(x), targets).total

    def attack_losses(self, targets: Sequence[Target]) -> AttackLosses:
        """Return what loses, invents, moves or renames objects."""
        return attack_losses(targets, self.heads)

    def divergence(self, attacked: Sequence[Tensor], clean: Sequence[Tensor]) -> Tensor:
        """Return `detection_divergence`, [N]."""
        return detection_divergence(attacked, clean, self.heads)

    def attribution(self, outputs: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """Return how sure the detector is of the objects that are there, [N]."""
        return matched_logits(outputs, targets, self.heads)

    @torch.inference_mode()
    def predict(self, model: nn.Module, x: Tensor, batch: Batch, options: Options) -> dict[int, Detections]:
        """Return each image's detections, boxes xyxy in pixels of the original image."""
        predictions = {}
        for row, found in enumerate(self.detections(model(x), options)):
            original = batch.letterboxes[row].to_image(found.boxes)
            predictions[batch.image_ids[row]] = Detections(original.cpu(), found.scores.cpu(), found.classes.cpu())
        return predictions

    def detections(self, outputs: Sequence[Tensor], options: Options) -> list[Detections]:
        """Return what is found in each image, boxes xyxy in input pixels, best first."""
        return _suppress(*self.decode(outputs), options)

    def postprocessing(self, outputs: Sequence[Tensor], options: Options) -> dict[str, Callable[[], object]]:
        """Return decoding and non-maximum suppression."""
        boxes, scores = self.decode(outputs)
        return {"decode": lambda: self.decode(outputs), "nms": lambda: _suppress(boxes, scores, options)}

    def candidate_scores(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return each image's scores by box and class, [M, C]."""
        return [*self.decode(outputs)[1]]

    def metrics(self, predictions: Found, data: CocoDataset) -> Figures:
        """Return COCO's AP figures, those of confident detections, and false alarms."""
        false = false_positives(data, predictions)
        sure = asdict(evaluate_detections(data, confident(predictions)))
        return {
            **asdict(evaluate_detections(data, predictions)),
            **{f"confident_{name}": value for name, value in sure.items()},
            "false_positives_per_image": false.per_image,
            "false_positive_share": false.share,
        }

    def success(self, clean: Found, attacked: Found, data: CocoDataset) -> Figures:
        """Return the share of objects found clean that an attack took, in two parts."""
        success = attack_success(data, clean, attacked)
        return {"attack_success": success.rate, "lost": success.lost, "mislabeled": success.mislabeled}

    def columns(
        self, clean: Figures, attacked: Figures | None, transferred: Figures | None, success: Figures | None
    ) -> Figures:
        """Return the columns of results.csv on accuracy."""
        under = attacked or {}
        return {
            **{name: clean[name] for name in _PRECISIONS},
            **{f"attacked_{name}": under.get(name) for name in _PRECISIONS},
            "transfer_ap": (transferred or {}).get("ap"),
            "confident_ap": clean["confident_ap"],
            "confident_ap50": clean["confident_ap50"],
            "attacked_confident_ap": under.get("confident_ap"),
            "attacked_confident_ap50": under.get("confident_ap50"),
            "false_positives_per_image": clean["false_positives_per_image"],
            "false_positive_share": clean["false_positive_share"],
            "attack_success_rate": (success or {}).get("attack_success"),
        }

    def save_predictions(self, stem: Path, predictions: Found, data: CocoDataset) -> list[Path]:
        """Write detections as CSV and as COCO's results."""
        csv, results = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("csv", "json"))
        write_detections_csv(csv, predictions, data.categories)
        write_detections_json(results, predictions, data.categories)
        return [csv, results]

    def load_predictions(self, stem: Path, data: CocoDataset) -> dict[int, Detections]:
        """Read detections back."""
        return read_detections_json(stem.with_name(f"{stem.name}.json"), data.categories)

    def shown(self, stem: Path) -> dict[int, list[dict[str, Any]]]:
        """Read the detections that score at least 0.3, the best last, by image id."""
        by_image: dict[int, list[dict[str, Any]]] = {}
        found = json.loads(stem.with_name(f"{stem.name}.json").read_text())
        for result in sorted(found, key=lambda result: float(result["score"])):
            if result["score"] >= SHOWN_SCORE:
                by_image.setdefault(result["image_id"], []).append(result)
        return by_image

    def picture(
        self, image: Image.Image, example: Mapping[str, Any], found: Sequence[Mapping[str, Any]] | None
    ) -> Image.Image:
        """Draw the boxes of detections, or of the objects that are there."""
        categories = example["categories"]
        if found is None:
            objects = zip(example["boxes"], example["labels"], strict=True)
            boxes = [LabeledBox(tuple(box), label, categories[label]["name"]) for box, label in objects]
        else:
            names = {category["id"]: (label, category["name"]) for label, category in enumerate(categories)}
            boxes = [LabeledBox(_xyxy(one["bbox"]), *names[one["category_id"]], one["score"]) for one in found]
        return draw_boxes(image, boxes, example["width"])

    def describe(self, config: Mapping[str, Any]) -> str:
        """Say how average precision is measured."""
        return (
            f"COCO average precision by pycocotools, unrounded, at scores above {config['score_threshold']} and NMS "
            f"overlap {config['iou_threshold']}, at most {config['max_detections']} detections an image"
        )

    def reads(self, path: Path) -> bool:
        """Return whether a file may be darknet's, whose bytes say nothing, or holds a state dict."""
        if is_safetensors(path):
            return not read_document(path, "a state dict")
        return is_checkpoint(path) or _may_be_darknets(path)

    def load_weights(self, model: nn.Module, path: Path, partly: bool = False) -> Transfer | None:
        """Read darknet's weights, or a state dict by the detector's own names.

        The order of other families' layers is not known to be darknet's.
        """
        if not _may_be_darknets(path):
            return load(model, self.read_state(path), path, self.spec.name, partly)
        detector = self._darknets(model, path)
        if partly:
            return transfer_darknet_weights(detector, path).unless_whole
        load_darknet_weights(detector, path)
        return None

    def read_state(self, path: Path) -> State:
        """Read a state dict of the detector's tensors by its own names."""
        return read_state_dict(path)

    def for_weights(self, path: Path) -> DetectionTask:
        """Return the task with the number of classes that the file's size says."""
        if not takes_argument(self.spec.name, "num_classes"):
            return self
        state: State = {}
        if _may_be_darknets(path):
            num_classes: int | None = darknet_num_classes(self._darknets(self.spec.outlined(), path), path)
        else:
            state = self.read_state(path)
            num_classes = num_classes_in(state, self.spec.outlined)
        if num_classes is None:
            raise InputError(
                f"--weights: expected the weights of {self.spec.name} of any number of classes in {path}, "
                f"got a checkpoint of other tensors: {', '.join([*state][:2])}."
            )
        return replace(self, spec=self.spec.updated(num_classes=num_classes))

    def export(self, model: nn.Module, folder: Path, images_seen: int) -> list[str]:
        """Write darknet's weights, for families that darknet knows."""
        if self.spec.name not in MODELS or not isinstance(model, Detector):
            return []
        save_darknet_weights(model, folder / DARKNET_WEIGHTS, images_seen=images_seen)
        return [DARKNET_WEIGHTS]

    def _darknets(self, model: nn.Module, path: Path) -> Detector:
        if self.spec.name not in MODELS or not isinstance(model, Detector):
            raise InputError(f"--weights: expected a .safetensors file for {self.spec.name}, got {path}.")
        return model

    def decode(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return boxes [N, M, 4], xyxy in input pixels, and scores [N, M, classes]."""
        return decode(outputs, self.heads)


def _may_be_darknets(path: Path) -> bool:
    return path.suffix != ".safetensors" and kind_of_file(path) is None


def _suppress(boxes: Tensor, scores: Tensor, options: Options) -> list[Detections]:
    most = options.max_candidates or MAX_CANDIDATES
    return nms(boxes, scores, options.score_threshold, options.iou_threshold, options.max_detections, most)


def _xyxy(bbox: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = bbox
    return x, y, x + width, y + height


register_task("detection", DetectionTask, lambda model: isinstance(model, Detector))
for _name, _build in MODELS.items():
    register_model(_name, _build, "detection")
