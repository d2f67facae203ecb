"""Models are accelerated and timed with as many threads as was asked for, whatever trains and evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.detection import DetectionTask
from prunekit.evaluation.evaluate import evaluate
from prunekit.evaluation.latency import accelerate_and_time
from prunekit.pipeline import make_config, read_rows, run
from prunekit.pipeline.checkpoint import save_model
from prunekit.task import ModelSpec


@pytest.mark.parametrize(("asked", "used"), [(2, 2), (None, 1)])
def test_threads_of_timing(
    asked: int | None, used: int, shapes_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def timed(*args: Any) -> Any:
        seen.append(("timing", torch.get_num_threads()))
        return accelerate_and_time(*args)

    def evaluated(*args: Any, **options: Any) -> Any:
        seen.append(("evaluation", torch.get_num_threads()))
        return evaluate(*args, **options)

    monkeypatch.setattr("prunekit.pipeline.unit.accelerate_and_time", timed)
    monkeypatch.setattr("prunekit.pipeline.unit.evaluate", evaluated)
    task = DetectionTask(ModelSpec("yolov3-tiny", {"num_classes": 6, "width": 0.02}))
    save_model(tmp_path / "w.safetensors", task.spec.build(), task.spec)
    config = make_config(
        model="yolov3-tiny", width=0.02, weights=tmp_path / "w.safetensors", data=shapes_data, out=tmp_path / "run",
        image_size=64, ratios=(0,), attack="none", latency_runs=3, threads=1, latency_threads=asked,
    )  # fmt: skip
    before = torch.get_num_threads()
    folder = run(config)
    assert seen == [("evaluation", 1), ("timing", used)]
    assert torch.get_num_threads() == before
    assert [row["threads"] for row in read_rows(folder.results)] == [str(used)]
