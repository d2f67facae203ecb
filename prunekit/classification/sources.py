"""Labeled images as files hold them, one each or many in an array; a file is decoded when its image is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prunekit.detection.coco_fields import UnusableError
from prunekit.detection.image_files import SUFFIXES, read_header, read_image
from prunekit.errors import InputError

Pixels = npt.NDArray[np.uint8]


class Source(Protocol):
    """Images with a label each, in an order whose beginning has all classes."""

    @property
    def labels(self) -> Sequence[int]:
        """Index into the classes, by image."""

    def name(self, index: int) -> str:
        """Return what the report calls an image."""

    def size(self, index: int) -> tuple[int, int]:
        """Return an image's width and height in pixels; InputError if it cannot be read."""

    def pixels(self, index: int) -> Pixels:
        """Return an image as RGB, [H, W, 3]; InputError if it cannot be decoded."""

    def raw(self, index: int) -> bytes:
        """Return an image's bytes as stored, which identify it."""


@dataclass(frozen=True)
class Files:
    """Image files; gray ones become RGB, and 16-bit ones are scaled to 8 bits."""

    paths: Sequence[Path]
    labels: Sequence[int]

    def name(self, index: int) -> str:
        """Return the file and its folder's name."""
        return f"{self.paths[index].parent.name}/{self.paths[index].name}"

    def size(self, index: int) -> tuple[int, int]:
        """Read the file's header."""
        try:
            return read_header(self.paths[index], None).size
        except UnusableError as error:
            raise InputError(f"Expected a readable image, but {self.paths[index]} {error.reason}.") from None

    def pixels(self, index: int) -> Pixels:
        """Decode the file."""
        return np.asarray(read_image(self.paths[index], *self.size(index)))

    def raw(self, index: int) -> bytes:
        """Read the file."""
        return self.paths[index].read_bytes()


@dataclass(frozen=True)
class Array:
    """Images of one size in memory, [N, H, W, 3] or gray [N, H, W, 1]."""

    images: Pixels
    labels: Sequence[int]
    title: str

    def name(self, index: int) -> str:
        """Return the set and the image's number."""
        return f"{self.title} {index}"

    def size(self, index: int) -> tuple[int, int]:
        """Return the size of all of them."""
        return self.images.shape[2], self.images.shape[1]

    def pixels(self, index: int) -> Pixels:
        """Copy an image, gray ones thrice."""
        return np.ascontiguousarray(np.broadcast_to(self.images[index], (*self.images.shape[1:3], 3)))

    def raw(self, index: int) -> bytes:
        """Return the image's values."""
        stored: bytes = self.images[index].tobytes()
        return stored


def class_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones aside, by name."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def read_folders(root: Path, classes: Sequence[str]) -> Files:
    """List the images of a folder that has one for each class, the classes in turn.

    Raises:
        InputError: A class has no image, or the folder has another class.
    """
    by_class: list[list[Path]] = [[] for _ in classes]
    for folder in class_folders(root):
        if folder.name not in classes:
            raise InputError(f"Expected in {root} the classes of the training set, got {folder.name!r}.")
        found = by_class[classes.index(folder.name)]
        found += sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"Expected images in the folder of every class, got none in {folder}.")
    in_turn = chain.from_iterable(
        zip_longest(*([(path, label) for path in paths] for label, paths in enumerate(by_class)))
    )
    pairs = [pair for pair in in_turn if pair is not None]
    return Files([path for path, _ in pairs], [label for _, label in pairs])
