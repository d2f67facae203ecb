"""Evaluation, clean and attacked, on a detector that knows eight images by heart."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prunekit.attacks import Attack, CarliniWagnerConfig, GradientError, PgdConfig, StrongConfig, uniform_noise
from prunekit.attacks.presets import PAPER, STANDARD
from prunekit.detection import CocoDataset, Detections, DetectionTask, Detector, load_darknet_weights, yolov3_tiny
from prunekit.detection.rates import attack_success, confident, false_positives
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate, evaluate_cases, evaluation_cases
from prunekit.pipeline import RunConfig, SilentProgress, make_config
from tests.support.attack_problems import Untouched
from tests.support.coco_files import small_content, write_coco

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = StrongConfig(eps=0.05, steps=4, restarts=1)
L2 = PgdConfig(eps=3.0, step_size=0.5, steps=10, norm="l2")
CW = CarliniWagnerConfig(steps=30, searches=2)


@pytest.fixture
def dataset(shapes_config: RunConfig) -> CocoDataset:
    return CocoDataset.open(shapes_config.data, shapes_config.image_size)


@pytest.fixture
def model(shapes_config: RunConfig, dataset: CocoDataset) -> Detector:
    model = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    load_darknet_weights(model, str(shapes_config.weights))
    return model


def with_noise(model: Detector) -> Detector:
    """Another detector that sees much the same."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=generator))
    return other


def same(a: Mapping[int, Detections], b: Mapping[int, Detections]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(getattr(a[key], name), getattr(b[key], name))
        for key in a
        for name in ("boxes", "scores", "classes")
    )


def figure(evaluation: Evaluation, name: str) -> float:
    value = evaluation.figures[name]
    assert value is not None
    return value


def subject(model: Detector, dataset: CocoDataset, config: RunConfig) -> Subject:
    return Subject(model, DetectionTask.of(model), dataset, config, SilentProgress())


def run(model: Detector, dataset: CocoDataset, config: RunConfig, attack: Attack | None, **more: Any) -> Evaluation:
    return evaluate(subject(model, dataset, config), attack, **more)


def test_clean_figures_at_both_thresholds(model: Detector, dataset: CocoDataset, shapes_config: RunConfig) -> None:
    clean = run(model, dataset, shapes_config, None)
    assert clean.perturbation is None
    assert figure(clean, "ap50") > 0.8
    assert 0.5 < figure(clean, "confident_ap") <= figure(clean, "ap")
    assert figure(clean, "false_positive_share") < 0.1
    number = sum(len(found) for found in confident(clean.predictions).values())
    assert (
        false_positives(dataset, clean.predictions).detections
        == number
        < sum(len(found) for found in clean.predictions.values())
    )


@pytest.mark.parametrize("attack", [PAPER, STANDARD, QUICK, L2])
def test_attacks_lower_the_figures_within_their_ball(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig, attack: PgdConfig | StrongConfig
) -> None:
    untouched = Untouched(model)
    attacked = run(model, dataset, shapes_config, attack)
    assert untouched.holds()
    moved = attacked.perturbation
    assert moved is not None
    assert figure(attacked, "ap") < 0.3
    distance = moved.linf if attack.norm == "linf" else moved.l2
    assert 0.2 * attack.eps < distance.smallest <= distance.mean <= distance.largest <= attack.eps * (1 + 1e-5)
    assert 0 <= moved.lowest < moved.highest <= 1


def test_carlini_and_wagner_lose_every_confident_object_nearby(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    attacked = run(model, dataset, shapes_config, CW)
    paper = run(model, dataset, shapes_config, PAPER)
    assert figure(attacked, "confident_ap") == 0
    assert attacked.perturbation is not None
    assert paper.perturbation is not None
    assert attacked.perturbation.l2.mean < 0.3 * paper.perturbation.l2.mean


def test_a_transferred_attack_follows_the_other_models_gradients(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    other = with_noise(model)
    own = run(model, dataset, shapes_config, PAPER)
    seen: dict[int, Tensor] = {}
    made_on_other: dict[int, Tensor] = {}
    transferred = run(model, dataset, shapes_config, PAPER, source=other, image_seen=keep(seen))
    run(other, dataset, shapes_config, PAPER, image_seen=keep(made_on_other))
    assert all(torch.equal(seen[image_id], made_on_other[image_id]) for image_id in seen)
    assert not same(transferred.predictions, own.predictions)
    assert same(run(model, dataset, shapes_config, PAPER, source=model).predictions, own.predictions)


def keep(images: dict[int, Tensor]) -> Any:
    def image_seen(image_id: int, x: Tensor) -> None:
        images[image_id] = x

    return image_seen


def test_every_image_is_shown_as_the_network_sees_it(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    images: dict[int, Tensor] = {}
    run(model, dataset, shapes_config, None, image_seen=keep(images))
    assert list(images) == [record.id for record in dataset.images]
    assert all(torch.equal(images[record.id], dataset[index].image) for index, record in enumerate(dataset.images))


def test_batches_and_workers_change_no_detection(
    model: Detector, dataset: CocoDataset, shapes_config: RunConfig
) -> None:
    def config(**changes: int) -> RunConfig:
        return make_config(**{**shapes_config.model_dump(), **changes})

    together = run(model, dataset, config(batch_size=8, workers=0), None).predictions
    assert same(run(model, dataset, config(batch_size=8, workers=2), None).predictions, together)
    apart = run(model, dataset, config(batch_size=3), None).predictions
    assert {key: len(found) for key, found in apart.items()} == {key: len(found) for key, found in together.items()}
    assert all(torch.allclose(apart[key].scores, together[key].scores, atol=1e-5) for key in together)


def test_no_radius_is_no_attack(model: Detector, dataset: CocoDataset, shapes_config: RunConfig) -> None:
    clean = run(model, dataset, shapes_config, None).predictions
    for attack in (PAPER.with_eps(0.0), STANDARD.with_eps(0.0), QUICK.with_eps(0.0), uniform_noise(0.0)):
        assert same(run(model, dataset, shapes_config, attack).predictions, clean)


def test_the_seed_decides_random_starts(model: Detector, dataset: CocoDataset, shapes_config: RunConfig) -> None:
    def found(seed: int) -> Mapping[int, Detections]:
        config = make_config(**{**shapes_config.model_dump(), "seed": seed})
        return run(model, dataset, config, uniform_noise(0.05)).predictions

    assert same(found(1), found(1))
    assert not same(found(1), found(2))


@pytest.mark.parametrize("attack", [PAPER, QUICK, L2, dataclasses.replace(CW, steps=3)])
@pytest.mark.parametrize("num_classes", [1, 2])
def test_images_without_objects_and_one_class_can_be_attacked(
    tmp_path: Path, shapes_config: RunConfig, attack: Attack, num_classes: int
) -> None:
    content = small_content()
    content["categories"] = content["categories"][:num_classes]
    content["annotations"] = [entry for entry in content["annotations"] if entry["category_id"] == 44][:num_classes]
    dataset = CocoDataset.open(write_coco(tmp_path, content), image_size=32)
    assert [len(record.objects) for record in dataset.images] == [1, 0, 0]
    torch.manual_seed(0)
    model = yolov3_tiny(dataset.num_classes, 1 / 16).eval()
    config = make_config(**{**shapes_config.model_dump(), "batch_size": 2})  # the last batch has no object at all
    attacked = run(model, dataset, config, attack)
    assert attacked.perturbation is not None
    assert attacked.perturbation.l2.largest < math.inf


def test_a_broken_model_is_not_attacked_in_silence(dataset: CocoDataset, shapes_config: RunConfig) -> None:
    model = yolov3_tiny(dataset.num_classes, shapes_config.width).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(GradientError, match="not finite"):
        run(model, dataset, shapes_config, PAPER)


def test_cases_are_clean_then_each_attack_with_its_transfer() -> None:
    assert [case.name for case in evaluation_cases(["paper", "none", "fgsm", "paper"])] == ["none", "paper", "fgsm"]
    names = [case.name for case in evaluation_cases(["strong", "cw"], transfer=True)]
    assert names == ["none", "strong", "strong_transfer", "cw", "cw_transfer"]
    with pytest.raises(InputError, match=r"Expected attacks among none, fgsm, paper, .* got 'brute'"):
        evaluation_cases(["paper", "brute"])


def test_each_case_is_evaluated_as_it_says(model: Detector, dataset: CocoDataset, shapes_config: RunConfig) -> None:
    dense = with_noise(model)
    results = list(evaluate_cases(subject(model, dataset, shapes_config), ["paper"], dense))
    assert [result.case.name for result in results] == ["none", "paper", "paper_transfer"]
    clean, attacked, transferred = results
    assert same(clean.evaluation.predictions, run(model, dataset, shapes_config, None).predictions)
    assert same(attacked.evaluation.predictions, run(model, dataset, shapes_config, PAPER).predictions)
    expected = run(model, dataset, shapes_config, PAPER, source=dense)
    assert same(transferred.evaluation.predictions, expected.predictions)
    assert clean.success is None
    success = attack_success(dataset, clean.evaluation.predictions, attacked.evaluation.predictions)
    assert attacked.success == {
        "attack_success": success.rate,
        "lost": success.lost,
        "mislabeled": success.mislabeled,
    }


def test_figures_are_flat_and_ready_for_json(model: Detector, dataset: CocoDataset, shapes_config: RunConfig) -> None:
    clean, attacked = evaluate_cases(subject(model, dataset, shapes_config), ["paper"])
    assert clean.figures().keys() < attacked.figures().keys()
    figures = attacked.figures()
    assert figures == json.loads(json.dumps(figures, allow_nan=False))
    assert figures["ap"] == figure(attacked.evaluation, "ap")
    assert figures["confident_ap50"] == figure(attacked.evaluation, "confident_ap50")
    assert figures["ap_large"] is None  # the shapes are small
    assert figures["mean_linf"] == pytest.approx(0.05)
    assert attacked.success is not None
    share = figures["attack_success"]
    assert share is not None
    assert share > 0.5
    assert share == attacked.success["attack_success"]
