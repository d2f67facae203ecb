"""Verified accuracy is a floor under every attack, image by image, and a column where it is asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import PgdConfig, classification_losses, pgd
from prunekit.classification import ClassificationData, ClassificationTask, mobilevit_s
from prunekit.evaluation.evaluate import EvaluationConfig, Subject
from prunekit.evaluation.verification import verified_accuracy, verify
from prunekit.pipeline import read_rows
from prunekit.progress import SilentProgress
from prunekit.task import ModelSpec
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import TrainConfig
from prunekit.training.data import read_into_memory
from prunekit.training.loop import optimize
from prunekit.training.objectives import ObjectiveConfig, VerifiedConfig, make_objective
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, invoke, succeed

pytestmark = pytest.mark.usefixtures("one_thread")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))


def test_what_is_verified_withstands_every_attack_image_by_image(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", ("blue", "green", "red"), 8, size=8)
    data, task = ClassificationData.open(root, None, False, None), ClassificationTask(ModelSpec("resnet20"))
    images = read_into_memory(data, SilentProgress())
    assert isinstance(images.targets, Tensor)
    config = TrainConfig(epochs=20, batch_size=12, augmentation=NO_AUGMENTATION)
    knobs = ObjectiveConfig(verified=VerifiedConfig(train_eps=0.05, eps_warmup=0.0, eps_ramp=0.3))
    model = _net()
    optimize(model, dict(model.named_parameters()), images, make_objective("crown-ibp", task, knobs), config)
    model.eval()
    x, verified = images.images.float() / 255, []
    for eps in (0.02, 0.1, 0.3):
        margins = verify(Subject(model, task, data, EvaluationConfig(), SilentProgress()), eps)
        attack = PgdConfig(eps=eps, step_size=eps / 5, steps=15, random_start=True, restarts=2)
        losses = classification_losses(images.targets)
        x_adv = pgd(model, x, losses.margin, attack, torch.Generator().manual_seed(0))
        withstands = losses.margin(model(x_adv)) < 0
        assert all(withstands[place] for place, margin in enumerate(margins.values()) if margin > 0)
        verified.append(verified_accuracy(margins))
    assert verified[0] > 0.5  # so that something was compared
    assert verified[0] >= verified[1] >= verified[2]
    assert verified[2] < 1


def test_commands_report_it_where_it_is_asked_for(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_classes(tmp_path / "data" / part, ("blue", "green"), 4, size=8)
    shared: Options = {"threads": 1, "data": tmp_path / "data"}
    net: Options = {"model": "resnet20", "width": 0.2, "objective": "clean", "max-steps": 2, "out": tmp_path / "net"}
    succeed("train", shared | net)
    weights: Options = {"weights": tmp_path / "net/model.safetensors", "verify": 0.0001}
    succeed("evaluate", shared | weights | {"attack": "none", "out": tmp_path / "all"})
    found = json.loads((tmp_path / "all/evaluation.json").read_text())
    with (tmp_path / "all/verify/margins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert found["verified"] == {"eps": 0.0001, "verified_accuracy": sum(row["verified"] == "1" for row in rows) / 8}
    assert found["verified"]["verified_accuracy"] <= found["cases"]["none"]["accuracy"]
    run: Options = {
        "model": "resnet20", "width": 0.2, "ratios": "0", "attack": "none", "latency-runs": 3, "out": tmp_path / "run",
    }  # fmt: skip
    succeed("run", shared | weights | run)
    (row,) = read_rows(tmp_path / "run/results.csv")
    assert float(row["verified_accuracy"]) == found["verified"]["verified_accuracy"]


def test_detectors_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "net.weights").write_bytes(bytes(64))
    options: Options = {"model": "yolov3-tiny", "weights": tmp_path / "net.weights", "data": tmp_path, "verify": 0.01}
    result = invoke("evaluate", options | {"out": tmp_path / "no"})
    assert result.exit_code == 2
    assert "--verify: expected a classifier, got yolov3-tiny." in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", ["evaluate", "run"])
def test_networks_without_bounds_are_refused_before_any_work(command: str, tmp_path: Path) -> None:
    root, net = write_classes(tmp_path / "data", ("blue", "green"), 2, size=16), tmp_path / "net.pt"
    torch.save(mobilevit_s(2, width=0.25, small_images=True).state_dict(), net)
    options: Options = {"model": "mobilevit-s", "width": 0.25, "weights": net, "data": root, "verify": 0.01}
    result = invoke(command, options | {"out": tmp_path / "no"})
    assert result.exit_code == 2
    assert "to bound, got one that calls " in " ".join(result.stderr.split())
    assert not (tmp_path / "no").exists()
