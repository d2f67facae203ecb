"""The training of the demo's detector goes through its stages, writes half the bytes, and is not done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bench import demo_detector
from prunekit.demo.shipped import FIGURES, WEIGHTS
from prunekit.detection import yolov3_tiny
from prunekit.pipeline.checkpoint import spec_of


def test_a_detector_is_trained_in_stages_and_found_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_detector, "IMAGE_SIZE", 64)
    options = "--threads 1 --num-train 16 --num-val 4 --width 0.03 --clean-epochs 1 --short-epochs 0 --paper-epochs 1"
    demo_detector.main([*options.split(), "--out", str(tmp_path)])
    stages = sorted(tmp_path.glob("stages/*/model.safetensors"))
    assert len(stages) == 2  # a stage of no epochs has no folder
    spec, tensors = spec_of(tmp_path / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert spec is not None
    assert spec.arguments["width"] == 0.03
    assert len(spec.arguments["anchors"]) == 2
    assert tensors["stage16.0.conv.weight"].dtype == torch.float16
    assert tensors["stage16.0.norm.running_var"].dtype == torch.float32
    found = json.loads((tmp_path / FIGURES).read_text())
    assert [stage["epochs"] for stage in found["stages"]] == [1, 0, 1]
    assert set(found["clean"]) == set(found["paper"]) >= {"ap", "ap50"}
    assert "AP50" in capsys.readouterr().out

    before, written = [path.stat().st_mtime_ns for path in stages], (tmp_path / WEIGHTS).read_bytes()
    demo_detector.main([*options.split(), "--out", str(tmp_path)])
    assert [path.stat().st_mtime_ns for path in stages] == before
    assert (tmp_path / WEIGHTS).read_bytes() == written


def test_what_is_written_in_half_leaves_the_model_as_it_was() -> None:
    model = yolov3_tiny(4, 0.03)
    smaller = demo_detector.in_half(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    convolutions = [module for module in smaller.modules() if isinstance(module, nn.Conv2d)]
    assert {module.weight.dtype for module in convolutions} == {torch.float16}
