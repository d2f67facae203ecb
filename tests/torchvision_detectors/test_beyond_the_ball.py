"""Corruptions, overload, patches, video, deployed models and pools of attacks on one of torchvision's detectors."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import prunekit
from prunekit import documents
from prunekit.attacks import PRESETS, OverloadConfig
from prunekit.detection import CocoDataset
from prunekit.evaluation.overload import suppressing
from prunekit.nn import accelerate
from prunekit.ops import native
from prunekit.pipeline.checkpoint import example_image, find_checkpoint, save_model
from prunekit.pipeline.overload import read_images
from prunekit.task import Task
from tests.support.commands import Options, succeed
from tests.support.int8_everywhere import accelerate_in_int8
from tests.support.torchvision_nets import SIDES, problem

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "retinanet-resnet50-fpn"
SIZE = SIDES[NAME]
#: Relative to a score: far more than sums in another order change it by, and no more than a pruned net's scores spread.
ROUNDING = 1e-3


@pytest.fixture(scope="module", autouse=True)
def _untuned() -> Iterator[None]:
    """Accelerate without measuring how: that would take most of the time."""
    quick = partial(accelerate, tuning_seconds=0.0, tuning_cache=None)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("cli.watch", "pipeline.overload", "pipeline.deployed_evaluation"):
            patch.setattr(f"prunekit.{module}.accelerate", quick)
        yield


@pytest.fixture(scope="module")
def checkpoint(shapes_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of random weights for the classes of the rendered images."""
    case = problem(NAME, CocoDataset.open(shapes_data, SIZE).num_classes)
    path = tmp_path_factory.mktemp("torchvision") / "net.safetensors"
    save_model(path, case.model, case.task.spec)
    return path


@pytest.fixture(scope="module")
def fast(checkpoint: Path) -> Path:
    """The same detector as it is deployed."""
    if not native.is_available():
        pytest.skip("no native kernels")
    path = checkpoint.with_name("fast.safetensors")
    dense, x = find_checkpoint(checkpoint).model, example_image(SIZE)
    prunekit.save(accelerate(dense, x, tuning_seconds=0.0, tuning_cache=None), path)
    return path


@pytest.fixture
def asked(checkpoint: Path, shapes_data: Path, tmp_path: Path) -> Options:
    shared = {"weights": checkpoint, "data": shapes_data, "out": tmp_path / "out", "image-size": SIZE, "threads": 1}
    return shared | {"score-threshold": median_score(checkpoint, shapes_data)}


def median_score(weights: Path, data: Path) -> float:
    """Return the threshold above which about half of all pairs of box and class are candidates."""
    found = find_checkpoint(weights)
    clean = CocoDataset.open(data, SIZE)[0].image[None]
    return float(torch.cat(scores_of(found.model, found.task, clean)).median())


def scores_of(model: nn.Module, task: Task, images: Tensor) -> list[Tensor]:
    """Return the scores of all pairs of box and class in each image."""
    with torch.no_grad():
        return [suppressing(task).candidate_scores(model(x[None]))[0].flatten() for x in images]


def assert_counted(case: dict[str, Any], file: Path, model: nn.Module, task: Task, threshold: float) -> None:
    """Compare candidates with those that a model has in the images of a file, but for scores at the threshold."""
    images = read_images(file)
    for kind, column in {"clean": "clean_candidates_per_image", "attacked": "candidates_per_image"}.items():
        scores = torch.stack(scores_of(model, task, images[kind]))
        most, least = ((scores > threshold * (1 + by)).sum() / len(scores) for by in (-ROUNDING, ROUNDING))
        assert least <= case[column] <= most, kind
    attack = PRESETS["latency"]
    assert isinstance(attack, OverloadConfig)
    assert 0 < (images["attacked"] - images["clean"]).abs().max() <= attack.eps + 1e-6


def found_in(asked: Options) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(asked["out"]) / "evaluation.json").read_text())
    return found


def test_it_is_evaluated_corrupted_patched_and_under_overload(asked: Options, fast: Path) -> None:
    choices = {"corruptions": "fog:3", "attack": "latency,patch", "patch-passes": 1, "limit": 2, "latency-runs": 3}
    succeed("evaluate", asked | choices | {"max-candidates": 100, "deployed": fast})
    out, found, dense = Path(asked["out"]), found_in(asked), find_checkpoint(asked["weights"])
    assert found["model"] == NAME
    assert {*found["deployed"]} == {"fast"}
    for folder, one in {out: found, out / "deployed" / "fast": found["deployed"]["fast"]}.items():
        assert {*one["corruptions"]["by_cell"]} == {"fog-3"}
        assert one["patch"]["evaluated_on"] == 1
        assert all("ap" in one["patch"][kind] for kind in ("clean", "random", "trained"))
        for step in ("network", "boxes"):
            assert one["overload"]["latency"][f"{step}_ms"] > 0
            assert one["overload"]["latency"][f"overload_{step}_ms"] > 0
        images = folder / "overload" / "images.safetensors"
        assert_counted(one["cases"]["latency"], images, dense.model, dense.task, asked["score-threshold"])
    assert found["overload"]["latency"]["overload_uncapped_boxes_ms"] > 0
    assert found["patch"]["trained_on"] == 1
    patch = documents.read(out / "patch" / "patch.safetensors", "a patch").tensors["patch"]
    assert 0.05 <= float(patch.min()) < float(patch.max()) <= 0.95


def test_it_is_watched_as_a_checkpoint_and_accelerated(checkpoint: Path, fast: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for number in range(2):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(tmp_path / "frames" / f"{number}.png")
    # At an IoU of 1 nothing is suppressed, whose scores would be others after the least rounding.
    limits = {"score-threshold": 0.001, "iou-threshold": 1, "max-detections": 4}
    source = limits | {"source": tmp_path / "frames", "image-size": SIZE, "threads": 1}
    scores = []
    for opened in ({"weights": checkpoint, "dense": True}, {"weights": fast, "model": NAME}):
        succeed("watch", source | opened | {"boxes": tmp_path / "boxes.csv"})
        with (tmp_path / "boxes.csv").open() as file:
            scores.append([float(row["score"]) for row in csv.DictReader(file)])
    assert len(scores[0]) == 8
    assert scores[1] == pytest.approx(scores[0], rel=ROUNDING)
    held = source | {"weights": fast, "checkpoint": checkpoint, "attack": "fgsm", "attack-frames": 1}
    assert "Held over 2 frames" in succeed("watch", held).stdout


def test_it_is_trained_against_a_pool_for_two_steps(asked: Options) -> None:
    pool = {"objective": "pgd-at", "train-attack": "pool:fgsm,fgsm-l2", "learning-rate": 1e-5}
    brief = {"epochs": 2, "max-steps": 2, "train-batch-size": 2, "limit": 2, "score-threshold": None}
    succeed("train", asked | pool | brief)
    with (Path(asked["out"]) / "losses.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2
    for row in rows:
        assert float(row["chance_fgsm"]) + float(row["chance_fgsm-l2"]) == pytest.approx(1, abs=1e-5)
    before, after = (
        find_checkpoint(path).model for path in (asked["weights"], Path(asked["out"]) / "model.safetensors")
    )
    assert any(not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True))


def test_it_is_corrupted_and_under_overload_compacted_and_in_int8(
    asked: Options, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native.is_available():
        pytest.skip("no native kernels")
    monkeypatch.setattr("prunekit.evaluation.latency.accelerate", accelerate_in_int8)
    monkeypatch.setattr("prunekit.pipeline.overload.accelerate", lambda model, _: model)  # the checkpoint's: takes long
    pruned = {"structure": "filter", "ratio": 50, "image-size": SIZE, "out": tmp_path / "pruned"}
    succeed("prune", pruned | {"weights": checkpoint})
    weights = tmp_path / "pruned" / "model.safetensors"
    thin, threshold = find_checkpoint(weights), median_score(weights, asked["data"])
    prunekit.save(prunekit.compact(thin.model, example_image(SIZE)), tmp_path / "small.prunekit")
    choices = {"corruptions": "fog:3", "attack": "latency", "limit": 2, "latency-runs": 3}
    in_int8 = {"precision": "float32,int8", "calibration-data": asked["data"], "calibration-images": 2}
    deployed = {"weights": weights, "deployed": tmp_path / "small.prunekit", "score-threshold": threshold}
    succeed("evaluate", asked | choices | in_int8 | deployed)
    folder, found = Path(asked["out"]) / "deployed", found_in(asked)["deployed"]
    models = {"small": thin.model, "int8": prunekit.load(folder / "int8" / "model.safetensors")}
    assert {*found} == {*models}
    for name, model in models.items():
        assert {*found[name]["corruptions"]["by_cell"]} == {"fog-3"}
        assert found[name]["overload"]["latency"]["overload_boxes_ms"] > 0
        images = folder / name / "overload" / "images.safetensors"
        assert_counted(found[name]["cases"]["latency"], images, model, thin.task, threshold)
