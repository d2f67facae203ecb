from __future__ import annotations

from functools import cache

import pytest
import torch

from prunekit.attacks import OverloadConfig, fgsm, soft_count
from prunekit.detection.target import Target
from prunekit.detection.torchvision_families import FAMILIES
from prunekit.evaluation.overload import candidate_counts, with_overload
from tests.support.torchvision_nets import (
    WITH_BACKGROUND,
    Problem,
    Thresholds,
    problem,
    torchvision_losses,
    torchvision_twin,
)


@cache
def solved(name: str) -> tuple[Problem, tuple[torch.Tensor, ...]]:
    case = problem(name)
    with torch.no_grad():
        return case, case.model(case.x)


@pytest.mark.parametrize("name", FAMILIES)
def test_losses_are_torchvision_s_of_each_image_alone(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        parts = case.task.code.losses(outputs, case.targets)
    assert list(parts) == list(case.task.code.parts)
    expected = torchvision_losses(torchvision_twin(case), case.x, case.targets, int(name in WITH_BACKGROUND))
    torch.testing.assert_close(sum(parts.values()), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert expected[0] > expected[1]


@pytest.mark.parametrize("name", FAMILIES)
def test_detections_are_torchvision_s(name: str) -> None:
    case, outputs = solved(name)
    options = Thresholds()
    twin = torchvision_twin(case, options)
    with torch.no_grad():
        # Batches are summed in another order than single images are.
        expected = twin(list(case.x))
        found = case.task.detections(outputs, options)
    assert [len(one) for one in found] == [len(one["boxes"]) for one in expected]
    assert sum(len(one) for one in found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.boxes, theirs["boxes"])
        torch.testing.assert_close(ours.scores, theirs["scores"])
        assert torch.equal(ours.classes, theirs["labels"] - int(name in WITH_BACKGROUND))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_attacks_raise_is_of_each_image_alone_and_repeats(name: str) -> None:
    case, outputs = solved(name)
    losses = case.task.attack_losses(case.targets)
    alone = tuple(o[:1] if len(o) == len(case.x) and o.dim() == 4 else o for o in outputs)
    single = case.task.attack_losses(case.targets[:1])
    assert {"total", "classification", "localization", "vanish", "fabricate"} <= set(losses.components)
    before = torch.get_rng_state()
    with torch.no_grad():
        for part, loss in {**losses.components, "margin": losses.margin}.items():
            of_single = {**single.components, "margin": single.margin}[part]
            assert torch.equal(loss(outputs), loss(outputs)), part
            torch.testing.assert_close(loss(outputs)[:1], of_single(alone), msg=part)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_the_attack_raises_the_loss(name: str) -> None:
    case, _ = solved(name)
    losses = case.task.attack_losses(case.targets[:1])
    x = case.x[:1]
    x_adv = fgsm(2e-5)(case.model, x, losses)  # small enough that a random network is nearly linear
    with torch.no_grad():
        assert losses.total(case.model(x_adv)) > losses.total(case.model(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_divergence_is_zero_at_the_clean_outputs_only(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        other = case.model(case.x.flip(-1))
        assert torch.equal(case.task.divergence(outputs, outputs), torch.zeros(2))
        assert bool((case.task.divergence(other, outputs) > 0).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_attribution_is_a_sum_over_matched_anchors(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        both = case.task.attribution(outputs, case.targets)
        objects = [Target(case.targets[0].boxes[i : i + 1], case.targets[0].labels[i : i + 1]) for i in range(2)]
        single = case.task.attribution(outputs, [objects[0], case.targets[1]])
    assert both[1] == single[1] == 0
    assert both[0] != 0
    assert both[0] != single[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_margin_is_positive_once_nothing_is_found(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        margins = case.task.attack_losses(case.targets).margin(outputs)
        best = case.task.code.candidates(outputs)[0].scores.max()
        found = case.task.detections(outputs, Thresholds(score_threshold=0.5))[0]
    assert margins[1] > 0
    if best < 0.5:
        assert len(found) == 0
        assert margins[0] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cap_lets_only_the_best_candidates_into_suppression(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        scores = case.task.candidate_scores(outputs)
        capped = case.task.detections(outputs, Thresholds(max_candidates=5))
        roomy = case.task.detections(outputs, Thresholds(max_candidates=10**9))
        free = case.task.detections(outputs, Thresholds())
    for image, found in enumerate(capped):
        *_, first_left_out = best = scores[image].flatten().topk(6).values
        entering = int((best > first_left_out).sum())  # fewer than five where scores are equal
        assert min(entering, 1) <= len(found) <= entering
        # FCOS takes a root where prunekit takes the exponential of half a logarithm.
        torch.testing.assert_close(found.scores[:1], best[: min(entering, 1)], rtol=1e-5, atol=0)
        assert (found.scores > first_left_out).all()
        assert torch.equal(roomy[image].scores, free[image].scores)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_attack_on_latency_raises_the_smooth_count_of_candidates(name: str) -> None:
    case, outputs = solved(name)
    with torch.no_grad():
        scores = case.task.candidate_scores(outputs)
        options = Thresholds(score_threshold=float(torch.cat([image.flatten() for image in scores]).median()))
        losses = with_overload(case.task.attack_losses(case.targets), case.task, options)
        assert losses.overload is not None
        before = losses.overload(outputs)
    assert torch.equal(before, soft_count(scores, options.score_threshold))
    assert candidate_counts(case.task, outputs, options) == [int((s > options.score_threshold).sum()) for s in scores]
    # Two steps that are short, since random weights bend the loss within a hundredth of the range of pixels.
    x_adv = OverloadConfig(1e-4, 5e-5, 2)(case.model, case.x, losses)
    with torch.no_grad():
        assert losses.overload(case.model(x_adv)).sum() > before.sum()
