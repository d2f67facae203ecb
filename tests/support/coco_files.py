"""Write small COCO data sets for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Content = dict[str, Any]


def small_content() -> Content:
    """Three images, the third without objects; categories whose ids are neither dense nor sorted."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 60, "height": 40},
            {"id": 3, "file_name": "b.png", "width": 30, "height": 50},
            {"id": 9, "file_name": "c.png", "width": 32, "height": 32},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 44, "bbox": [10, 5, 20, 30], "area": 500, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 60, 40], "area": 900, "iscrowd": 1},
            {"id": 3, "image_id": 3, "category_id": 2, "bbox": [5.5, 10, 4, 4.25], "area": 17, "iscrowd": 0},
        ],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 2, "name": "bicycle"}],
    }


def write_coco(folder: Path, content: Any, images: str = "train2017") -> Path:
    """Write the annotation file and a random image for each entry that describes one; return the folder."""
    file = folder / "annotations" / "instances_train2017.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / images).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for entry in content["images"] if isinstance(content, dict) and "images" in content else []:
        if isinstance(entry, dict) and {"file_name", "width", "height"} <= entry.keys():
            pixels = rng.integers(0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / images / entry["file_name"])
    return folder
