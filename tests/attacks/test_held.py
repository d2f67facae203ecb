"""One perturbation for many images: what it follows, where it lies, and that memory has no part in it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunekit.attacks import LossPerImage, PgdConfig, fgsm, held, held_perturbation, moved, uniform_noise
from prunekit.errors import InputError

STEPS = PgdConfig(0.1, step_size=0.03, steps=4, random_start=True)


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(11, 3, 5, 6, generator=torch.Generator().manual_seed(1))


WHERE = torch.ones(11, 1, 5, 6)
TARGETS = torch.linspace(-1, 1, 11)


def losses_of(part: slice) -> LossPerImage:
    def losses(outputs: Tensor) -> Tensor:
        return (outputs[:, 0] - TARGETS[part]).square()

    return losses


def search(net: nn.Module, x: Tensor, config: PgdConfig, where: Tensor = WHERE) -> Tensor:
    return held_perturbation(net.eval(), x, losses_of, config, where, torch.Generator().manual_seed(2))


def mean_loss(net: nn.Module, x: Tensor, perturbation: Tensor) -> float:
    with torch.no_grad():
        return float(losses_of(slice(None))(net(moved(x, perturbation, WHERE))).mean())


def test_one_step_goes_along_the_sign_of_the_mean_gradient(net: nn.Module, x: Tensor) -> None:
    found = search(net, x, fgsm(0.05))
    shared = torch.zeros(1, 3, 5, 6, requires_grad=True)
    (gradient,) = torch.autograd.grad(losses_of(slice(None))(net((x + shared).clamp(0, 1))).mean(), shared)
    assert torch.allclose(found, 0.05 * gradient.sign(), atol=1e-6)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5)])
def test_it_stays_in_the_ball_and_is_worse_than_a_random_one(net: nn.Module, x: Tensor, norm: str, eps: float) -> None:
    config = PgdConfig(eps, step_size=eps / 3, steps=6, norm=norm)  # type: ignore[arg-type]
    found, noise = search(net, x, config), search(net, x, uniform_noise(eps, config.norm))
    for one in (found, noise):
        assert one.shape == (1, 3, 5, 6)
        size = one.abs().max() if norm == "linf" else one.norm()
        assert 0 < float(size) <= eps + 1e-6
    assert mean_loss(net, x, found) > max(mean_loss(net, x, noise), mean_loss(net, x, 0 * found)) + 0.01


def test_parts_of_the_images_are_as_good_as_all_at_once(
    net: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_two = search(net, x, STEPS)
    monkeypatch.setattr(held, "AT_A_TIME", 100)
    assert torch.allclose(in_two, search(net, x, STEPS), atol=1e-5)


def test_what_may_not_be_perturbed_has_no_part_in_it(net: nn.Module, x: Tensor) -> None:
    where = WHERE.clone()
    where[:, :, :, 3:] = 0
    found = search(net, x, fgsm(0.05), where)
    assert float(found[..., 3:].abs().max()) == 0
    assert float(found[..., :3].abs().min()) == pytest.approx(0.05)
    assert torch.equal(moved(x, torch.ones_like(found), where)[..., 3:], x[..., 3:])
    assert float(moved(x, torch.ones_like(found), where).max()) == 1


def test_the_model_stays_as_it_was(net: nn.Module, x: Tensor) -> None:
    net(x)  # gives the lazy layer its shape
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held_perturbation(net.train(), x, losses_of, STEPS, WHERE)
    assert net.get_submodule("1").training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_pixels_beyond_their_range_are_refused(net: nn.Module, x: Tensor) -> None:
    with pytest.raises(InputError, match=r"Expected pixels in \[0, 1\]"):
        search(net, 2 * x, STEPS)
