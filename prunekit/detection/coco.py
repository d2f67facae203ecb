"""COCO data sets: images on disk with their objects, letterboxed for a detector."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunekit.detection.coco_annotations import add_annotations
from prunekit.detection.coco_images import OnBadImage, find_image_folder, open_images
from prunekit.detection.coco_json import CocoAnnotations, ImageRecord, Skip, content_of, read_coco_json
from prunekit.detection.image_files import read_image
from prunekit.detection.layouts import Layout
from prunekit.detection.letterbox import Interpolation, Letterbox, to_grayscale
from prunekit.detection.target import Target
from prunekit.detection.voc_folder import is_voc, read_voc
from prunekit.detection.yolo_folder import find_yolo, read_yolo
from prunekit.errors import InputError
from prunekit.kept_images import KeptImages, KeptPixels, Pixels, kept_or_decoded
from prunekit.task_data import PixelChange

SIZE_STEP = 32  # the coarsest stride of the detectors
_SPLITS = ("train", "val", "test", "trainval")
USUAL_SIZE = 416  # pixels, as in darknet's configurations


@dataclass(frozen=True)
class Sample:
    """One letterboxed image [3, S, S] in [0, 1]; its objects' boxes [K, 4] xyxy in its pixels, labels [K]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    letterbox: Letterbox

    @property
    def target(self) -> Target:
        """Boxes and labels."""
        return Target(self.boxes, self.labels)


@dataclass(frozen=True)
class Batch:
    """N samples: images [N, 3, S, S], and a target, an id and a letterbox each."""

    images: Tensor
    targets: list[Target]
    image_ids: list[int]
    letterboxes: list[Letterbox]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with images and objects on a device."""
        targets = [Target(target.boxes.to(device), target.labels.to(device)) for target in self.targets]
        return Batch(self.images.to(device), targets, self.image_ids, self.letterboxes)


class CocoDataset(Dataset[Sample]):
    """Images and objects of a COCO data set; `CocoDataset.open` makes one.

    Attributes:
        images: one record per image, in the file's order.
        categories: the classes; a label is an index into them.
        skipped: what was left out, and why.
        image_size: side of the letterboxed images, in pixels.
        split: which part of a data set with several they are, of `splits`; "" and none for COCO's layout.
        kept: where letterboxed images are kept, so that they are decoded once; None decodes them every time.
        decoded: where images are kept as decoded; None keeps none.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        image_folder: Path,
        image_size: int = USUAL_SIZE,
        grayscale: bool = False,
        fill: float = 0.5,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if image_size < SIZE_STEP or image_size % SIZE_STEP:
            raise InputError(f"Expected an image size in multiples of {SIZE_STEP}, got {image_size}")
        self.images = annotations.images
        self.categories = annotations.categories
        self.skipped = annotations.skipped
        self.image_folder = image_folder
        self.image_size = image_size
        self.grayscale = grayscale
        self.fill = fill
        self.interpolation: Interpolation = interpolation
        self.kept: KeptImages | None = None
        self.decoded: KeptPixels | None = None
        self._change: PixelChange | None = None
        self.split = ""
        self.splits: tuple[str, ...] = ()
        self._open_training: Callable[[], CocoDataset] | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        image_size: int | None = None,
        grayscale: bool = False,
        limit: int | None = None,
        on_bad_image: OnBadImage = "error",
        fill: float = 0.5,
        interpolation: Interpolation = "bilinear",
        split: str | None = None,
    ) -> CocoDataset:
        """Open a data set and check the header of every image.

        Args:
            path: an annotation JSON, or a folder with one under annotations/ and the images beside it; or a folder in
                YOLO's layout (data.yaml) or Pascal VOC's (Annotations/*.xml), also with a split behind it: data/train.
            image_size: side of the letterboxed images in pixels, a multiple of 32; 416 if not given.
            grayscale: replace colors by Rec. 601 gray values.
            limit: use the first `limit` images only.
            on_bad_image: whether a missing, damaged or wrongly sized image is an error or is skipped; to skip
                files that end early too, every image is decoded once. With "error" only headers are read, and such
                a file is an InputError when it is taken from the data set.
            fill: value of the letterbox's border.
            interpolation: how the letterbox resizes.
            split: of a folder in YOLO's or Pascal VOC's layout; the one to evaluate on if not given.

        Raises:
            InputError: anything that keeps the data from being used, in one sentence.
        """
        if limit is not None and limit < 1:
            raise InputError(f"Expected a limit of at least 1 image, got {limit}")
        root, split = _named_split(Path(path), split)
        layout = _read_layout(root, split, limit)
        if layout is None:
            annotation_file = _find_annotation_file(root)
            content = read_coco_json(annotation_file)
            image_folder = find_image_folder(annotation_file, content.images.values())
        else:
            annotation_file, image_folder = layout.source, layout.root
            content = content_of(layout.content, layout.source, layout.skipped)
        records, bad_images = open_images(dict(islice(content.images.items(), limit)), image_folder, on_bad_image)
        bad_annotations = add_annotations(content, records)
        if len(bad_annotations) == len(content.annotations):
            raise InputError(_nothing_usable(annotation_file, content.skipped + bad_annotations))
        skipped = [*content.skipped, *bad_annotations, *bad_images]
        annotations = CocoAnnotations(list(records.values()), content.categories, skipped)
        size = USUAL_SIZE if image_size is None else image_size
        dataset = cls(annotations, image_folder, size, grayscale, fill, interpolation)
        if layout is not None:
            dataset.split, dataset.splits = layout.split, layout.splits
        if layout is not None and layout.learn_from != layout.split:
            again = partial(cls.open, root, image_size, grayscale, limit, on_bad_image, fill, interpolation)
            dataset._open_training = partial(again, split=layout.learn_from)
        return dataset

    def training(self) -> CocoDataset:
        """Return the split to learn from; the data themselves where they are no split or there is no other."""
        return self._open_training() if self._open_training is not None else self

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """How many entries were left out for each kind of reason: "annotations that name an unknown category": 3."""
        return dict(Counter(skip.kind or skip.reason for skip in self.skipped))

    @property
    def num_classes(self) -> int:
        """The number of categories."""
        return len(self.categories)

    @property
    def class_names(self) -> list[str]:
        """The categories' names, in the order of the labels."""
        return [category.name for category in self.categories]

    def require_num_classes(self, num_classes: int) -> None:
        """Raise an InputError unless a model's number of classes is the data set's."""
        if num_classes != self.num_classes:
            raise InputError(
                f"Expected a model for the {self.num_classes} categories of the data in {self.image_folder}, "
                f"but the model has {num_classes} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        record = self.images[index]
        letterbox = self._letterbox(record)
        image = kept_or_decoded(self.kept, record.id, lambda: self._decode(record, letterbox))
        return Sample(image, letterbox.to_square(record.boxes), record.labels, record.id, letterbox)

    def is_kept(self, index: int) -> bool:
        """Return whether taking an image decodes nothing."""
        return self.kept is not None and self.images[index].id in self.kept

    def _letterbox(self, record: ImageRecord) -> Letterbox:
        return Letterbox.fit(record.width, record.height, self.image_size, self.fill, self.interpolation)

    def _decode(self, record: ImageRecord, letterbox: Letterbox) -> Tensor:
        image = letterbox.apply(self._pixels(record))
        return to_grayscale(image) if self.grayscale else image

    def _pixels(self, record: ImageRecord) -> Pixels:
        def decode() -> Pixels:
            file = self.image_folder / record.file_name
            return np.asarray(read_image(file, record.width, record.height, record.upright))

        pixels = decode() if self.decoded is None else self.decoded.get(record.id, decode)
        return pixels if self._change is None else self._change(pixels, record.id)

    def changed(self, change: PixelChange) -> CocoDataset:
        """Return a view whose images are changed right after decoding."""
        view = copy.copy(self)
        view.kept, view._change = None, change
        return view

    def pixels(self, index: int) -> Pixels:
        """Return an image as decoded, uint8 [H, W, 3], and changed."""
        return self._pixels(self.images[index])

    def collate(self, samples: list[Sample]) -> Batch:
        """Join samples to a batch."""
        return collate(samples)

    def notes(self) -> list[str]:
        """Say what was left out: each reason once, with its count and first case."""
        notes = []
        for kind, count in self.skipped_by_reason.items():
            first = next(skip for skip in self.skipped if (skip.kind or skip.reason) == kind)
            notes.append(f"skipped {count} {kind}: {first.what} {first.reason}{' …' if count > 1 else ''}")
        return notes

    def identity(self) -> list[Any]:
        """Return what the data are beside their images: size, colors, categories."""
        return [self.image_size, self.grayscale, [asdict(category) for category in self.categories]]

    def fingerprint(self, index: int) -> bytes:
        """Return an image's annotations and file; raise InputError if it cannot be decoded."""
        record = self.images[index]
        self[index]
        return json.dumps(asdict(record), sort_keys=True).encode() + (self.image_folder / record.file_name).read_bytes()

    def part(self, count: int) -> CocoDataset:
        """Return a view of the first `count` images that have objects, or of the first images if none has."""
        part = copy.copy(self)
        part.images = [record for record in self.images if record.objects][:count] or self.images[:count]
        return part

    def half(self, number: int) -> CocoDataset:
        """Return a view of every second image, from the first (0) or from the second (1) on."""
        half = copy.copy(self)
        half.images = self.images[number::2]
        return half

    def box_sizes(self) -> Tensor:
        """Return the widths and heights of all objects in pixels of the letterboxed images, [M, 2]."""
        sizes = [
            (record.boxes[:, 2:] - record.boxes[:, :2]) * (self.image_size / max(record.width, record.height))
            for record in self.images
        ]
        return torch.cat(sizes)

    def resolution(self) -> float:
        """Return how much one object can change AP, the mean over classes: most where its class has no other."""
        objects = Counter(label for record in self.images for label in record.labels.tolist())
        return 1 / (len(objects) * min(objects.values())) if objects else math.nan

    def examples(self, count: int) -> list[int]:
        """Return the indices of up to `count` images with objects, spread evenly over the data set."""
        candidates = [index for index, record in enumerate(self.images) if len(record.boxes) > 0]
        count = min(count, len(candidates))
        return [candidates[position * len(candidates) // count] for position in range(count)]

    def example(self, index: int) -> dict[str, Any]:
        """Describe an image and its objects, boxes xyxy in the original image's pixels."""
        record = self.images[index]
        return {
            "id": record.id,
            "file_name": record.file_name,
            "width": record.width,
            "height": record.height,
            "boxes": record.boxes.tolist(),
            "labels": record.labels.tolist(),
            "categories": [{"id": category.id, "name": category.name} for category in self.categories],
        }

    def visible(self, index: int, image: Tensor) -> Tensor:
        """Return the part of a letterboxed image, [3, S, S], that is not border."""
        record = self.images[index]
        corners = torch.tensor([[0.0, 0.0, record.width, record.height]])
        left, top, right, bottom = (round(value) for value in self._letterbox(record).to_square(corners)[0].tolist())
        return image[:, top:bottom, left:right]


def collate(samples: Iterable[Sample]) -> Batch:
    """Join samples of one size to a batch; a DataLoader's `collate_fn`."""
    samples = list(samples)
    return Batch(
        torch.stack([sample.image for sample in samples]),
        [Target(sample.boxes, sample.labels) for sample in samples],
        [sample.image_id for sample in samples],
        [sample.letterbox for sample in samples],
    )


def _named_split(path: Path, split: str | None) -> tuple[Path, str | None]:
    """Return a data set, and the split that is given or stands behind its folder: data/train."""
    is_named = split is None and path.name in _SPLITS and (find_yolo(path.parent) or is_voc(path.parent))
    is_own = find_yolo(path) or is_voc(path) or any((path / "annotations").glob("*.json"))
    return (path.parent, path.name) if is_named and not is_own else (path, split)


def _read_layout(path: Path, split: str | None, limit: int | None) -> Layout | None:
    """Read another layout than COCO's; None if it is COCO's."""
    if (file := find_yolo(path)) is not None:
        return read_yolo(file, split, limit)
    if is_voc(path):
        return read_voc(path, split, limit)
    if split is not None:
        raise InputError(f"Expected a folder in YOLO's or Pascal VOC's layout for the split {split}, got {path}")
    return None


def _find_annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        problem = "is none of them" if path.exists() else "does not exist"
        raise InputError(f"Expected a folder, a JSON file (COCO) or a data.yaml (YOLO), but {path} {problem}")
    files = sorted((path / "annotations").glob("*.json"))
    if len(files) > 1:
        # COCO ships captions and keypoints beside the instances.
        files = [file for file in files if file.name.startswith("instances")] or files
    if not files:
        raise InputError(
            "Expected annotations/*.json (COCO), data.yaml (YOLO) or Annotations/*.xml (Pascal VOC), "
            f"got none of them in {path}"
        )
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"Expected one annotation file, but {path / 'annotations'} holds {names}: name one")
    return files[0]


def _nothing_usable(annotation_file: Path, skipped: list[Skip]) -> str:
    detail = f": {len(skipped)} entries were skipped, {skipped[0].what} {skipped[0].reason}" if skipped else ""
    return f"Expected annotated objects in {annotation_file}, but found none that can be used{detail}"
