"""COCO data sets: images on disk with their objects, letterboxed for a detector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunekit.detection.coco_annotations import add_annotations
from prunekit.detection.coco_images import OnBadImage, find_image_folder, open_images
from prunekit.detection.coco_json import CocoAnnotations, ImageRecord, Skip, read_coco_json
from prunekit.detection.image_files import read_image
from prunekit.detection.kept_images import KeptImages
from prunekit.detection.letterbox import Interpolation, Letterbox, to_greyscale
from prunekit.detection.target import Target
from prunekit.errors import InputError

SIZE_STEP = 32  # the coarsest stride of the detectors


@dataclass(frozen=True)
class Sample:
    """One letterboxed image [3, S, S] in [0, 1]; its objects' boxes [K, 4] xyxy in its pixels, labels [K]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    image_id: int
    letterbox: Letterbox


@dataclass(frozen=True)
class Batch:
    """N samples: images [N, 3, S, S], and a target, an id and a letterbox each."""

    images: Tensor
    targets: list[Target]
    image_ids: list[int]
    letterboxes: list[Letterbox]


class CocoDataset(Dataset[Sample]):
    """Images and objects of a COCO data set; `CocoDataset.open` makes one.

    Attributes:
        images: one record per image, in the file's order.
        categories: the classes; a label is an index into them.
        skipped: what was left out, and why.
        image_size: side of the letterboxed images, in pixels.
        kept: where letterboxed images are kept, so that they are decoded once; None decodes them every time.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        image_folder: Path,
        image_size: int = 416,
        greyscale: bool = False,
        fill: float = 0.5,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        if image_size < SIZE_STEP or image_size % SIZE_STEP:
            raise InputError(f"expected an image size in multiples of {SIZE_STEP}, but got {image_size}")
        self.images = annotations.images
        self.categories = annotations.categories
        self.skipped = annotations.skipped
        self.image_folder = image_folder
        self.image_size = image_size
        self.greyscale = greyscale
        self.fill = fill
        self.interpolation: Interpolation = interpolation
        self.kept: KeptImages | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        image_size: int = 416,
        greyscale: bool = False,
        limit: int | None = None,
        on_bad_image: OnBadImage = "error",
        fill: float = 0.5,
        interpolation: Interpolation = "bilinear",
    ) -> CocoDataset:
        """Open a data set and check the header of every image.

        Args:
            path: an annotation JSON, or a folder with one under annotations/ and the images beside it.
            image_size: side of the letterboxed images in pixels, a multiple of 32.
            greyscale: replace colours by Rec. 601 grey values.
            limit: use the first `limit` images only.
            on_bad_image: whether a missing, damaged or wrongly sized image is an error or is skipped; to skip
                files that end early too, every image is decoded once. With "error" only headers are read, and such
                a file is an InputError when it is taken from the data set.
            fill: value of the letterbox's border.
            interpolation: how the letterbox resizes.

        Raises:
            InputError: anything that keeps the data from being used, in one sentence.
        """
        if limit is not None and limit < 1:
            raise InputError(f"expected a limit of at least 1 image, but got {limit}")
        annotation_file = _find_annotation_file(Path(path))
        content = read_coco_json(annotation_file)
        image_folder = find_image_folder(annotation_file, content.images.values())
        records, bad_images = open_images(dict(islice(content.images.items(), limit)), image_folder, on_bad_image)
        bad_annotations = add_annotations(content, records)
        if len(bad_annotations) == len(content.annotations):
            raise InputError(_nothing_usable(annotation_file, content.skipped + bad_annotations))
        skipped = [*content.skipped, *bad_annotations, *bad_images]
        annotations = CocoAnnotations(list(records.values()), content.categories, skipped)
        return cls(annotations, image_folder, image_size, greyscale, fill, interpolation)

    @property
    def skipped_by_reason(self) -> dict[str, int]:
        """How many entries were left out for each kind of reason: "annotations that name an unknown category": 3."""
        return dict(Counter(skip.kind or skip.reason for skip in self.skipped))

    @property
    def num_classes(self) -> int:
        """The number of categories."""
        return len(self.categories)

    def require_num_classes(self, num_classes: int) -> None:
        """Raise an InputError unless a model's number of classes is the data set's."""
        if num_classes != self.num_classes:
            raise InputError(
                f"expected a model for the {self.num_classes} categories of the data in {self.image_folder}, "
                f"but the model has {num_classes} classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        record = self.images[index]
        letterbox = Letterbox.fit(record.width, record.height, self.image_size, self.fill, self.interpolation)
        image = self.kept.get(record.id) if self.kept is not None else None
        if image is None:
            image = self._decode(record, letterbox)
            if self.kept is not None:
                self.kept.keep(record.id, image)
        return Sample(image, letterbox.to_square(record.boxes), record.labels, record.id, letterbox)

    def _decode(self, record: ImageRecord, letterbox: Letterbox) -> Tensor:
        file = self.image_folder / record.file_name
        image = letterbox.apply(read_image(file, record.width, record.height, record.upright))
        return to_greyscale(image) if self.greyscale else image


def collate(samples: Iterable[Sample]) -> Batch:
    """Join samples of one size to a batch; a DataLoader's `collate_fn`."""
    samples = list(samples)
    return Batch(
        torch.stack([sample.image for sample in samples]),
        [Target(sample.boxes, sample.labels) for sample in samples],
        [sample.image_id for sample in samples],
        [sample.letterbox for sample in samples],
    )


def _find_annotation_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"expected a folder or a JSON file with COCO data, but {path} does not exist")
    files = sorted((path / "annotations").glob("*.json"))
    if len(files) > 1:
        # COCO ships captions and keypoints beside the instances.
        files = [file for file in files if file.name.startswith("instances")] or files
    if not files:
        raise InputError(f"expected a COCO annotation file, but found no *.json in {path / 'annotations'}")
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"expected one annotation file, but {path / 'annotations'} holds {names}: name one")
    return files[0]


def _nothing_usable(annotation_file: Path, skipped: list[Skip]) -> str:
    detail = f": {len(skipped)} entries were skipped, {skipped[0].what} {skipped[0].reason}" if skipped else ""
    return f"expected annotated objects in {annotation_file}, but found none that can be used{detail}"
