"""Write a data set as COCO's annotation JSON, whatever layout it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit.detection.coco import CocoDataset
from prunekit.files import write_text


def write_coco_json(data: CocoDataset, out: Path) -> int:
    """Write a data set's images and boxes; return the number of boxes.

    Boxes are those that the reader made of the source: clipped, and without what was skipped. Images are named relative
    to the JSON's folder (to the one above it for a folder annotations/) if they lie inside, else by their full path:
    `CocoDataset.open` finds them either way.
    """
    folder = out.resolve().parent
    root = folder.parent if folder.name == "annotations" else folder
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in data.images:
        name = _name(data.image_folder / record.file_name, root)
        images.append({"id": record.id, "file_name": name, "width": record.width, "height": record.height})
        for annotation in record.annotations:
            entry = annotation.entry(record.id, data.categories[annotation.label].id)
            annotations.append({"id": len(annotations) + 1, **entry})
    categories = [{"id": category.id, "name": category.name} for category in data.categories]
    content = {"images": images, "annotations": annotations, "categories": categories}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(content, ensure_ascii=False) + "\n")
    return len(annotations)


def _name(file: Path, root: Path) -> str:
    path = file.parent.resolve() / file.name
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
