"""Read COCO's annotation JSON: a file that cannot be used is an error, an entry that cannot be used a counted skip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunekit.detection.coco_fields import id_of, side_of
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

    def entry(self, image_id: int, category_id: int) -> dict[str, Any]:
        """Return it as in COCO's JSON, without an id."""
        x1, y1, x2, y2 = self.box
        facts = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": self.area, "iscrowd": int(self.is_crowd)}
        return {"image_id": image_id, "category_id": category_id, **facts}


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects; sizes and boxes in pixels of the original image.

    Attributes:
        id: The JSON's.
        file_name: Of the image, relative to the data set's folder of images.
        width: In pixels.
        height: Likewise.
        annotations: Its objects and crowds.
        upright: Whether the pixels that are meant are those turned by the orientation in the file's EXIF data.
    """

    id: int
    file_name: str
    width: int
    height: int
    annotations: list[Annotation] = field(default_factory=list)
    upright: bool = False

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
    """Something left out: what, such as "annotation 17", the reason, and the kind of reason that is counted."""

    what: str
    reason: str
    kind: str = ""


@dataclass(frozen=True)
class CocoAnnotations:
    """The usable images of a data set with their annotations, its categories, and what was skipped."""

    images: list[ImageRecord]
    categories: list[Category]
    skipped: list[Skip]


class ImageEntry(NamedTuple):
    """What the JSON says of an image; the size is None where it says none."""

    id: int
    file_name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class CocoContent:
    """The content of an annotation file.

    Attributes:
        images: Every usable image, in the file's order, by the key that `id_of` makes of its id.
        categories: In the order of the labels.
        labels: Label of each category, by the key of its id.
        annotations: As they are in the file, not checked yet.
        skipped: Images that cannot be used.
    """

    images: dict[int | str, ImageEntry]
    categories: list[Category]
    labels: dict[int | str, int]
    annotations: list[Any]
    skipped: list[Skip]


def read_coco_json(path: Path) -> CocoContent:
    """Read an annotation file; UTF-8, UTF-16 and UTF-32, with a byte order mark or without.

    Category ids become labels 0 … C-1 in the order of the ids. Ids may be numbers or text that says a number; other
    text is replaced by numbers that no other id has.

    Raises:
        InputError: the file is no COCO annotation file, or nothing in it can be used.
    """
    return content_of(_load(path), path)


def content_of(content: Mapping[str, list[Any]], path: Path, skipped: Sequence[Skip] = ()) -> CocoContent:
    """Check the categories and images of an annotation file's lists; `path` is what messages call them."""
    skipped = list(skipped)
    categories, labels = _read_categories(content["categories"], path)
    images = _read_images(content["images"], path, skipped)
    return CocoContent(images, categories, labels, content["annotations"], skipped)


def name_of(kind: str, entry: Any, index: int) -> str:
    """Return how messages call an entry of the JSON: "annotation 17"."""
    has_id = isinstance(entry, Mapping) and id_of(entry.get("id")) is not None
    return f"{kind} {str(entry['id'])[:80]}" if has_id else f"{kind} at index {index}"


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"Expected a COCO file, but {path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Expected a COCO file, but {path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"Expected a JSON object in {path}, but found a {type(content).__name__}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = "a " + type(content[key]).__name__ if key in content else "no such key"
            raise InputError(f"Expected a list under {key!r} in the COCO file {path}, but found {found}")
    return content


def _read_categories(entries: list[Any], path: Path) -> tuple[list[Category], dict[int | str, int]]:
    names: dict[int | str, str] = {}
    for index, entry in enumerate(entries):
        key = id_of(entry.get("id")) if isinstance(entry, Mapping) else None
        if key is None or not isinstance(entry.get("name"), str):
            raise InputError(
                f"Expected an id and a name per category in {path}, but entry {index} is {repr(entry)[:200]}"
            )
        if key in names:
            raise InputError(
                f"Expected distinct category ids in {path}, but {_spelled(entry['id'], key)} is used twice"
            )
        names[key] = entry["name"]
    if not names:
        raise InputError(f"Expected at least one category in {path}, but the list is empty")
    # Numbers first and in their order, then text in the file's.
    keys = sorted(names, key=lambda key: (isinstance(key, str), 0 if isinstance(key, str) else key))
    numbers = _numbered(keys)
    categories = [Category(numbers[key], names[key]) for key in keys]
    return categories, {key: label for label, key in enumerate(keys)}


def _read_images(entries: list[Any], path: Path, skipped: list[Skip]) -> dict[int | str, ImageEntry]:
    found: dict[int | str, tuple[str, tuple[int, int] | None]] = {}
    for index, entry in enumerate(entries):
        key = id_of(entry.get("id")) if isinstance(entry, Mapping) else None
        if key is None or not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            kind = "images without a usable id or file_name"
            skipped.append(Skip(name_of("image", entry, index), "lacks a usable id or file_name", kind))
            continue
        if key in found:
            raise InputError(f"Expected distinct image ids in {path}, but {_spelled(entry['id'], key)} is used twice")
        width, height = side_of(entry.get("width")), side_of(entry.get("height"))
        found[key] = entry["file_name"], (width, height) if width and height else None
    if not found:
        raise InputError(f"Expected at least one usable image in {path}, but found none among {len(entries)}")
    numbers = _numbered(list(found))
    return {key: ImageEntry(numbers[key], *facts) for key, facts in found.items()}


def _numbered(keys: list[int | str]) -> dict[int | str, int]:
    """Return a number for every id: its own, or for text the next one above all numbers."""
    following = max((key for key in keys if isinstance(key, int)), default=0) + 1
    texts = {key: following + index for index, key in enumerate(key for key in keys if isinstance(key, str))}
    return {key: key if isinstance(key, int) else texts[key] for key in keys}


def _spelled(given: Any, key: int | str) -> str:
    return f"{key}" if given == key else f"{key} (as {given!r})"
