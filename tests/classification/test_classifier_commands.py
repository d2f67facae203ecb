"""Classifiers go through every command, from folders of images or foreign weights to a report page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.attacks import PRESETS, AutoAttackConfig
from prunekit.classification import resnet20
from prunekit.experiments import Plan, plan_jobs
from prunekit.experiments.estimate import count_images
from prunekit.pipeline import RunConfig, read_rows
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, invoke, succeed
from tests.support.external_files import cifar10

pytestmark = pytest.mark.usefixtures("one_thread")

SHARED: Options = {"threads": 1}
BRIEF: Options = {"objective": "clean", "train-batch-size": 8}


@pytest.fixture(scope="module")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in color: 12 images each to train, 4 to test."""
    root = tmp_path_factory.mktemp("colors")
    for part, per_class in (("train", 12), ("test", 4)):
        write_classes(root / part, ("blue", "green", "red"), per_class, size=16, seed=per_class)
    return root


@pytest.fixture(scope="module")
def trained(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "net"
    options = SHARED | BRIEF | {"model": "resnet20", "width": 0.5, "data": colors, "max-steps": 40, "out": out}
    succeed("train", options)
    return out / "model.safetensors"


def test_the_holdout_selects_weights(colors: Path, tmp_path: Path) -> None:
    shared = SHARED | {"model": "resnet20", "width": 0.5, "data": colors, "train-batch-size": 11, "epochs": 4}
    options = shared | {"learning-rate": 0.3, "objective": "n-fgsm", "train-attack": "fgsm"}
    for selection in ("last", "holdout"):
        succeed("train", options | {"selection": selection, "out": tmp_path / selection})
    rows = list(csv.DictReader((tmp_path / "holdout/losses.csv").open()))
    losses = {int(row["step"]): float(row["holdout_loss"]) for row in rows if row["holdout_loss"]}
    assert list(losses) == [3, 6, 9, 12]  # 33 images to learn from
    net = {name: load_file(tmp_path / name / "model.safetensors") for name in ("last", "holdout")}
    is_last_best = min(losses, key=lambda step: losses[step]) == 12
    assert all(torch.equal(net["last"][name], net["holdout"][name]) for name in net["last"]) == is_last_best


def test_one_command_a_stage(colors: Path, trained: Path, tmp_path: Path) -> None:
    weights = {"weights": trained}
    scores = {"data": colors, "scores": "deeplift", "score-images": 4, "out": tmp_path / "scored"}
    succeed("score", SHARED | weights | scores)
    made = {"scores-file": tmp_path / "scored/scores.safetensors", "ratio": 50, "structure": "filter"}
    succeed("prune", SHARED | weights | made | {"out": tmp_path / "pruned"})
    pruned = {"weights": tmp_path / "pruned/model.safetensors", "data": colors}
    succeed("finetune", SHARED | BRIEF | pruned | {"objective": "trades", "max-steps": 3, "out": tmp_path / "tuned"})
    tuned = {"weights": tmp_path / "tuned/model.safetensors", "data": colors, "transfer-from": trained}
    succeed(
        "evaluate", SHARED | tuned | {"attack": "fgsm", "latency": True, "latency-runs": 3, "out": tmp_path / "all"}
    )
    found = json.loads((tmp_path / "all/evaluation.json").read_text())
    assert (found["model"], found["num_classes"], found["small_images"], found["image_size"]) == (
        "resnet20",
        3,
        True,
        16,
    )
    assert found["images"] == 12  # the test set alone
    assert list(found["cases"]) == ["none", "fgsm", "fgsm_transfer"]
    assert {"accuracy", "attack_success"} <= found["cases"]["fgsm"].keys()
    assert {"argmax_ms", "latency_ms", "latency_ms_compacted"} <= found["latency"].keys()
    with (tmp_path / "all/none/detections.csv").open(newline="") as file:
        assert [row["class"] for row in csv.DictReader(file)] == ["blue", "green", "red"] * 4


def test_the_main_job_writes_accuracies_and_a_page(colors: Path, trained: Path, tmp_path: Path) -> None:
    options = SHARED | BRIEF | {
        "model": "resnet20", "width": 0.5, "weights": trained, "data": colors, "train-data": colors, "ratios": "0,50",
        "structure": "unstructured,filter", "max-steps": 5, "finetune-epochs": 1, "attack": "fgsm", "transfer": True,
        "latency-runs": 3, "out": tmp_path / "run",
    }  # fmt: skip
    succeed("run", options)
    rows = read_rows(tmp_path / "run/results.csv")
    assert len(rows) == 4
    assert list(rows[0])[4:8] == ["accuracy", "attacked_accuracy", "transfer_accuracy", "attack_success_rate"]
    assert float(rows[0]["accuracy"]) > 0.9
    assert rows[0]["image_size"] == "16"
    assert int(rows[3]["compacted_parameters"]) < int(rows[3]["parameters"])
    page = (tmp_path / "run/report.html").read_text()
    assert "share of images whose most probable class is their own" in page
    assert "16×16 pixels" in page
    assert "AP50" not in page
    assert "etterbox" not in page
    assert "Images whose answer the attack made wrong" in page
    assert len(json.loads((tmp_path / "run/examples/examples.json").read_text())["images"]) == 12  # to choose from
    assert page.count("data:image/jpeg") == 4 * (1 + 2 * 3)  # the unpruned model is there once
    small = SHARED | {"out": tmp_path / "small.prunekit", "unit": "filter-scaled-one-shot-ratio_50", "multiple-of": 1}
    result = invoke("compact", small, str(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr


def test_learning_has_a_limit_of_its_own(colors: Path, tmp_path: Path) -> None:
    given = {"model": "resnet20", "data": colors, "train_data": colors, "pretrain": {"epochs": 1}, "limit": 5}
    both = RunConfig(**given, out=tmp_path)
    plan = Plan(settings=given | {"train_limit": 20}, factors=({"structure": ("filter",)},), ratios=(0,), seeds=(0,))
    (job,) = plan_jobs(plan, tmp_path / "out")
    assert count_images(plan, both) == (5, 5, 16)
    assert count_images(plan, job.config) == (20, 5, 16)  # 36 to train on, of which three are held out


def test_autoattack_has_a_column_a_part(
    colors: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "autoattack", AutoAttackConfig(8 / 255, steps=2, targets=1, queries=2))
    shared = SHARED | {"weights": trained, "data": colors, "attack": "autoattack"}
    options = {"model": "resnet20", "width": 0.5, "ratios": "0", "latency-runs": 3, "out": tmp_path / "run"}
    succeed("run", shared | options)
    (row,) = read_rows(tmp_path / "run/results.csv")
    after = [float(row[f"attacked_accuracy_after_{part}"]) for part in ("apgd_ce", "apgd_t", "fab_t", "square")]
    assert after == sorted(after, reverse=True)
    assert float(row["accuracy"]) >= after[0]
    assert after[-1] == float(row["attacked_accuracy"])
    succeed("evaluate", shared | {"out": tmp_path / "all"})
    figures = json.loads((tmp_path / "all/evaluation.json").read_text())["cases"]["autoattack"]
    assert [figures[name] for name in figures if "_after_" in name] == after
    assert not list(tmp_path.rglob("batch*.safetensors"))


def test_foreign_weights_are_read_for_a_model_that_is_named(colors: Path, tmp_path: Path) -> None:
    net = resnet20(3, width=0.5, small_images=True)
    torch.save({"net": net.state_dict(), "acc": 90.0}, tmp_path / "net.pth")
    options = SHARED | {"weights": tmp_path / "net.pth", "data": colors, "ratio": 50}
    succeed("prune", options | {"model": "resnet20", "width": 0.5, "out": tmp_path / "pruned"})
    for more, words in (
        ({}, "net.pth is a PyTorch checkpoint"),
        ({"model": "yolov3-tiny", "data": None}, "expected the weights of yolov3-tiny"),
        ({"model": "resnet18", "width": 0.5}, "expected the weights of a ResNet like the data's"),
    ):
        result = invoke("prune", options | more | {"out": tmp_path / "no"})
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())
        assert not (tmp_path / "no/model.safetensors").exists()


def test_other_data_than_the_models_is_one_sentence(colors: Path, trained: Path, tmp_path: Path) -> None:
    two = write_classes(tmp_path / "two")
    result = invoke("evaluate", SHARED | {"weights": trained, "data": two, "out": tmp_path / "no"})
    assert result.exit_code == 2
    assert "to be of num_classes 2, got 3" in " ".join(result.stderr.split())


def test_classes_of_other_names_to_learn_from_are_one_sentence(colors: Path, trained: Path, tmp_path: Path) -> None:
    other = write_classes(tmp_path / "other", ("blue", "green", "violet"), size=16)
    options = {"model": "resnet20", "width": 0.5, "weights": trained, "data": colors, "out": tmp_path / "no"}
    result = invoke("run", SHARED | options | {"train-data": other})
    assert result.exit_code == 2
    words = "--train-data: expected the classes of --data in their order, got 'violet' for 'red'."
    assert words in " ".join(result.stderr.split())
    assert not (tmp_path / "no").exists()


def test_batches_are_resized_to_any_side_that_the_task_takes(colors: Path, shapes_data: Path, tmp_path: Path) -> None:
    (tmp_path / "sizes.yaml").write_text("pretrain: {epochs: 1, sizes: [20, 13]}\n")
    options = SHARED | BRIEF | {"config": tmp_path / "sizes.yaml", "width": 0.25}
    succeed("train", options | {"model": "resnet20", "data": colors, "max-steps": 2, "out": tmp_path / "net"})
    result = invoke(
        "train", options | {"model": "yolov3-tiny", "data": shapes_data, "limit": 2, "out": tmp_path / "no"}
    )
    assert result.exit_code == 2
    assert "sizes: expected sides in multiples of 32, got 20." in " ".join(result.stderr.split())


def test_a_trained_model_is_a_state_dict_for_other_programs(trained: Path) -> None:
    net = resnet20(3, width=0.5, small_images=True)
    net.load_state_dict(load_file(trained))  # strictly


def test_photos_of_cifar10_are_learnt(tmp_path: Path) -> None:
    options = SHARED | BRIEF | {"model": "resnet20", "width": 0.5, "data": cifar10(), "limit": 200, "max-steps": 3}
    succeed("train", options | {"out": tmp_path / "net"})
    weights = {"weights": tmp_path / "net/model.safetensors", "data": cifar10(), "limit": 20, "attack": "none"}
    succeed("evaluate", SHARED | weights | {"out": tmp_path / "figures"})
    assert json.loads((tmp_path / "figures/evaluation.json").read_text())["image_size"] == 32
