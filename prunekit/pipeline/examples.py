"""A few images kept as the network saw them, clean and attacked, for the report to show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prunekit.detection import CocoDataset, Letterbox
from prunekit.files import write_bytes
from prunekit.pipeline.run_folder import RunFolder

NUM_EXAMPLES = 4
DESCRIPTION = "examples/examples.json"


def choose_examples(dataset: CocoDataset) -> list[int]:
    """Return the indices of up to `NUM_EXAMPLES` images with objects, spread evenly over the data set."""
    candidates = [index for index, record in enumerate(dataset.images) if len(record.boxes) > 0]
    count = min(NUM_EXAMPLES, len(candidates))
    return [candidates[position * len(candidates) // count] for position in range(count)]


def save_clean_examples(folder: RunFolder, dataset: CocoDataset) -> set[int]:
    """Write the chosen images and their ground truth (xyxy, original image's pixels); return their ids."""
    images: list[dict[str, Any]] = []
    for index in choose_examples(dataset):
        sample, record = dataset[index], dataset.images[index]
        save_example(folder.example(record.id), sample.image, sample.letterbox)
        images.append(
            {
                "id": record.id,
                "file_name": record.file_name,
                "width": record.width,
                "height": record.height,
                "boxes": record.boxes.tolist(),
                "labels": record.labels.tolist(),
            }
        )
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    folder.write_json(DESCRIPTION, {"categories": categories, "images": images})
    return {image["id"] for image in images}


def save_example(path: Path, image: Tensor, letterbox: Letterbox) -> None:
    """Write the part of a letterboxed image, [3, S, S] in [0, 1], that is not border, as PNG."""
    corners = torch.tensor([[0.0, 0.0, letterbox.width, letterbox.height]])
    left, top, right, bottom = (round(value) for value in letterbox.to_square(corners)[0].tolist())
    pixels = (image[:, top:bottom, left:right].permute(1, 2, 0) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
