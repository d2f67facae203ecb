"""YOLOv3 detectors, darknet weight files, COCO data, loss, decoding and average precision.

The networks, their loss and decoding need torch alone; data and average precision need the extra "study", and are
imported when they are first used.
"""

from typing import TYPE_CHECKING

from prunekit.detection.attribution_target import matched_logits
from prunekit.detection.boxes import Detections, Heads, decode, nms
from prunekit.detection.darknet_weights import (
    darknet_num_classes,
    load_darknet_weights,
    save_darknet_weights,
    transfer_darknet_weights,
)
from prunekit.detection.loss import DetectionLoss, detection_loss
from prunekit.detection.target import Target
from prunekit.detection.yolov3 import MODELS, Detector, yolov3, yolov3_spp, yolov3_tiny
from prunekit.lazy import lazy

if TYPE_CHECKING:
    from prunekit.detection.average_precision import AveragePrecision, evaluate_detections
    from prunekit.detection.coco import Batch, CocoDataset, Sample, collate
    from prunekit.detection.coco_json import Annotation, Category, ImageRecord, Skip
    from prunekit.detection.coco_writer import write_coco_json
    from prunekit.detection.detection_files import read_detections_json, write_detections_csv, write_detections_json
    from prunekit.detection.letterbox import Letterbox, to_grayscale
    from prunekit.detection.shapes import render_shapes_dataset
    from prunekit.detection.task import DetectionTask

__all__ = [
    "MODELS",
    "Annotation",
    "AveragePrecision",
    "Batch",
    "Category",
    "CocoDataset",
    "DetectionLoss",
    "DetectionTask",
    "Detections",
    "Detector",
    "Heads",
    "ImageRecord",
    "Letterbox",
    "Sample",
    "Skip",
    "Target",
    "collate",
    "darknet_num_classes",
    "decode",
    "detection_loss",
    "evaluate_detections",
    "load_darknet_weights",
    "matched_logits",
    "nms",
    "read_detections_json",
    "render_shapes_dataset",
    "save_darknet_weights",
    "to_grayscale",
    "transfer_darknet_weights",
    "write_coco_json",
    "write_detections_csv",
    "write_detections_json",
    "yolov3",
    "yolov3_spp",
    "yolov3_tiny",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "prunekit.detection.average_precision": ["AveragePrecision", "evaluate_detections"],
        "prunekit.detection.coco": ["Batch", "CocoDataset", "Sample", "collate"],
        "prunekit.detection.coco_json": ["Annotation", "Category", "ImageRecord", "Skip"],
        "prunekit.detection.coco_writer": ["write_coco_json"],
        "prunekit.detection.detection_files": ["read_detections_json", "write_detections_csv", "write_detections_json"],
        "prunekit.detection.letterbox": ["Letterbox", "to_grayscale"],
        "prunekit.detection.shapes": ["render_shapes_dataset"],
        "prunekit.detection.task": ["DetectionTask"],
    },
    extra="study",
)
