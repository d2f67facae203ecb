"""A unit's model in int8: what it is calibrated on, and what is deployed in each precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from prunekit.config import Config
from prunekit.evaluation.latency import Deployed
from prunekit.nn.int8 import PRECISIONS
from prunekit.training.data import TrainingData, as_floats

FLOAT32, INT8 = PRECISIONS


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


def int8_columns(deployed: Deployed, accuracy: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the columns on what is deployed in int8; empty where the model stayed float32.

    Args:
        deployed: with the latency of both.
        accuracy: the task's columns of the model in int8, on clean images and on those that were attacked by the
            float32 model's gradients.
    """
    report, timing = deployed.int8_report, deployed.latency.int8
    rows = [] if report is None or timing is None else report.rows
    return {
        "int8_latency_ms": timing.median_ms if timing else None,
        "int8_latency_ms_p90": timing.p90_ms if timing else None,
        "int8_latency_ms_p99": timing.p99_ms if timing else None,
        "int8_layers": sum(row.precision == INT8 for row in rows) if rows else None,
        "int8_relative_rms": report.relative_rms if report is not None and rows else None,
        **{f"int8_{name}": value for name, value in accuracy.items()},
    }
