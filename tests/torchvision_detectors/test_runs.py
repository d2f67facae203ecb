"""The main job on torchvision's detectors: trained, pruned, fine-tuned, attacked, compacted, accelerated, timed."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from prunekit.detection.torchvision_families import FAMILIES
from prunekit.evaluation import latency
from prunekit.nn import accelerate
from prunekit.pipeline import make_config, read_rows, run
from tests.support.external_files import coco128

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
#: Pixels: the least that SSD takes, and few for the others.
SIZES = dict.fromkeys(FAMILIES, 64) | {"ssd300-vgg16": 288}
#: Images: few where each takes long, in VGG-16 at that size and in the second stage.
IMAGES = dict.fromkeys(FAMILIES, 8) | {"fasterrcnn-resnet50-fpn": 2, "ssd300-vgg16": 1}
RATE = 1e-4  # what docs/detection.md gives for all five


@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_from_random_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    monkeypatch.setattr(latency, "accelerate", partial(accelerate, tuning_seconds=0.0, tuning_cache=None))
    brief = {"pretrain_epochs": 1, "finetune_epochs": 1, "max_steps": 2, "train_batch_size": 2, "objective": "clean"}
    rates = {"pretrain_learning_rate": RATE, "finetune_learning_rate": RATE}
    images = {"data": coco128(), "train_data": coco128(), "limit": IMAGES[name], "image_size": SIZES[name]}
    variants = {"ratios": (50,), "structure": ("unstructured", "filter"), "attack": "paper"}
    measured = {"batch_size": 4, "latency_runs": 3, "threads": 1}
    config = make_config(model=name, out=tmp_path / "run", **images, **brief, **rates, **variants, **measured)
    folder = run(config)
    whole, thin = read_rows(folder.results)
    assert (whole["structure"], thin["structure"]) == ("unstructured", "filter")
    assert 0.45 < float(whole["sparsity"]) < 0.55
    assert 0.25 < float(thin["sparsity"]) < 0.55  # the filters of heads stay
    for row in (whole, thin):
        assert row["attacked_ap"] != ""
        file = folder.root / "acceleration" / f"{row['structure']}-scaled-one-shot-ratio_50.json"
        report = json.loads(file.read_text())
        assert report["engine"] == "whole graph"
        assert report["comparison"]["elements"] > 1000
        assert report["relative_rms"] <= 1e-4
        assert "torch runs what follows the network: boxes" in report["notes"]
    assert int(thin["compacted_parameters"]) < 0.9 * int(thin["parameters"])
    assert float(thin["compacted_difference"]) < 1e-6
