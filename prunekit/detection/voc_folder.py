"""Data sets in Pascal VOC's layout: an XML file for each image, and lists of the images of each split.

    Annotations/NAME.xml              size and objects: name, difficult, and a box in pixels from 1 to the side
    JPEGImages/NAME.jpg               the image, or of another suffix
    ImageSets/Main/train.txt …        NAME a line; without such lists all images are one set

Classes are the names in all of the XML files, in alphabetical order, which for VOC's own twenty is the official one.
Objects that are difficult become crowds: evaluation neither wants nor punishes them, training does not learn from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from prunekit.detection.coco_fields import number_of
from prunekit.detection.image_files import SUFFIXES
from prunekit.detection.layouts import Layout
from prunekit.errors import InputError

_SPLITS = ("test", "val", "train", "trainval")  # the first that is there evaluates


def is_voc(folder: Path) -> bool:
    """Return whether a folder has annotations in XML."""
    return any((folder / "Annotations").glob("*.xml"))


def read_voc(root: Path, split: str | None = None, limit: int | None = None) -> Layout:
    """Read a split of a data set.

    Args:
        root: The folder with Annotations/.
        split: A list of ImageSets/Main; None takes the first of test, val, train and trainval that is there.
        limit: Read the first `limit` images only; classes are those of all.

    Raises:
        InputError: An annotation or an image is missing, or an XML file is damaged.
    """
    splits = [name for name in _SPLITS if _list(root, name).is_file()]
    split = split or next(iter(splits), "")
    if split and split not in splits:
        raise InputError(
            f"Expected one of the splits {', '.join(splits) or '(there is none)'} of {root}, got {split!r}."
        )
    parsed = {path.stem: _parse(path) for path in sorted((root / "Annotations").glob("*.xml"))}
    names = list(islice(_names(root, split) if split else parsed, limit))
    if absent := [name for name in names if name not in parsed]:
        raise InputError(f"Expected Annotations/{absent[0]}.xml in {root} for {_list(root, split)}, got no such file.")
    images = _image_files(root)
    classes = sorted(
        {name for tree in parsed.values() for entry in tree.iter("object") if (name := _text(entry, "name"))}
    )
    content = {
        "images": [_image(number, name, parsed[name], images, root) for number, name in enumerate(names, 1)],
        "annotations": [
            _annotation(f"{name}.xml object {position}", number, entry, classes)
            for number, name in enumerate(names, 1)
            for position, entry in enumerate(parsed[name].iter("object"), 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes, 1)],
    }
    wanted = ("trainval", "train") if split == "test" else ("train",)  # nothing that the evaluated part holds
    learn_from = next((name for name in wanted if name in splits), split)
    return Layout(root, root, content, (), split, tuple(splits), learn_from)


def _list(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Main" / f"{split}.txt"


def _names(root: Path, split: str) -> list[str]:
    lines = _list(root, split).read_text().splitlines()
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise InputError(f"Expected the name of an image in each line of {_list(root, split)}, got none.")
    return names


def _parse(path: Path) -> Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise InputError(f"Expected an annotation in XML, but {path} is damaged ({error}).") from None


def _image_files(root: Path) -> dict[str, Path]:
    folder = root / "JPEGImages"
    found = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES}
    if not found:
        raise InputError(f"Expected images in {folder}, got none.")
    return found


def _image(number: int, name: str, tree: Element, images: Mapping[str, Path], root: Path) -> dict[str, Any]:
    """Describe an image; its file goes by the annotation's name, as what `filename` says is often out of date."""
    path = images.get(name) or root / "JPEGImages" / (_text(tree, "filename") or name)
    size = {side: _text(tree, f"size/{side}") for side in ("width", "height")}
    return {"id": number, "file_name": path.relative_to(root).as_posix(), **size}


def _annotation(where: str, image_id: int, entry: Element, classes: Sequence[str]) -> dict[str, Any]:
    name = _text(entry, "name")
    return {
        "id": where,
        "image_id": image_id,
        "category_id": classes.index(name) + 1 if name else None,
        "bbox": _box(entry),
        "iscrowd": _text(entry, "difficult"),
    }


def _box(entry: Element) -> list[float] | None:
    """Return a box xywh; VOC counts pixels from 1 and means the last one, too."""
    corners = [number_of(_text(entry, f"bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [corner for corner in corners if corner is not None]
    if len(numbers) < 4:
        return None
    x1, y1, x2, y2 = numbers
    return [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


def _text(entry: Element, path: str) -> str | None:
    text = entry.findtext(path)
    return text.strip() or None if text else None
