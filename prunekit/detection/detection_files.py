"""Detections on disk: CSV for spreadsheets, JSON for COCO's tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prunekit.detection.boxes import Detections
from prunekit.detection.coco_json import Category
from prunekit.files import csv_text, write_text

CSV_COLUMNS = ("image_id", "x1", "y1", "x2", "y2", "score", "class")


def write_detections_csv(
    path: str | Path, detections: Mapping[int, Detections], categories: Sequence[Category]
) -> None:
    """Write one row a detection: image id, corners in pixels of the original image, score, class name."""
    rows = [
        [image_id, *(f"{coordinate:.2f}" for coordinate in box), f"{score:.6f}", categories[label].name]
        for image_id, found in detections.items()
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    ]
    write_text(path, csv_text(CSV_COLUMNS, rows))


def write_detections_json(
    path: str | Path, detections: Mapping[int, Detections], categories: Sequence[Category]
) -> None:
    """Write a COCO results file; boxes xywh in pixels of the original image."""
    write_text(path, json.dumps(coco_results(detections, categories)))


def read_detections_json(path: str | Path, categories: Sequence[Category]) -> dict[int, Detections]:
    """Read a COCO results file that `write_detections_json` wrote; images without detections are left out."""
    labels = {category.id: label for label, category in enumerate(categories)}
    entries: dict[int, list[dict[str, Any]]] = {}
    for entry in json.loads(Path(path).read_text()):
        entries.setdefault(entry["image_id"], []).append(entry)
    detections = {}
    for image_id, found in entries.items():
        boxes = torch.tensor([entry["bbox"] for entry in found])
        boxes[:, 2:] += boxes[:, :2]
        scores = torch.tensor([entry["score"] for entry in found])
        detections[image_id] = Detections(boxes, scores, torch.tensor([labels[e["category_id"]] for e in found]))
    return detections


def coco_results(detections: Mapping[int, Detections], categories: Sequence[Category]) -> list[dict[str, Any]]:
    """Return detections as the entries of a COCO results file, with COCO's category ids and xywh boxes."""
    return [
        {"image_id": image_id, "category_id": categories[label].id, "bbox": bbox, "score": score}
        for image_id, found in detections.items()
        for bbox, score, label in zip(
            torch.cat([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], dim=1).tolist(),
            found.scores.tolist(),
            found.classes.tolist(),
            strict=True,
        )
    ]
