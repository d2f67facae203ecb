"""What a run's numbers come from, identified by content: the weights file and the data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from prunekit.detection import CocoDataset
from prunekit.pipeline.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """SHA-256 of the weights file and of the data set's images and annotations."""

    weights_sha256: str
    data_sha256: str


def identify_inputs(weights: Path, dataset: CocoDataset, progress: Progress) -> Inputs:
    """Hash the inputs, decoding every image once: a damaged one ends the run now, not after an hour.

    Raises:
        InputError: When an image cannot be decoded.
    """
    data = hashlib.sha256(json.dumps([asdict(category) for category in dataset.categories]).encode())
    for index in progress.track(range(len(dataset)), "checking images", len(dataset)):
        record = dataset.images[index]
        dataset[index]
        data.update(json.dumps(asdict(record), sort_keys=True).encode())
        data.update((dataset.image_folder / record.file_name).read_bytes())
    return Inputs(hashlib.sha256(weights.read_bytes()).hexdigest(), data.hexdigest())
