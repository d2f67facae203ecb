"""Data sets in YOLO's layout: a data.yaml, images, and beside them text files with a line for each object.

    data.yaml      names: a list or {id: name}; train, val, test: a folder of images, a list of image files, or several
    images/…       an image's labels are in labels/…/NAME.txt, or beside it where no folder is called images
    labels/…       class, center x, center y, width, height; or class, x, y, x, y, …: an outline, whose box is taken

Coordinates are shares of the image's sides, in the frame in which the image is displayed (EXIF's orientation applied).
An image without a label file, or with an empty one, has no objects.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.coco_json import Skip
from prunekit.detection.image_files import SUFFIXES, read_header
from prunekit.detection.layouts import Layout
from prunekit.errors import InputError

_NAMES = ("data.yaml", "data.yml")
_SPLITS = ("val", "test", "train")  # the first that is there evaluates
_ROUNDING = 0.01  # of the side; exporters write coordinates with as few as two digits


def find_yolo(path: Path) -> Path | None:
    """Return the data.yaml that a path names or holds, if any."""
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    return next((path / name for name in _NAMES if (path / name).is_file()), None)


def read_yolo(file: Path, split: str | None = None, limit: int | None = None) -> Layout:
    """Read a split of a data set.

    Args:
        file: Its data.yaml.
        split: "train", "val" or "test"; None takes the first of val, test and train that is there.
        limit: Read the first `limit` images only.

    Raises:
        InputError: Names or images are missing, or a line is wrong; the sentence says which.
    """
    settings = _read_yaml(file)
    classes = _classes(settings, file)
    splits = [name for name in _SPLITS if settings.get(name)]
    if not splits:
        raise InputError(f"Expected images under train, val or test in {file}, got none of them.")
    split = split or splits[0]
    if split not in splits:
        raise InputError(f"Expected one of the splits {', '.join(splits)} of {file}, got {split!r}.")
    root = _root(settings, file)
    paths = list(islice(_images(settings[split], split, root, file), limit))
    if not paths:
        raise InputError(f"Expected images under {split} of {file}, got none in {settings[split]}.")
    content, skipped = _content(paths, classes, root)
    learn_from = "train" if "train" in splits else split
    return Layout(file, root, content, skipped, split, tuple(splits), learn_from)


def _content(paths: Sequence[Path], classes: Mapping[int, str], root: Path) -> tuple[dict[str, list[Any]], list[Skip]]:
    skipped: list[Skip] = []
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(paths, 1):
        name = path.relative_to(root) if path.is_relative_to(root) else path
        images.append({"id": number, "file_name": name.as_posix()})
        objects = list(_objects(_label_file(path), classes, skipped))
        try:
            width, height = read_header(path, None).displayed_size
        except UnusableError:
            continue  # whoever opens the images says so
        images[-1] |= {"width": width, "height": height}
        annotations += [found.annotation(number, width, height) for found in objects]
    categories = [{"id": key, "name": name} for key, name in sorted(classes.items())]
    return {"images": images, "annotations": annotations, "categories": categories}, skipped


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise InputError(f"Expected YOLO's description of a data set, but {file} is no YAML{where}.") from None
    if not isinstance(content, dict):
        raise InputError(f"Expected names, train and val in {file}, got {type(content).__name__}.")
    return content


def _classes(settings: Mapping[str, Any], file: Path) -> dict[int, str]:
    names = settings.get("names")
    pairs = names.items() if isinstance(names, Mapping) else enumerate(names) if isinstance(names, list) else ()
    classes: dict[int, str] = {}
    for key, name in pairs:
        if isinstance(key, bool) or not isinstance(key, int) or key < 0:
            raise InputError(f"Expected whole numbers from 0 as the ids of names in {file}, got {key!r}.")
        classes[key] = str(name)
    if not classes:
        raise InputError(f"Expected the classes' names, a list or a name for each id, under names in {file}, got none.")
    if settings.get("nc", len(classes)) != len(classes):
        raise InputError(
            f"Expected a name for each of the {settings['nc']} classes (nc) in {file}, got {len(classes)}."
        )
    return classes


def _root(settings: Mapping[str, Any], file: Path) -> Path:
    """Return the folder that splits are relative to: the file's own where `path` is of another machine."""
    named = file.parent / str(settings.get("path") or ".")
    return named if named.is_dir() else file.parent


def _images(entries: Any, split: str, root: Path, file: Path) -> Iterator[Path]:
    for entry in entries if isinstance(entries, list) else [entries]:
        found = _existing(str(entry), root, file.parent)
        if found is None:
            raise InputError(f"Expected a folder or a list of images under {split} of {file}, got none at {entry}.")
        yield from _listed(found, root) if found.is_file() else _in_folder(found)


def _existing(entry: str, root: Path, folder: Path) -> Path | None:
    """Return what an entry names; some exporters write ../train/images for what lies in train/images."""
    spelled = (root / entry, folder / entry, folder / entry.removeprefix("../"))
    return next((path for path in spelled if path.exists()), None)


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def _listed(file: Path, root: Path) -> Iterator[Path]:
    """Yield the images of a list, a path a line: absolute, or relative to the list's folder or to the data's."""
    for number, line in enumerate(_lines(file), 1):
        if not (name := line.strip()):
            continue
        found = next((path for path in (file.parent / name, root / name) if path.is_file()), None)
        if found is None:
            raise InputError(f"Expected an image for each line of {file}, got none at {name} (line {number}).")
        yield root / found.relative_to(root) if found.is_relative_to(root) else found


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


@dataclass(frozen=True)
class _Object:
    """A line: its class, box xyxy in shares of the image's sides, and where it stands."""

    label: int
    box: tuple[float, float, float, float]
    where: str

    def annotation(self, image_id: int, width: int, height: int) -> dict[str, Any]:
        x1, y1, x2, y2 = self.box
        box = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
        return {"id": self.where, "image_id": image_id, "category_id": self.label, "bbox": box}


def _objects(file: Path, classes: Mapping[int, str], skipped: list[Skip]) -> Iterator[_Object]:
    seen = set()
    for number, line in enumerate(_lines(file) if file.is_file() else (), 1):
        if not (words := tuple(line.split())):
            continue
        if words in seen:
            reason, kind = "repeats an earlier line", "annotations that repeat an earlier one"
            skipped.append(Skip(f"line {number} of {file}", reason, kind))
            continue
        seen.add(words)
        yield _object(words, classes, f"{file.name} line {number}", f"{file}, line {number}")


def _object(words: Sequence[str], classes: Mapping[int, str], name: str, where: str) -> _Object:
    label, coordinates = _label(words[0], classes, where), _coordinates(words[1:], where)
    if len(coordinates) == 4:
        x, y, width, height = coordinates
        return _Object(label, (x - width / 2, y - height / 2, x + width / 2, y + height / 2), name)
    if len(coordinates) < 6 or len(coordinates) % 2:
        raise InputError(
            f"Expected a class and a box of 4 numbers, or an outline's x y …, got {len(words)} in {where}."
        )
    xs, ys = coordinates[::2], coordinates[1::2]
    return _Object(label, (min(xs), min(ys), max(xs), max(ys)), name)


def _label(word: str, classes: Mapping[int, str], where: str) -> int:
    number = _number(word, where)
    label = int(number)
    if label != number or label not in classes:
        raise InputError(f"Expected a class from {min(classes)} to {max(classes)}, got {word} in {where}.")
    return label


def _coordinates(words: Sequence[str], where: str) -> list[float]:
    numbers = [_number(word, where) for word in words]
    if beyond := [word for word, value in zip(words, numbers, strict=True) if not -_ROUNDING <= value <= 1 + _ROUNDING]:
        raise InputError(f"Expected coordinates as shares of the image, from 0 to 1, got {beyond[0]} in {where}.")
    return numbers


def _number(word: str, where: str) -> float:
    number = math.nan
    with suppress(ValueError):
        number = float(word)
    if not math.isfinite(number):
        raise InputError(f"Expected numbers, got {word[:40]!r} in {where}.")
    return number


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError):
        raise InputError(f"Expected a text file, but {file} cannot be read as one.") from None
