"""A checkpoint's model in int8: what it is calibrated on, the file that holds it, and the columns on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from prunekit.config import Config
from prunekit.evaluation.latency import in_int8
from prunekit.nn.int8 import PRECISIONS
from prunekit.nn.saving import load, save
from prunekit.pipeline.store import StageFolder, read_json, write_json
from prunekit.progress import Progress, alone
from prunekit.timing import Timing
from prunekit.training.data import TrainingData, as_floats

FLOAT32, INT8 = PRECISIONS
#: In the folder of the work that makes it.
MODEL, REPORT = "model.safetensors", "acceleration.json"


class DeploymentChoices(Config):
    """In which precisions models are deployed, and by how many threads."""

    precision: tuple[str, ...] = Field(
        (FLOAT32,),
        description="also evaluate and time what is deployed in int8, beside float32: float32,int8",
    )
    calibration_images: int = Field(256, ge=1, description="training images that int8 is calibrated on")
    latency_threads: int | None = Field(
        None, ge=1, description="threads that models are made fast for and timed with (default: as many as --threads)"
    )

    @property
    def deploys_int8(self) -> bool:
        """Whether models are deployed in int8 too."""
        return INT8 in self.precision


def calibration_images(data: TrainingData, count: int, workers: int) -> Iterator[Tensor]:
    """Yield so many images, [1, 3, H, W] in [0, 1], from all over the training data."""
    for images, _ in data.batches(calibration_indices(len(data), count), 1, workers):
        yield as_floats(images)


def calibration_indices(images: int, count: int) -> list[int]:
    """Return which of a data set's images are looked at: `count` of them at most, evenly spread."""
    indices: list[int] = np.unique(np.linspace(0, images - 1, min(count, images)).round().astype(int)).tolist()
    return indices


@dataclass(frozen=True)
class ModelInInt8:
    """A model that was accelerated in int8, as its file holds it.

    Attributes:
        model: None where all of it stayed float32.
        sha256: Of the file; "" where there is none.
        chosen: `int8_layers` of `layers`, and `relative_rms`, how far the outputs are from float32's.
        report: What accelerating it chose, as JSON.
    """

    model: nn.Module | None
    sha256: str
    chosen: Mapping[str, Any]
    report: Mapping[str, Any]


def write_int8(
    folder: StageFolder, model: nn.Module, x: Tensor, images: Iterable[Tensor], progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Accelerate a model in int8 and write it; return what was chosen, and the files.

    A model that stayed float32 is not written.

    Args:
        folder: Where the files go.
        model: The model in eval mode, compacted where filters went.
        x: An image of the size to be fast at, [1, 3, H, W].
        images: What the levels are calibrated on, [1, 3, H, W] each.
        progress: Told why a model stayed float32.
    """
    with alone(progress):  # which layers are faster in int8 is timed
        for _ in progress.track(range(1), "accelerating in int8", 1):
            fast, report = in_int8(model, x, images)
    write_json(folder.file(REPORT), report.to_json())
    chosen = {"int8_layers": sum(row.precision == INT8 for row in report.rows), "layers": len(report.rows)}
    if fast is None:
        progress.message(f"not deployed in int8: {'; '.join(report.notes)}")
        return {**chosen, "int8_layers": 0}, [REPORT]
    save(fast, folder.file(MODEL))
    return {**chosen, "relative_rms": report.relative_rms}, [REPORT, MODEL]


def read_int8(folder: StageFolder, chosen: Mapping[str, Any]) -> ModelInInt8:
    """Read what `write_int8` wrote into the folder of finished work, and said to have chosen."""
    report = read_json(folder.file(REPORT))
    if not chosen["int8_layers"]:
        return ModelInInt8(None, "", chosen, report)
    return ModelInInt8(load(folder.file(MODEL)), folder.output(MODEL), chosen, report)


def int8_columns(
    chosen: Mapping[str, Any], timing: Timing | None, figures: Mapping[str, float | None]
) -> dict[str, Any]:
    """Return the columns on what is deployed in int8; empty where the model stayed float32.

    Args:
        chosen: As in `ModelInInt8`.
        timing: Of the network for one image.
        figures: Other columns, called as those of the float32 model: on clean images, on those that were attacked by
            the float32 model's gradients, and under further conditions.
    """
    return {
        "int8_latency_ms": timing.median_ms if timing else None,
        "int8_latency_ms_p90": timing.p90_ms if timing else None,
        "int8_latency_ms_p99": timing.p99_ms if timing else None,
        "int8_layers": chosen["int8_layers"] or None,
        "int8_relative_rms": chosen.get("relative_rms"),
        **{f"int8_{name}": value for name, value in figures.items()},
    }
