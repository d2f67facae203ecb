"""The attack on latency: what a candidate is, that it multiplies them in its ball, and what a cap lets through."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import OverloadConfig, classification_losses, soft_count
from prunekit.detection import DetectionTask, Detector, nms, yolov3_tiny
from prunekit.detection.target import Target
from prunekit.errors import InputError
from prunekit.evaluation.overload import (
    CandidateCounter,
    candidate_counts,
    suppressing,
    time_overload,
    with_overload,
)
from prunekit.task import ModelSpec, task_of


@dataclass(frozen=True)
class Options:
    score_threshold: float = 0.1
    iou_threshold: float = 0.45
    max_detections: int = 10
    max_candidates: int | None = None


NOTHING = Target(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))


@pytest.fixture(scope="module")
def detector() -> Detector:
    """A detector that is seldom sure of anything, as one on photos is."""
    torch.manual_seed(0)
    net = yolov3_tiny(3, width=0.05).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        net.train()(torch.rand(4, 3, 64, 64))
        for head in net(torch.rand(1, 3, 64, 64)):
            assert head.isfinite().all()
    return net.eval()


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_a_smooth_count_is_the_count_where_scores_are_far_from_the_threshold() -> None:
    scores = [torch.tensor([[1.0, 1e-9], [0.9, 0.0]]), torch.tensor([[1e-4, 1e-8]])]
    torch.testing.assert_close(soft_count(scores, 1e-4), torch.tensor([2.0, 0.5]), atol=3e-4, rtol=0)


def test_the_gradient_is_largest_for_scores_near_the_threshold() -> None:
    logits = torch.linspace(-20, 0, 201, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_count([logits.exp()], 0.01).sum(), logits)
    assert float(logits.detach().exp()[slope.argmax()]) == pytest.approx(0.01, rel=0.1)
    assert soft_count([torch.ones(3)], 0.0).isfinite().all()


def test_candidates_are_the_pairs_that_enter_suppression(detector: Detector) -> None:
    task, x = DetectionTask.of(detector), images()
    with torch.no_grad():
        outputs = detector(x)
    boxes, scores = task.decode(outputs)
    options = Options(score_threshold=float(scores.median()))
    counted = candidate_counts(task, outputs, options)
    for image, count in enumerate(counted):
        assert count == sum(score > options.score_threshold for score in scores[image].flatten().tolist())
        found = nms(boxes[image : image + 1], scores[image : image + 1], options.score_threshold, 1.0, 10_000)
        assert len(found[0]) == count
    assert sum(counted) == scores.numel() // 2


def test_the_attack_multiplies_candidates_in_its_ball(detector: Detector) -> None:
    task, x = DetectionTask.of(detector), images()
    with torch.no_grad():
        best = torch.stack(task.candidate_scores(detector(x))).flatten().sort(descending=True).values
    options = Options(score_threshold=float(best[20]))
    losses = with_overload(task.attack_losses([NOTHING] * 2), task, options)
    attack = OverloadConfig(0.05, 0.01, 10)
    x_adv = attack(detector, x, losses)
    assert (x_adv - x).abs().max() <= 0.05 + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    with torch.no_grad():
        before, after = (sum(candidate_counts(task, detector(images), options)) for images in (x, x_adv))
    assert before == 20
    assert after > 2 * before
    assert torch.equal(attack(detector, x, losses), x_adv)
    assert attack.with_eps(0.1) == OverloadConfig(0.1, 0.02, 10)


def test_other_tasks_are_refused() -> None:
    classifier = task_of(ModelSpec("resnet20", {"num_classes": 2}))
    losses = classification_losses(torch.tensor([0]))
    assert with_overload(losses, classifier, Options()) is losses
    with pytest.raises(InputError, match=r"^--attack: expected a detector for an attack on latency, got .*20\.$"):
        suppressing(classifier)
    with pytest.raises(InputError, match=r"^Expected losses of a task that suppresses boxes"):
        OverloadConfig(0.05, 0.01, 1)(nn.Flatten(), torch.rand(1, 3, 2, 2), losses)
    with pytest.raises(InputError, match="eps"):
        OverloadConfig(2.0, 0.01, 1)


def test_a_counter_keeps_the_first_images(detector: Detector) -> None:
    task, options, x = DetectionTask.of(detector), Options(), images()
    counter = CandidateCounter(detector, task, options, keep=1)
    for image_id, image in enumerate(x):
        counter(image_id, image)
    with torch.no_grad():
        assert counter.counts == candidate_counts(task, detector(x), options)
    assert counter.mean == sum(counter.counts) / 2
    assert torch.equal(torch.stack(counter.images), x[:1])


def test_a_cap_lets_only_the_best_pairs_into_suppression(detector: Detector) -> None:
    task, x = DetectionTask.of(detector), images()
    with torch.no_grad():
        outputs = detector(x)
        free = task.detections(outputs, Options(score_threshold=0.0, iou_threshold=1.0, max_detections=10_000))
        capped = task.detections(outputs, Options(0.0, 1.0, 10_000, max_candidates=7))
    for all_of_them, best in zip(free, capped, strict=True):
        assert torch.equal(best.scores, all_of_them.scores[:7])
        assert torch.equal(best.boxes, all_of_them.boxes[:7])


def test_every_step_is_timed_clean_and_attacked_and_suppression_alone_without_the_cap(detector: Detector) -> None:
    task, x = DetectionTask.of(detector), images()
    limits = {"": Options(max_candidates=3), "uncapped_": Options()}
    timings = time_overload(detector, detector, task, [(x[:1], x[1:])], 3, limits)
    steps = {"network", "decode", "nms", "uncapped_nms"}
    assert {*timings} == steps | {f"overload_{step}" for step in steps}
    assert all(timing.median_ms > 0 for timing in timings.values())


def test_losses_of_options_differ_by_their_threshold(detector: Detector) -> None:
    task, x = DetectionTask.of(detector), images()
    losses = task.attack_losses([NOTHING] * 2)
    assert losses.overload is None
    low, high = (with_overload(losses, task, replace(Options(), score_threshold=s)).overload for s in (1e-4, 0.5))
    assert low is not None
    assert high is not None
    with torch.no_grad():
        outputs = detector(x)
        assert (low(outputs) > high(outputs)).all()
