"""YOLOv3 detectors, darknet weight files, COCO data, loss, decoding and average precision."""

from prunekit.detection.boxes import Detections, decode, nms
from prunekit.detection.yolov3 import MODELS, Detector, yolov3, yolov3_spp, yolov3_tiny

__all__ = [
    "MODELS",
    "Detections",
    "Detector",
    "decode",
    "nms",
    "yolov3",
    "yolov3_spp",
    "yolov3_tiny",
]
