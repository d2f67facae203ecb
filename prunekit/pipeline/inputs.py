"""What a run's numbers come from, identified by content: the weights file and the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prunekit.detection import CocoDataset
from prunekit.detection.kept_images import KeptImages
from prunekit.pipeline.choices import SharedChoices
from prunekit.pipeline.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """SHA-256 of the weights file and of the data sets' images and annotations; "" where nothing trains."""

    weights_sha256: str
    data_sha256: str
    train_data_sha256: str = ""


def open_data(config: SharedChoices, path: Path, progress: Progress, keep: bool = False) -> CocoDataset:
    """Open a data set as the configuration wants its images, and say what was left out.

    Args:
        config: Size, colors and number of the images.
        path: A folder in COCO's layout, or the annotations' JSON file.
        progress: Told of every kind of entry that was skipped.
        keep: Keep decoded images, up to `KEPT_BYTES`, for a data set that is passed over many times.
    """
    dataset = CocoDataset.open(path, config.image_size, config.greyscale, config.limit)
    for kind, count in dataset.skipped_by_reason.items():
        first = next(skip for skip in dataset.skipped if (skip.kind or skip.reason) == kind)
        progress.message(f"skipped {count} {kind}: {first.what} {first.reason}{' …' if count > 1 else ''}")
    dataset.kept = KeptImages() if keep else None
    return dataset


def data_digest(dataset: CocoDataset, progress: Progress) -> str:
    """Hash a data set, decoding every image once: a damaged one ends the run now, not after an hour.

    Where the data set keeps images, this is the only time that those are decoded.

    Raises:
        InputError: When an image cannot be decoded.
    """
    facts = [dataset.image_size, dataset.greyscale, [asdict(category) for category in dataset.categories]]
    data = hashlib.sha256(json.dumps(facts).encode())
    for index in progress.track(range(len(dataset)), "checking images", len(dataset)):
        record = dataset.images[index]
        dataset[index]
        data.update(json.dumps(asdict(record), sort_keys=True).encode())
        data.update((dataset.image_folder / record.file_name).read_bytes())
    return data.hexdigest()
