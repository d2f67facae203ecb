from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from prunekit.attacks import PRESETS, classification_losses, cross_entropy_per_image, margin_per_image
from prunekit.errors import InputError
from tests.support.attack_problems import images, small_classifier

pytestmark = pytest.mark.usefixtures("one_thread")

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


def test_the_cross_entropy_is_minus_the_log_probability() -> None:
    expected = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row)))
        for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True)
    ]
    assert_close(cross_entropy_per_image(LABELS)(LOGITS), torch.tensor(expected, dtype=torch.float64))


def test_the_margin_is_the_best_wrong_logit_less_the_right_one() -> None:
    assert margin_per_image(LABELS)(LOGITS).tolist() == [-1.5, 3.0, 0.0]


def test_the_margin_has_slope_where_the_cross_entropy_has_none() -> None:
    sure = torch.tensor([[200.0, 0.0, 1.0]], requires_grad=True)
    label = torch.tensor([0])
    (flat,) = torch.autograd.grad(cross_entropy_per_image(label)(sure).sum(), sure)
    (steep,) = torch.autograd.grad(margin_per_image(label)(sure).sum(), sure)
    assert flat.abs().max() == 0
    assert steep.tolist() == [[-1.0, 0.0, 1.0]]


def test_one_class_cannot_be_mistaken() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        margin_per_image(torch.tensor([0]))(torch.ones(1, 1))


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"cw", "autoattack", "latency"}))
def test_every_preset_raises_a_classifiers_losses(name: str) -> None:
    net, x = small_classifier().eval(), images()
    losses = classification_losses(net(x).argmax(dim=1))
    x_adv = PRESETS[name](net, x, losses, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (losses.total(net(x_adv)) > losses.total(net(x))).all()
