"""The detector that is shipped for the demo: robustly trained by `python -m bench.demo_detector`."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.files import write_bytes

MODEL = "yolov3-tiny"
#: Of YOLOv3-tiny's channels: 1.8 million weights, 3.6 MB in float16, and several milliseconds an image on one core.
WIDTH = 0.45
#: Side of its images in pixels, and their style; other sizes and styles it has never seen.
IMAGE_SIZE, STYLE = 256, "textured"
WEIGHTS, FIGURES = "detector.safetensors", "detector.json"


def is_shipped() -> bool:
    """Return whether the package has the detector."""
    return files(__package__).joinpath(WEIGHTS).is_file()


def shipped_figures() -> dict[str, Any]:
    """Return how it was trained, and what it reached on images that it was not trained on.

    Raises:
        InputError: The package does not have it.
    """
    _require()
    figures: dict[str, Any] = json.loads(files(__package__).joinpath(FIGURES).read_text())
    return figures


def unpack(path: Path) -> None:
    """Write the detector's weights to a file, unless that is there.

    Raises:
        InputError: The package does not have it.
    """
    _require()
    if not path.is_file():
        write_bytes(path, files(__package__).joinpath(WEIGHTS).read_bytes())


def _require() -> None:
    if not is_shipped():
        raise InputError(
            f"Expected the demo's detector in the package prunekit, got none: copy {WEIGHTS} and {FIGURES}, which "
            "python -m bench.demo_detector writes, into prunekit/demo/."
        )
