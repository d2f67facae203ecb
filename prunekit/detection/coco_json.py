"""Read COCO's annotation JSON, checking every entry: bad files are errors, bad entries counted skips."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunekit.errors import InputError


@dataclass(frozen=True)
class Category:
    """A class of objects: its id and name in the JSON; its label is its place in the list."""

    id: int
    name: str


@dataclass(frozen=True)
class Annotation:
    """One object: box xyxy in pixels of the original image, label from 0, area of its outline in pixels²."""

    box: tuple[float, float, float, float]
    label: int
    area: float
    is_crowd: bool


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects; sizes and boxes in pixels of the original image."""

    id: int
    file_name: str
    width: int
    height: int
    annotations: list[Annotation] = field(default_factory=list)

    @property
    def objects(self) -> list[Annotation]:
        """The annotations of single objects; crowds serve the evaluation only."""
        return [annotation for annotation in self.annotations if not annotation.is_crowd]

    @property
    def boxes(self) -> Tensor:
        """The objects' boxes, float [K, 4] xyxy."""
        return torch.tensor([annotation.box for annotation in self.objects]).reshape(-1, 4)

    @property
    def labels(self) -> Tensor:
        """The objects' labels, int64 [K]."""
        return torch.tensor([annotation.label for annotation in self.objects], dtype=torch.int64)


class Skip(NamedTuple):
    """Something left out: what, such as "annotation 17", and the reason."""

    what: str
    reason: str


@dataclass(frozen=True)
class CocoAnnotations:
    """The usable content of an annotation file and what was skipped."""

    images: list[ImageRecord]
    categories: list[Category]
    skipped: list[Skip]


def read_coco_json(path: Path) -> CocoAnnotations:
    """Read an annotation file.

    Category ids become labels 0 … C-1 in the order of the ids. Boxes become xyxy and are clipped to their
    image. Images without annotations stay. Annotations that cannot be used are skipped and listed.

    Raises:
        InputError: the file is no COCO annotation file or nothing in it can be used.
    """
    content = _load(path)
    skipped: list[Skip] = []
    categories = _read_categories(content["categories"], path)
    records = _read_images(content["images"], path, skipped)
    labels = {category.id: label for label, category in enumerate(categories)}
    for index, entry in enumerate(content["annotations"]):
        problem = _add_annotation(entry, records, labels)
        if problem:
            skipped.append(Skip(_name_of("annotation", entry, index), problem))
    if not any(record.annotations for record in records.values()):
        detail = f": {len(skipped)} entries were skipped, {skipped[0].what} {skipped[0].reason}" if skipped else ""
        raise InputError(f"expected annotated objects in {path}, but found none that can be used{detail}")
    return CocoAnnotations(list(records.values()), categories, skipped)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"expected a COCO file, but {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected a COCO file, but {path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a JSON object in {path}, but found a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = "a " + type(content[key]).__name__ if key in content else "no such key"
            raise InputError(f"expected a list under {key!r} in the COCO file {path}, but found {found}")
    return content


def _read_categories(entries: list[Any], path: Path) -> list[Category]:
    categories = []
    for index, entry in enumerate(entries):
        if not _is_category(entry):
            raise InputError(f"expected an id and a name per category in {path}, but entry {index} is {entry!r}")
        categories.append(Category(entry["id"], entry["name"]))
    if not categories:
        raise InputError(f"expected at least one category in {path}, but the list is empty")
    if len({category.id for category in categories}) < len(categories):
        raise InputError(f"expected distinct category ids in {path}, but some are used twice")
    return sorted(categories, key=lambda category: category.id)


def _read_images(entries: list[Any], path: Path, skipped: list[Skip]) -> dict[int, ImageRecord]:
    records: dict[int, ImageRecord] = {}
    for index, entry in enumerate(entries):
        if not _is_image(entry):
            reason = "lacks a usable id, file_name, width or height"
            skipped.append(Skip(_name_of("image", entry, index), reason))
            continue
        record = ImageRecord(entry["id"], entry["file_name"], entry["width"], entry["height"])
        if record.id in records:
            raise InputError(f"expected distinct image ids in {path}, but {record.id} is used twice")
        records[record.id] = record
    if not records:
        raise InputError(f"expected at least one usable image in {path}, but found none among {len(entries)}")
    return records


def _add_annotation(entry: Any, records: dict[int, ImageRecord], labels: dict[int, int]) -> str | None:
    """Add an annotation to its image, or return what is wrong with it."""
    if not isinstance(entry, Mapping):
        return "is not a JSON object"
    image_id, category_id = entry.get("image_id"), entry.get("category_id")
    if not (_is_id(image_id) and image_id in records):
        return f"names the unknown image {image_id!r}"
    if not (_is_id(category_id) and category_id in labels):
        return f"names the unknown category {category_id!r}"
    if not _is_box(entry.get("bbox")):
        return "has no bbox of four finite numbers"
    record = records[image_id]
    x, y, width, height = map(float, entry["bbox"])
    if width <= 0 or height <= 0:
        return f"has a box of {width:g}×{height:g} pixels"
    right, bottom = min(x + width, float(record.width)), min(y + height, float(record.height))
    box = max(x, 0.0), max(y, 0.0), right, bottom
    if box[0] >= box[2] or box[1] >= box[3]:
        return "has a box outside its image"
    area: Any = entry.get("area")
    area = float(area) if _is_number(area) and area > 0 else width * height
    record.annotations.append(Annotation(box, labels[category_id], area, bool(entry.get("iscrowd", 0))))
    return None


def _name_of(kind: str, entry: Any, index: int) -> str:
    has_id = isinstance(entry, Mapping) and "id" in entry
    return f"{kind} {entry['id']}" if has_id else f"{kind} at index {index}"


def _is_category(entry: Any) -> bool:
    return isinstance(entry, Mapping) and _is_id(entry.get("id")) and isinstance(entry.get("name"), str)


def _is_image(entry: Any) -> bool:
    return (
        isinstance(entry, Mapping)
        and _is_id(entry.get("id"))
        and isinstance(entry.get("file_name"), str)
        and all(_is_id(entry.get(key)) and entry[key] > 0 for key in ("width", "height"))
    )


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_is_number(number) for number in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
