"""Objects of a COCO JSON: checked, repaired where what is meant is plain, and given to their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunekit.detection.coco_fields import UnusableError, flag_of, id_of, number_of, numbers_of
from prunekit.detection.coco_json import Annotation, CocoContent, ImageRecord, Skip, name_of
from prunekit.detection.segmentation import measure

#: Pixels. A box must keep its extent in float32, in an image of tens of thousands of pixels shrunk to a few hundred.
SMALLEST_SIDE = 0.01

Box = tuple[float, float, float, float]


def add_annotations(content: CocoContent, records: Mapping[int | str, ImageRecord]) -> list[Skip]:
    """Give each record its annotations, boxes xyxy and clipped to the image; return what was left out.

    Args:
        content: The file.
        records: By the key of its id, each image that is used. Objects of the file's other images are passed over
            without a word: a limit left them out, or a skip that is listed already.
    """
    skipped = []
    seen: dict[int | str, Any] = {}
    for index, entry in enumerate(content.annotations):
        try:
            _require_new(entry, seen)
            record = _record_of(entry, content, records)
            if record is not None:
                record.annotations.append(_annotation(entry, content.labels, record))
        except UnusableError as error:
            skipped.append(Skip(name_of("annotation", entry, index), error.reason, error.kind))
    return skipped


def _require_new(entry: Any, seen: dict[int | str, Any]) -> None:
    """Raise UnusableError for what is no object, and for an entry that repeats another one, id and all."""
    if not isinstance(entry, Mapping):
        raise UnusableError("is not a JSON object", "annotations that are not JSON objects")
    key = id_of(entry.get("id"))
    if key is None:
        return
    if seen.setdefault(key, entry) is not entry and seen[key] == entry:
        raise UnusableError("repeats an earlier annotation", "annotations that repeat an earlier one")


def _record_of(
    entry: Mapping[str, Any], content: CocoContent, records: Mapping[int | str, ImageRecord]
) -> ImageRecord | None:
    key = id_of(entry.get("image_id"))
    if key is None or key not in content.images:
        reason = f"names the unknown image {_short(entry.get('image_id'))}"
        raise UnusableError(reason, "annotations that name an unknown image")
    return records.get(key)


def _annotation(entry: Mapping[str, Any], labels: Mapping[int | str, int], record: ImageRecord) -> Annotation:
    category = id_of(entry.get("category_id"))
    if category is None or category not in labels:
        reason = f"names the unknown category {_short(entry.get('category_id'))}"
        raise UnusableError(reason, "annotations that name an unknown category")
    is_crowd = flag_of(entry.get("iscrowd"))
    if is_crowd is None:
        reason = f"has the iscrowd {_short(entry.get('iscrowd'))}, neither 0 nor 1"
        raise UnusableError(reason, "annotations with an iscrowd that is neither 0 nor 1")
    box, area = _box_and_area(entry, record)
    return Annotation(box, labels[category], area, is_crowd)


def _box_and_area(entry: Mapping[str, Any], record: ImageRecord) -> tuple[Box, float]:
    """Return the given box and area; what is not usable of them comes from the segmentation.

    Without a segmentation either, the area is the box's.
    """
    area = number_of(entry.get("area"))
    area = area if area is not None and area > 0 else None
    has_outline = entry.get("segmentation") not in (None, [], {})
    try:
        box = _clipped(_given_box(entry), record)
    except UnusableError:
        if not has_outline:
            raise
        outline = measure(entry["segmentation"], record.width, record.height)
        return outline.box, area or outline.area
    if area is None and has_outline:
        try:
            area = measure(entry["segmentation"], record.width, record.height).area
        except UnusableError:
            area = None
    return box, area or (box[2] - box[0]) * (box[3] - box[1])


def _given_box(entry: Mapping[str, Any]) -> Box:
    numbers = numbers_of(entry.get("bbox"))
    if numbers is None or len(numbers) != 4:
        kind = "annotations without a usable bbox or segmentation"
        raise UnusableError("has no bbox of four finite numbers", kind)
    x, y, width, height = numbers
    if width < SMALLEST_SIDE or height < SMALLEST_SIDE:
        raise UnusableError(f"has a box of {width:g}×{height:g} pixels", "annotations whose box has no extent")
    return x, y, x + width, y + height


def _clipped(box: Box, record: ImageRecord) -> Box:
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], record.width), min(box[3], record.height)
    if x2 - x1 < SMALLEST_SIDE or y2 - y1 < SMALLEST_SIDE:
        raise UnusableError("has a box outside its image", "annotations whose box lies outside their image")
    return x1, y1, float(x2), float(y2)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
