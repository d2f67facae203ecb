"""Data sets of labeled images: a part of one, at one size, decoded when it is asked for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from prunekit.classification.formats import HOLDOUT, PARTS, TEST, TRAIN, Sources, read_sources
from prunekit.classification.sources import Source
from prunekit.detection.letterbox import to_grayscale
from prunekit.errors import InputError
from prunekit.kept_images import KeptImages, KeptPixels, Pixels, kept_or_decoded
from prunekit.task_data import PixelChange

HOLDOUT_EVERY = 10  # every tenth training image of a class is held out: to choose by, never to learn from
USUAL_SIZE = 224  # pixels, for images of several sizes


@dataclass(frozen=True)
class Sample:
    """One image [3, S, S] in [0, 1] and its label."""

    image: Tensor
    target: int
    image_id: int


@dataclass(frozen=True)
class Batch:
    """N samples: images [N, 3, S, S], labels [N] and ids."""

    images: Tensor
    targets: Tensor
    image_ids: list[int]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(self.images.to(device), self.targets.to(device), self.image_ids)


class ClassificationData(Dataset[Sample]):
    """Images of one part of a data set; `ClassificationData.open` makes one. An image's id is its index.

    Attributes:
        classes: The classes' names; a label is an index into them.
        subset: "train", "holdout" or "test"; "" where the data set has one kind of images only.
        image_size: Side of the square images in pixels.
        kept: Where images are kept, so that they are decoded once; None decodes them every time.
        decoded: Where images are kept as decoded; None keeps none.
    """

    def __init__(
        self, sources: Sources, subset: str, image_size: int | None, grayscale: bool = False, limit: int | None = None
    ) -> None:
        self._sources, self._limit, self._wanted_size = sources, limit, image_size
        self.classes, self.subset, self.grayscale = sources.classes, subset, grayscale
        self._source, self._indices = _chosen(sources, subset, limit)
        self.image_size = image_size or _own_size(self._source, self._indices)
        self.kept: KeptImages | None = None
        self.decoded: KeptPixels | None = None
        self._change: PixelChange | None = None

    @classmethod
    def open(
        cls, path: str | Path, image_size: int | None = None, grayscale: bool = False, limit: int | None = None
    ) -> ClassificationData:
        """Open what evaluates: the test set where there is one. `training` returns what to learn from.

        Args:
            path: A data set, or one with "train", "holdout" or "test" behind it: "cifar10/holdout".
            image_size: Side of the images in pixels; others are scaled and cropped around the center. None takes the
                images' own where they share one, else 224.
            grayscale: Replace colors by Rec. 601 gray values.
            limit: Use the first `limit` images only; folders are read class by class in turn.

        Raises:
            InputError: Anything that keeps the data from being used, in one sentence.
        """
        path = Path(path)
        is_named = not path.exists() and path.name in PARTS
        sources = read_sources(path.parent if is_named else path)
        subset = path.name if is_named else next(name for name in (TEST, "", TRAIN) if name in sources.parts)
        return cls(sources, subset, image_size, grayscale, limit)

    def training(self) -> ClassificationData:
        """Return what to learn from: the training set without its holdout; the data themselves if there is none."""
        if TRAIN not in self._sources.parts or self.subset in (TRAIN, HOLDOUT):
            return self
        return ClassificationData(self._sources, TRAIN, self._wanted_size, self.grayscale, self._limit)

    def holdout(self) -> ClassificationData | None:
        """Return what to choose by where these are the images to learn from.

        Raises:
            InputError: No class has images enough that one was held out.
        """
        if self.subset != TRAIN:
            return None
        return ClassificationData(self._sources, HOLDOUT, self._wanted_size, self.grayscale)

    @property
    def class_names(self) -> Sequence[str]:
        """The classes' names."""
        return self.classes

    @property
    def labels(self) -> list[int]:
        """The labels by id."""
        return [self._source.labels[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        image = kept_or_decoded(self.kept, index, lambda: self._decode(index))
        return Sample(image, self._source.labels[self._indices[index]], index)

    def is_kept(self, index: int) -> bool:
        """Return whether taking an image decodes nothing."""
        return self.kept is not None and index in self.kept

    def _decode(self, index: int) -> Tensor:
        pixels = self.pixels(index)
        if pixels.shape[:2] != (self.image_size, self.image_size):
            fitted = ImageOps.fit(Image.fromarray(pixels), (self.image_size,) * 2, Image.Resampling.BICUBIC)
            pixels = np.asarray(fitted)
        image = torch.tensor(pixels).permute(2, 0, 1).float() / 255
        return to_grayscale(image) if self.grayscale else image

    def changed(self, change: PixelChange) -> ClassificationData:
        """Return a view whose images are changed right after decoding."""
        view = copy.copy(self)
        view.kept, view._change = None, change
        return view

    def pixels(self, index: int) -> Pixels:
        """Return an image as decoded, uint8 [H, W, 3], and changed."""

        def decode() -> Pixels:
            return self._source.pixels(self._indices[index])

        pixels = decode() if self.decoded is None else self.decoded.get(index, decode)
        return pixels if self._change is None else self._change(pixels, index)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Join samples to a batch."""
        return Batch(
            torch.stack([sample.image for sample in samples]),
            torch.tensor([sample.target for sample in samples]),
            [sample.image_id for sample in samples],
        )

    def notes(self) -> list[str]:
        """Nothing is left out silently: what cannot be used is an error."""
        return []

    def identity(self) -> list[Any]:
        """Return what the data are beside their images: size, colors, classes."""
        return [self.image_size, self.grayscale, list(self.classes)]

    def fingerprint(self, index: int) -> bytes:
        """Return an image's class and bytes; raise InputError if it cannot be decoded."""
        label = self[index].target
        return f"{label} {self._source.size(self._indices[index])} ".encode() + self._source.raw(self._indices[index])

    def part(self, count: int) -> ClassificationData:
        """Return a view of the first `count` images."""
        view = copy.copy(self)
        view._indices = self._indices[:count]
        return view

    def resolution(self) -> float:
        """Return the share that one image is."""
        return 1 / len(self)

    def examples(self, count: int) -> list[int]:
        """Return the indices of up to `count` images, spread evenly over the data set."""
        count = min(count, len(self))
        return [index * len(self) // count for index in range(count)]

    def example(self, index: int) -> dict[str, Any]:
        """Describe an image for the report."""
        found = self._indices[index]
        return {"id": index, "file_name": self._source.name(found), "class": self.classes[self._source.labels[found]]}

    def visible(self, index: int, image: Tensor) -> Tensor:
        """Return the whole image: there is no border."""
        return image


def _chosen(sources: Sources, part: str, limit: int | None) -> tuple[Source, list[int]]:
    """Return where a part's images are, and which of them it has."""
    if limit is not None and limit < 1:
        raise InputError(f"Expected a limit of at least 1 image, got {limit}.")
    source = sources.parts.get(part) or sources.parts.get(TRAIN if part == HOLDOUT else "")
    if source is None:
        raise InputError(f"Expected a {part} set, got a data set with {', '.join(sources.parts)} only.")
    indices = list(range(len(source.labels)))
    if part in (TRAIN, HOLDOUT) and HOLDOUT not in sources.parts:
        held_out = _holdout(source.labels)
        indices = [index for index in indices if held_out[index] == (part == HOLDOUT)]
    if not indices:
        raise InputError(f"Expected at least one image in the {part} set, got none.")
    return source, indices[:limit]


def _holdout(labels: Sequence[int]) -> list[bool]:
    """Return which images are held out: every tenth of its class."""
    seen: dict[int, int] = {}
    held_out = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        held_out.append(seen[label] % HOLDOUT_EVERY == 0)
    return held_out


def _own_size(source: Source, indices: Sequence[int]) -> int:
    """Return the side of square images that are all of one size, else `USUAL_SIZE`."""
    width, height = source.size(indices[0])
    same = width == height and all(source.size(index) == (width, height) for index in indices)
    return width if same else USUAL_SIZE
