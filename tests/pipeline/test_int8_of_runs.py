"""A run that deploys in int8 too: its columns, its page, and what it is calibrated on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunekit.evaluation.latency as latency_module
from prunekit.errors import InputError
from prunekit.nn import AccelerationReport
from prunekit.ops import native
from prunekit.pipeline import make_config, read_rows, run
from prunekit.pipeline.int8 import calibration_images
from prunekit.report import write_report
from tests.support.int8_everywhere import accelerate_in_int8

GOOD = {"model": "yolov3-tiny", "weights": "tiny.weights", "data": "coco", "out": "run", "train_data": "coco"}


class Numbered:
    """Training data whose images are their own numbers."""

    def __len__(self) -> int:
        return 50

    def batches(self, order: Sequence[int], batch_size: int, workers: int) -> Iterator[tuple[Tensor, None]]:
        for i in order:
            yield torch.full((1, 3, 2, 2), i, dtype=torch.uint8), None


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 49]), (50, list(range(50))), (200, list(range(50)))])
def test_calibration_images_come_from_all_over_the_data(count: int, expected: list[int]) -> None:
    found = [round(float(image[0, 0, 0, 0]) * 255) for image in calibration_images(Numbered(), count, 0)]
    assert found == expected


def test_int8_needs_images_to_calibrate_on() -> None:
    with pytest.raises(InputError, match="int8 needs images to learn from: add --train-data"):
        make_config(**{**GOOD, "train_data": None}, precision="float32,int8")
    with pytest.raises(InputError, match="--precision: must be one of float32, int8, got 'int4'"):
        make_config(**GOOD, precision="int4")


@pytest.mark.skipif(not native.is_available(), reason="no native kernels")
def test_a_run_evaluates_and_times_what_it_deploys_in_int8(
    shapes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_module, "accelerate", accelerate_in_int8)
    config = make_config(
        model="yolov3-tiny", width=0.03, data=shapes_data, train_data=shapes_data, out=tmp_path / "run", image_size=64,
        ratios="0,60", structure="filter", objective="clean", pretrain_epochs=1, finetune_epochs=0, max_steps=1,
        attack="fgsm", latency_runs=3, threads=1, precision="float32,int8", calibration_images=2,
    )  # fmt: skip
    folder = run(config)
    rows = read_rows(folder.results)
    assert len(rows) == 2
    for row in rows:
        assert float(row["int8_latency_ms"]) > 0
        assert int(row["int8_layers"]) > 5
        assert 0 < float(row["int8_relative_rms"]) < 1
        assert 0 <= float(row["int8_ap"]) <= 1
        assert 0 <= float(row["int8_attacked_ap"]) <= 1
    report = json.loads(next((folder.root / "acceleration").glob("*-int8.json")).read_text())
    assert "calibrated on 2 inputs" in " ".join(report["notes"])
    page = write_report(folder).read_text()
    assert "In int8" in page
    assert "What to deploy" in page


def test_a_model_that_stays_float32_has_empty_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast(nn.Module):
        report = AccelerationReport([], 1, None, 0, 1.0, 1.0, 0.0, ["stays float32: no"])

    monkeypatch.setattr(latency_module, "accelerate", lambda *_, **__: Fast())
    model, report = latency_module.in_int8(nn.Identity(), torch.zeros(1), [])
    assert model is None
    assert report.notes == ["stays float32: no"]
