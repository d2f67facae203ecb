from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.attacks import (
    AttackLosses,
    GradientError,
    LossPerImage,
    PgdConfig,
    StrongConfig,
    classification_losses,
)
from prunekit.attacks.strong import RISING_SHARE, climb
from prunekit.errors import InputError
from tests.support.attack_problems import NUM_CLASSES, Untouched, distance, images, small_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

LINF = StrongConfig(eps=0.1, steps=8, checkpoint=2)
L2 = StrongConfig(eps=0.7, norm="l2", steps=8, checkpoint=2)


def three_losses() -> AttackLosses:
    """Losses that pull different ways, judged by a fourth."""
    labels = torch.arange(6) % NUM_CLASSES
    losses = classification_losses(labels)
    components = {**losses.components, "one": lambda logits: logits[:, 1], "none": lambda logits: -logits.sum(dim=1)}
    return dataclasses.replace(losses, components=components)


def a_loss_per_class() -> AttackLosses:
    """One loss raises each class; the worst is what raises any class most."""

    def raise_class(label: int) -> LossPerImage:
        return lambda logits: logits[:, label]

    components = {f"class {label}": raise_class(label) for label in range(NUM_CLASSES)}
    return dataclasses.replace(three_losses(), components=components, badness=lambda logits: logits.amax(dim=1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("config", [LINF, L2])
@pytest.mark.parametrize("training", [True, False])
def test_results_stay_in_the_ball_and_the_box_and_the_model_as_it_was(config: StrongConfig, training: bool) -> None:
    net, x = small_classifier().train(training), images()
    untouched = Untouched(net)
    x_adv = config(net, x, three_losses(), generator())
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert float(distance(x_adv, x, config.norm).max()) <= config.eps * (1 + 1e-5)
    assert untouched.holds()


@pytest.mark.parametrize("config", [LINF, L2])
def test_it_is_never_weaker_than_its_best_component(config: StrongConfig) -> None:
    net, x, losses = small_classifier().eval(), images(), a_loss_per_class()

    def badness(components: dict[str, LossPerImage]) -> Tensor:
        x_adv = config(net, x, dataclasses.replace(losses, components=components), generator())
        with torch.no_grad():
            return losses.badness(net(x_adv))

    alone = torch.stack([badness({name: loss}) for name, loss in losses.components.items()])
    together = badness(dict(losses.components))
    # The same starts and steps were tried, so the two are equal, not only ordered.
    assert torch.equal(together, alone.amax(dim=0))
    assert len(set(alone.argmax(dim=0).tolist())) > 1


def test_it_beats_pgd_on_the_same_loss() -> None:
    net, x, losses = small_classifier().eval(), images(), three_losses()
    config = StrongConfig(eps=0.05, steps=20)
    pgd = PgdConfig(eps=0.05, step_size=0.01, steps=20)
    with torch.no_grad():
        strong = losses.badness(net(config(net, x, losses, generator())))
        plain = losses.badness(net(pgd(net, x, losses, generator())))
    assert (strong >= plain).all()


def test_a_loss_without_slope_does_not_stop_the_others() -> None:
    net, x = small_classifier().eval(), images()
    losses = three_losses()
    blind = dataclasses.replace(losses, components={"flat": lambda logits: (0 * logits).sum(dim=1)})
    assert torch.equal(StrongConfig(0.1, restarts=1)(net, x, blind), x)
    both = dataclasses.replace(losses, components={**blind.components, "margin": losses.margin})
    with torch.no_grad():
        assert (losses.margin(net(LINF(net, x, both, generator()))) > losses.margin(net(x))).all()


def test_more_restarts_try_more_starts_and_are_never_weaker() -> None:
    net, x, losses = small_classifier().eval(), images(), three_losses()
    badness = []
    for restarts in (1, 2, 4):
        config = dataclasses.replace(LINF, restarts=restarts, steps=1)
        with torch.no_grad():
            badness.append(losses.badness(net(config(net, x, losses, generator()))))
    assert (badness[0] <= badness[1]).all()
    assert (badness[1] <= badness[2]).all()
    assert (badness[0] < badness[2]).any()


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_steps_shrink_towards_a_summit_inside_the_ball() -> None:
    x = torch.full((2, 1), 0.5, dtype=torch.float64)
    summit = torch.tensor([[0.537], [0.421]], dtype=torch.float64)

    def height(outputs: Tensor) -> Tensor:
        return -(outputs - summit).square().sum(dim=1)

    losses = AttackLosses(height, height, {"height": height}, badness=height)
    shrinking = StrongConfig(eps=0.2, steps=40, checkpoint=2, restarts=1)
    fixed = dataclasses.replace(shrinking, checkpoint=100)
    assert_close(shrinking(Identity(), x, losses), summit, atol=1e-3, rtol=0)
    assert float((fixed(Identity(), x, losses) - summit).abs().max()) > 0.03


def climb_of_one(value: float, target: float, config: StrongConfig) -> list[float]:
    """Follow one number, 0.5 at first, over the waves of `wavy` in plain Python; return the points in their order."""
    step_size, rises, previous, best_at_checkpoint = config.first_step * config.eps, 0, -math.inf, -math.inf
    best, best_loss, best_slope, points = value, -math.inf, 0.0, []
    for step in range(config.steps):
        points.append(value)
        loss = math.sin(60 * value) - 9 * abs(value - target)
        slope = math.copysign(1.0, 60 * math.cos(60 * value) + math.copysign(9.0, target - value))
        if loss > best_loss:
            best, best_loss, best_slope = value, loss, slope
        rises += loss > previous
        previous = loss
        if step and step % config.checkpoint == 0:
            if rises < RISING_SHARE * config.checkpoint or best_loss <= best_at_checkpoint:
                step_size, value, slope = step_size / 2, best, best_slope
            rises, best_at_checkpoint = 0, best_loss
        value = min(max(value + step_size * slope, 0.5 - config.eps), 0.5 + config.eps)
    return [*points, value]


def test_each_image_climbs_by_its_own_rule() -> None:
    config = StrongConfig(eps=0.25, steps=40, checkpoint=2, first_step=0.3)
    targets = torch.linspace(0.26, 0.95, 40, dtype=torch.float64)[:, None]
    x = torch.full_like(targets, 0.5)
    seen: list[Tensor] = []

    def wavy(outputs: Tensor) -> Tensor:
        return ((60 * outputs).sin() - 9 * (outputs - targets).abs()).sum(dim=1)

    climb(Identity(), x, x, wavy, config, lambda x_adv, outputs: seen.append(x_adv))
    expected = [climb_of_one(0.5, target, config) for target in targets[:, 0].tolist()]
    assert_close(torch.cat(seen, dim=1), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("config", [LINF, L2])
def test_a_radius_of_zero_changes_nothing(config: StrongConfig) -> None:
    x = images()
    assert torch.equal(config.with_eps(0.0)(small_classifier(), x, three_losses(), generator()), x)


def test_the_generator_decides_every_random_start() -> None:
    net, x, losses = small_classifier(), images(), three_losses()
    first, same, other = (LINF(net, x, losses, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("factor", "message"), [(math.nan, "not finite"), (None, "does not depend on the image")])
def test_gradients_that_say_nothing_are_an_error(factor: float | None, message: str) -> None:
    losses = three_losses()

    def broken(logits: Tensor) -> Tensor:
        return logits.detach().sum(dim=1) if factor is None else losses.total(logits) * factor

    with pytest.raises(GradientError, match=message):
        LINF(small_classifier(), images(), dataclasses.replace(losses, components={"broken": broken}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 8}, "such as 8/255"),
        ({"norm": "l1"}, "linf, l2, got 'l1'"),
        ({"steps": -1}, "steps >= 0"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"checkpoint": 0}, "checkpoint >= 1"),
        ({"first_step": math.inf}, "first_step"),
    ],
)
def test_impossible_knobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LINF, **change)


def test_images_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        LINF(small_classifier(), images() * 255, three_losses())
