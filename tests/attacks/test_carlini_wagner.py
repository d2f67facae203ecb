from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import AttackLosses, CarliniWagnerConfig, classification_losses
from prunekit.errors import InputError
from tests.support.attack_problems import Untouched, distance, images, small_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = CarliniWagnerConfig(steps=60, learning_rate=0.05, searches=6)


def linear_problem() -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear classifier, images in the middle of the box, and the labels that it gives them."""
    torch.manual_seed(0)
    net = nn.Linear(12, 2)
    x = 0.5 + 0.1 * torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
    return net, x, net(x).argmax(dim=1)


def test_on_a_linear_classifier_it_finds_the_distance_to_the_border() -> None:
    net, x, labels = linear_problem()
    losses = classification_losses(labels)
    x_adv = CONFIG(net, x, losses)
    with torch.no_grad():
        to_border = -losses.margin(net(x)) / (net.weight[0] - net.weight[1]).norm()
        assert (losses.margin(net(x_adv)) > 0).all()
    found = distance(x_adv, x, "l2")
    assert (found >= to_border * (1 - 1e-4)).all()
    assert (found <= to_border * 1.05 + 1e-3).all()


def test_results_fool_the_net_inside_the_box_and_leave_it_as_it_was() -> None:
    net, x = small_classifier().train(), images()
    labels = small_classifier().eval()(x).argmax(dim=1)
    untouched = Untouched(net)
    x_adv = CONFIG(net, x, classification_losses(labels))
    assert untouched.holds()
    assert (net.eval()(x_adv).argmax(dim=1) != labels).all()
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert not x_adv.requires_grad


def test_images_that_are_wrong_already_come_back_as_they_are() -> None:
    net, x, labels = linear_problem()
    labels[:3] = 1 - labels[:3]
    x_adv = CONFIG(net, x, classification_losses(labels))
    assert torch.equal(x_adv[:3], x[:3])
    assert (distance(x_adv, x, "l2")[3:] > 0).all()


def test_on_the_border_is_not_beyond_it() -> None:
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    losses = classification_losses(torch.tensor([0]))
    x = torch.full((1, 2), 0.5)
    assert losses.margin(net(x)).item() == 0
    assert losses.margin(net(CONFIG(net, x, losses))).item() > 0


def test_confidence_asks_for_more_than_the_border() -> None:
    net, x, labels = linear_problem()
    losses = classification_losses(labels)
    confident = dataclasses.replace(CONFIG, confidence=0.2)(net, x, losses)
    with torch.no_grad():
        assert (losses.margin(net(confident)) >= 0.2).all()
    assert (distance(confident, x, "l2") > distance(CONFIG(net, x, losses), x, "l2")).all()


def test_without_success_the_greatest_margin_stays() -> None:
    net, x, labels = linear_problem()
    losses = classification_losses(labels)
    shy = CarliniWagnerConfig(steps=2, learning_rate=1e-3, searches=1)
    x_adv = shy(net, x, losses)
    with torch.no_grad():
        before, after = losses.margin(net(x)), losses.margin(net(x_adv))
    assert (after < 0).all()
    assert (after > before).all()


def test_more_searches_come_nearer() -> None:
    net, x = small_classifier().eval(), images()
    losses = classification_losses(net(x).argmax(dim=1))
    found = [
        distance(dataclasses.replace(CONFIG, searches=searches, first_constant=100.0)(net, x, losses), x, "l2")
        for searches in (1, 6)
    ]
    assert (found[1] <= found[0]).all()
    assert float(found[1].mean()) < 0.9 * float(found[0].mean())


def test_black_and_white_pixels_do_not_break_it() -> None:
    net = small_classifier().eval()
    x = (images() > 0.5).float()
    losses = classification_losses(net(x).argmax(dim=1))
    assert CONFIG(net, x, losses).isfinite().all()


def test_the_margin_alone_is_used() -> None:
    net, x, labels = linear_problem()
    losses = classification_losses(labels)

    def unused(_: Tensor) -> Tensor:
        raise AssertionError

    only = AttackLosses(unused, losses.margin, {"unused": unused}, badness=unused)
    assert torch.equal(CONFIG(net, x, only), CONFIG(net, x, losses))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"searches": 0}, "searches >= 1"),
        ({"learning_rate": 0.0}, "learning_rate above 0"),
        ({"first_constant": math.inf}, "first_constant"),
        ({"confidence": -1.0}, "confidence"),
        ({"confidence": math.nan}, "confidence"),
    ],
)
def test_impossible_knobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_images_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        CONFIG(small_classifier(), images() + 1, classification_losses(torch.zeros(6, dtype=torch.int64)))
