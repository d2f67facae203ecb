"""Each objective is its formula, leaves the model's statistics to the training forward, and makes models robust."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.attacks import PgdConfig, cross_entropy_per_image, pgd, softmax_divergence
from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.detection import DetectionTask, Target, detection_loss
from prunekit.detection.boxes import Heads
from prunekit.errors import InputError
from prunekit.task import Losses
from prunekit.training.augment import NO_AUGMENTATION
from prunekit.training.config import TrainConfig
from prunekit.training.loop import optimize
from prunekit.training.objectives import OBJECTIVES, VERIFIED, ObjectiveConfig, TrainBatch, make_objective
from tests.support.training_problems import (
    SIZE,
    ClassifierLosses,
    accuracy,
    linear_classifier,
    rectangles,
    small_classifier,
    small_detector,
    tempting_features,
)

ATTACK = PgdConfig(eps=0.1, step_size=0.03, steps=5)
SIGMA = 0.15
NO_ATTACK = PgdConfig(eps=0.0, step_size=0.0, steps=2)
LABELS = torch.tensor([0, 2, 1, 1])


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=_generator(1))


def _classifier() -> nn.Sequential:
    """The small classifier without dropout, in training mode; its statistics are not the batches'."""
    model = small_classifier()
    model[3] = nn.Identity()
    with torch.no_grad():
        model(torch.rand(32, 3, 8, 8, generator=_generator(2)))
    return model


def _loss_and_gradients(
    name: str, config: ObjectiveConfig, model: nn.Module, task: Losses, x: Tensor, targets: object
) -> list[Tensor]:
    objective = make_objective(name, task, config)
    delta = torch.zeros_like(x).requires_grad_() if objective.carries_delta else None
    loss = objective(model, TrainBatch(x, targets, delta), _generator())
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(
    ("name", "config", "times"),
    [
        ("pgd-at", ObjectiveConfig(attack=NO_ATTACK), 2.0),
        ("trades", ObjectiveConfig(attack=ATTACK, beta=0.0), 1.0),
        ("trades", ObjectiveConfig(attack=NO_ATTACK, beta=6.0), 1.0),
        ("free", ObjectiveConfig(attack=NO_ATTACK, replays=1), 1.0),
        ("n-fgsm", ObjectiveConfig(attack=NO_ATTACK), 1.0),
        ("smoothing", ObjectiveConfig(sigma=0.0), 1.0),
    ],
)
@pytest.mark.parametrize("problem", ["classifier", "detector"])
def test_without_an_attack_every_objective_is_the_clean_one(
    name: str, config: ObjectiveConfig, times: float, problem: str
) -> None:
    if problem == "classifier":
        model: nn.Module = _classifier()
        task: Losses = ClassifierLosses()
        x = _images()
        targets: Sequence[Target] | Tensor = LABELS
    else:
        model = detector = small_detector()
        data = rectangles(4)
        task, x, targets = DetectionTask.of(detector), data.images.float() / 255, data.targets
    clean = _loss_and_gradients("clean", ObjectiveConfig(), model, task, x, targets)
    found = _loss_and_gradients(name, config, model, task, x, targets)
    assert len(found) == len(clean)
    for ours, theirs in zip(found, clean, strict=True):
        assert_close(ours, times * theirs, atol=1e-6, rtol=1e-5)


def test_the_detectors_clean_objective_is_the_mean_detection_loss() -> None:
    model, data = small_detector(), rectangles(4)
    x, targets = data.images.float() / 255, data.targets
    assert not isinstance(targets, Tensor)
    loss = make_objective("clean", DetectionTask.of(model))(model, TrainBatch(x, targets), _generator())
    expected = detection_loss(model(x), targets, Heads.of(model)).total.mean()
    assert torch.equal(loss, expected)


def test_pgd_adversarial_training_adds_both_losses() -> None:
    model, x = _classifier(), _images()
    x_adv = pgd(model, x, cross_entropy_per_image(LABELS), ATTACK)
    cross_entropy = nn.functional.cross_entropy
    objective = make_objective("pgd-at", ClassifierLosses(), ObjectiveConfig(attack=ATTACK))
    loss = objective(model, TrainBatch(x, LABELS), _generator())
    assert_close(loss, cross_entropy(model(x), LABELS) + cross_entropy(model(x_adv), LABELS))


def test_trades_is_the_papers_formula() -> None:
    model, x = _classifier(), _images()
    attack = dataclasses.replace(ATTACK, random_start=True)
    with torch.no_grad(), frozen_batch_norm(model):
        reference = model(x)
    x_adv = pgd(model, x, lambda outputs: softmax_divergence(outputs, reference), attack, _generator())
    objective = make_objective("trades", ClassifierLosses(), ObjectiveConfig(attack=ATTACK, beta=3.0))
    loss = objective(model, TrainBatch(x, LABELS), _generator())
    clean, attacked = model(x).softmax(dim=1), model(x_adv).softmax(dim=1)
    divergence = (clean * (clean / attacked).log()).sum(dim=1).mean()
    assert_close(loss, -clean[range(4), LABELS].log().mean() + 3.0 * divergence)
    assert divergence.item() > 1e-3


def test_free_training_steps_delta_up_the_loss_by_the_same_backward_pass() -> None:
    model, x = _classifier(), _images()
    objective = make_objective("free", ClassifierLosses(), ObjectiveConfig(attack=ATTACK))
    start = torch.empty_like(x).uniform_(-0.1, 0.1, generator=_generator())
    delta = start.clone().requires_grad_()
    loss = objective(model, TrainBatch(x, LABELS, delta), _generator())
    torch.autograd.backward(loss)
    shown = (x + start).clamp(0, 1).requires_grad_()
    expected = nn.functional.cross_entropy(model(shown), LABELS)
    (slope,) = torch.autograd.grad(expected, shown)
    assert_close(loss, expected)
    moved = objective.next_delta(delta)
    assert moved is not None
    is_inside = (x + start > 0) & (x + start < 1)
    assert_close(moved, torch.where(is_inside, start + 0.1 * slope.sign(), start).clamp(-0.1, 0.1))
    assert not moved.requires_grad


def test_n_fgsm_leaves_the_ball_but_not_the_pixels_range() -> None:
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.detach())
            logits: Tensor = self.model(images)
            return logits

    x = _images()
    objective = make_objective("n-fgsm", ClassifierLosses(), ObjectiveConfig(attack=ATTACK))
    objective(Watched(_classifier()), TrainBatch(x, LABELS), _generator())
    noisy, x_adv = seen
    middle = (x > 0.4) & (x < 0.6)
    noise = (noisy - x)[middle]
    assert 0.18 < float(noise.abs().max()) <= 0.2 + 1e-6
    assert abs(float(noise.mean())) < 0.03
    step = (x_adv - noisy)[middle]
    has_gradient = step.abs() > 1e-6
    assert float(has_gradient.float().mean()) > 0.9
    assert_close(step[has_gradient].abs(), torch.full_like(step[has_gradient], 0.1))
    assert 0.25 < float((x_adv - x).abs().max()) <= 0.3 + 1e-6
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1


def test_smoothing_adds_noise_of_its_width_that_nothing_clips() -> None:
    seen: list[Tensor] = []

    class Watching(ClassifierLosses):
        def loss(self, model: nn.Module, x: Tensor, targets: None) -> Tensor:
            seen.append(model(x))
            return seen[-1].flatten(1).mean(dim=1)

    task = Watching()
    x = torch.ones(8, 3, 16, 16)
    objective = make_objective("smoothing", task, ObjectiveConfig(sigma=0.25))
    objective(nn.Identity(), TrainBatch(x, None), _generator())
    noise = seen[0] - x
    assert float(noise.std()) == pytest.approx(0.25, rel=0.03)
    assert abs(float(noise.mean())) < 0.02
    assert float(seen[0].max()) > 1.3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_only_training_forwards_touch_the_statistics(name: str) -> None:
    """One forward updates them once; PGD-AT and TRADES train on two, and no attack adds another."""
    model, x = _classifier(), _images()
    before = int(model.get_buffer("1.num_batches_tracked"))
    _loss_and_gradients(name, ObjectiveConfig(attack=ATTACK), model, ClassifierLosses(), x, LABELS)
    after = int(model.get_buffer("1.num_batches_tracked"))
    assert after - before == (2 if name in ("pgd-at", "trades") else 1)
    assert model.training


@pytest.mark.parametrize("name", ["trades", "n-fgsm", "smoothing"])
def test_the_generator_decides_what_is_random(name: str) -> None:
    model, x = _classifier().eval(), _images()
    objective = make_objective(name, ClassifierLosses(), ObjectiveConfig(attack=ATTACK))
    first, again, other = (objective(model, TrainBatch(x, LABELS), _generator(seed)).item() for seed in (0, 0, 1))
    assert first == again != other


def test_unknown_names_and_norms_that_do_not_fit_are_refused() -> None:
    with pytest.raises(
        InputError, match="one of clean, pgd-at, trades, free, n-fgsm, smoothing, mixtrain, crown-ibp, got 'madry'"
    ):
        make_objective("madry", ClassifierLosses())
    for name in ("free", "n-fgsm"):
        with pytest.raises(InputError, match=f"norm linf for the objective {name}, got l2"):
            make_objective(name, ClassifierLosses(), ObjectiveConfig(attack=PgdConfig(1.0, 0.1, 2, norm="l2")))
    with pytest.raises(InputError, match="replays: input should be greater than or equal to 1, got 0"):
        ObjectiveConfig(replays=0)


def _attacked_by_pgd(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return pgd(model, x, cross_entropy_per_image(labels), ATTACK)


def _disturbed_by_noise(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    return x + SIGMA * torch.randn(x.shape, generator=_generator(8))


def _trained(name: str, weak: float) -> nn.Module:
    model = linear_classifier()
    config = TrainConfig(
        epochs=12, batch_size=50, optimizer="adamw", learning_rate=0.1, weight_decay=0.0, augmentation=NO_AUGMENTATION
    )
    objective = make_objective(name, ClassifierLosses(), ObjectiveConfig(attack=ATTACK, sigma=SIGMA))
    optimize(model, dict(model.named_parameters()), tempting_features(1000, seed=0, weak=weak), objective, config)
    return model


@pytest.mark.parametrize(
    ("name", "weak", "disturb", "clean_at_most", "robust_at_least"),
    [
        ("pgd-at", 0.04, _attacked_by_pgd, 0.1, 0.85),
        ("trades", 0.04, _attacked_by_pgd, 0.1, 0.85),
        ("free", 0.04, _attacked_by_pgd, 0.1, 0.85),
        ("n-fgsm", 0.04, _attacked_by_pgd, 0.1, 0.85),
        ("smoothing", 0.01, _disturbed_by_noise, 0.75, 0.83),
    ],
)
def test_each_objective_makes_robust_what_clean_training_does_not(
    name: str,
    weak: float,
    disturb: Callable[[nn.Module, Tensor, Tensor], Tensor],
    clean_at_most: float,
    robust_at_least: float,
) -> None:
    held_out = tempting_features(1000, seed=1, weak=weak)
    x, labels = held_out.images, held_out.targets
    assert isinstance(labels, Tensor)
    clean, robust = _trained("clean", weak), _trained(name, weak)
    assert accuracy(clean, x, labels) > 0.97
    assert accuracy(clean, disturb(clean, x, labels), labels) < clean_at_most
    assert accuracy(robust, disturb(robust, x, labels), labels) > robust_at_least


def test_targets_and_images_need_no_objects() -> None:
    model = small_detector()
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    batch = TrainBatch(torch.full((2, 3, SIZE, SIZE), 0.5), [nothing, nothing], torch.zeros(2, 3, SIZE, SIZE))
    assert batch.delta is not None
    batch.delta.requires_grad_()
    for name in set(OBJECTIVES) - set(VERIFIED):
        loss = make_objective(name, DetectionTask.of(model))(model, batch, _generator())
        assert loss.isfinite(), name
        assert loss.item() > 0, name
