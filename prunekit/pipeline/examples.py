"""A few images kept as the network saw them, clean and attacked, for the report to show."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from prunekit.files import write_bytes
from prunekit.pipeline.run_folder import RunFolder
from prunekit.task import Data, Task, TellsFlips

NUM_EXAMPLES = 4
NUM_CANDIDATES = 16  # of which the report shows those that attacks changed; small images
DESCRIPTION = "examples/examples.json"


def save_clean_examples(folder: RunFolder, dataset: Data, task: Task) -> dict[int, int]:
    """Write the chosen images and what is known about them; return their indices by id.

    More are kept for the report to choose from where the task can say which of them an attack changed.
    """
    images = []
    indices = {}
    for index in dataset.examples(NUM_CANDIDATES if isinstance(task, TellsFlips) else NUM_EXAMPLES):
        images.append(dataset.example(index))
        indices[images[-1]["id"]] = index
        save_example(folder.example(images[-1]["id"]), dataset.visible(index, dataset[index].image))
    folder.write_json(DESCRIPTION, {"images": images})
    return indices


def save_example(path: Path, image: Tensor) -> None:
    """Write an image, [3, H, W] in [0, 1], as PNG."""
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
