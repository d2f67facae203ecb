"""Objectives on bounds are their formulas, follow their schedules, and make models verifiable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from prunekit.detection import DetectionTask
from prunekit.errors import InputError
from prunekit.prune import MaskRule, StraightThrough, initial_scores, score_model
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import TrainConfig
from prunekit.training.loop import optimize
from prunekit.training.objectives import ObjectiveConfig, TrainBatch, VerifiedConfig, make_objective
from prunekit.verification import bounded, margin_bounds, verified_margins
from tests.support.classes_of_images import write_classes
from tests.support.commands import Options, invoke, succeed
from tests.support.training_problems import (
    ClassifierLosses,
    labeled_images,
    linear_classifier,
    small_classifier,
    small_detector,
    tempting_features,
    trainable,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LABELS = torch.tensor([0, 2, 1, 1])
CONFIG = VerifiedConfig(
    train_eps=0.03, eps_warmup=0.2, eps_ramp=0.4, kappa=0.25, crown_weight=0.5, mixtrain_images=2, mixtrain_alpha=0.7
)


def _classifier() -> nn.Sequential:
    model = small_classifier()
    model[3] = nn.Identity()
    return model


def _images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _loss(name: str, model: nn.Module, config: VerifiedConfig, progress: float = 1.0, seed: int = 0) -> Tensor:
    objective = make_objective(name, ClassifierLosses(), ObjectiveConfig(verified=config))
    batch = TrainBatch(_images(), LABELS, progress=progress)
    return objective(model, batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("progress", "growth"), [(0, 0), (0.2, 0), (0.3, 0.25), (0.4, 0.5), (0.6, 1), (1, 1)])
def test_the_ball_grows_after_the_warm_up(progress: float, growth: float) -> None:
    assert CONFIG.growth(progress) == pytest.approx(growth)


def test_without_a_ramp_the_ball_is_there_at_once() -> None:
    assert [VerifiedConfig(eps_warmup=0.5, eps_ramp=0.0).growth(progress) for progress in (0.49, 0.5)] == [0, 1]


@pytest.mark.parametrize("name", ["crown-ibp", "mixtrain"])
def test_the_warm_up_is_clean_training(name: str) -> None:
    assert torch.equal(_loss(name, _classifier(), CONFIG, 0.1), cross_entropy(_classifier()(_images()), LABELS))


@pytest.mark.parametrize("growth", [0.5, 1.0])
def test_crown_ibp_is_the_papers_formula(growth: float) -> None:
    found = _loss("crown-ibp", _classifier(), CONFIG, 0.2 + 0.4 * growth)
    logits = _classifier()(bounded(_images(), growth * 0.03))
    beta, kappa = 1 - growth * 0.5, 1 - growth * 0.75
    bound = beta * margin_bounds(logits, LABELS, True) + (1 - beta) * margin_bounds(logits, LABELS, False)
    clean = cross_entropy(_classifier()(_images()), LABELS)
    assert_close(found, kappa * clean + (1 - kappa) * cross_entropy(-bound, LABELS))


def test_mixtrain_bounds_some_images_by_the_running_statistics() -> None:
    config, model = CONFIG.updated(mixtrain_images=4), _classifier()
    found = _loss("mixtrain", model, config)
    clean = cross_entropy(_classifier()(_images()), LABELS)
    bound = margin_bounds(model.eval()(bounded(_images(), 0.03)), LABELS, True)  # its statistics are one batch old
    assert_close(found, 0.3 * clean + 0.7 * cross_entropy(-bound, LABELS))
    drawn = {_loss("mixtrain", _classifier(), CONFIG, seed=seed).item() for seed in (0, 0, 1, 2)}
    assert len(drawn) in (2, 3)  # the same for the same seed


@pytest.mark.parametrize("name", ["crown-ibp", "mixtrain"])
def test_statistics_are_those_of_one_clean_pass(name: str) -> None:
    ours, theirs = _classifier(), _classifier()
    torch.autograd.backward(_loss(name, ours, CONFIG))
    theirs(_images())
    for (key, buffer), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert_close(buffer, other, msg=key)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())


@pytest.mark.parametrize("name", ["crown-ibp", "mixtrain"])
def test_training_on_bounds_verifies_more(name: str) -> None:
    data, eps = tempting_features(200, seed=0), 0.1
    config = TrainConfig(epochs=30, batch_size=50, learning_rate=0.1, augmentation=NO_AUGMENTATION, ema_decay=None)
    verified = {}
    for objective in ("clean", name):
        model = linear_classifier()
        bounds = VerifiedConfig(train_eps=eps, eps_warmup=0.0, eps_ramp=0.2, kappa=0.0, mixtrain_images=20)
        knobs = ObjectiveConfig(verified=bounds)
        optimize(model, trainable(model), data, make_objective(objective, ClassifierLosses(), knobs), config)
        assert isinstance(data.targets, Tensor)
        verified[objective] = float((verified_margins(model, data.images, data.targets, eps) > 0).double().mean())
    assert verified[name] > verified["clean"] + 0.3


def test_scores_train_on_bounds() -> None:
    model, data = _classifier(), labeled_images()
    knobs = ObjectiveConfig(verified=VerifiedConfig(crown_weight=1.0))
    objective = make_objective("crown-ibp", ClassifierLosses(), knobs)
    config = TrainConfig(epochs=2, batch_size=4, learning_rate=0.1, optimizer="sgd", augmentation=NO_AUGMENTATION)
    with StraightThrough(model, initial_scores(model, score_model(model, "scaled")), MaskRule(50)) as pruning:
        before = pruning.scores()
        optimize(model, {k: p for k, p in model.named_parameters() if p.requires_grad}, data, objective, config)
        assert all(not torch.equal(score, before[layer]) for layer, score in pruning.scores().items())


def test_the_command_trains_on_bounds_with_the_options_knobs(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", ("blue", "green"), 4, size=8)
    options: Options = {
        "model": "resnet20", "width": 0.2, "data": tmp_path / "data", "objective": "crown-ibp", "train-eps": 0.01,
        "max-steps": 2, "threads": 1, "out": tmp_path / "net",
    }  # fmt: skip
    succeed("train", options)
    assert "train_eps: 0.01" in (tmp_path / "net/config.yaml").read_text()
    for more, words in (
        ({"eps-ramp": 0.95}, "--eps-ramp: expected at most 1 together with --eps-warmup, got 1.05"),
        ({"kappa": 1.5}, "--kappa"),
        ({"model": "mobilevit-s", "image-size": 16}, "got one that calls"),
        ({"model": "yolov3-tiny", "width": 0.1, "objective": "mixtrain", "image-size": 32}, "Expected"),
    ):
        result = invoke("train", options | more | {"out": tmp_path / "no"})
        assert result.exit_code == 2, result.stderr
        assert words in " ".join(result.stderr.split())


def test_detectors_are_refused() -> None:
    with pytest.raises(InputError, match="Expected a classifier for the objective crown-ibp, got DetectionTask"):
        make_objective("crown-ibp", DetectionTask.of(small_detector()))
