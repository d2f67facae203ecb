from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from prunekit.attacks import (
    GradientError,
    L2Step,
    LinfStep,
    PgdConfig,
    classification_losses,
    fgsm,
    pgd,
    uniform_noise,
)
from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.presets import PAPER, STANDARD
from prunekit.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

LINF = PgdConfig(eps=0.1, step_size=0.04, steps=4)
L2 = PgdConfig(eps=0.7, step_size=0.3, steps=4, norm="l2")
CONFIGS = [
    LINF,
    L2,
    dataclasses.replace(LINF, random_start=True, restarts=3),
    dataclasses.replace(L2, random_start=True, restarts=3),
    PAPER,
    STANDARD,
]


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
        nn.Tanh(),
    )


def images(batch: int = 5) -> Tensor:
    x = torch.rand(batch, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    x[0], x[1] = 0, 1  # where only half of the ball lies inside the box
    return x


def loss_per_image(outputs: Tensor) -> Tensor:
    return outputs.square().flatten(1).sum(dim=1)


def eval_loss(net: nn.Module, x: Tensor) -> Tensor:
    with frozen_batch_norm(net), torch.no_grad():
        return loss_per_image(net(x))


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    order = torch.inf if norm == "linf" else 2
    lengths: Tensor = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=order, dim=1)
    return lengths


@pytest.mark.parametrize("config", CONFIGS)
def test_results_stay_in_the_ball_and_the_box_and_raise_the_loss(config: PgdConfig) -> None:
    net, x = small_net(), images()
    x_adv = pgd(net, x, loss_per_image, config, torch.Generator().manual_seed(0))
    assert float(x_adv.min()) >= 0
    assert float(x_adv.max()) <= 1
    assert float(distance(x_adv, x, config.norm).max()) <= config.eps * (1 + 1e-5)
    assert (eval_loss(net, x_adv) > eval_loss(net, x)).all()
    assert not x_adv.requires_grad


def test_the_paper_preset_takes_its_five_sign_steps() -> None:
    net, x = small_net().eval(), images()
    expected = x.clone()
    for _ in range(5):
        leaf = expected.clone().requires_grad_()
        (grad,) = torch.autograd.grad(loss_per_image(net(leaf)).sum(), leaf)
        moved = expected + 0.02 * grad.sign()
        expected = torch.minimum(torch.maximum(moved, x - 0.05), x + 0.05).clamp(0, 1)
    assert torch.equal(pgd(net, x, loss_per_image, PAPER), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("config", CONFIGS)
def test_the_model_is_left_as_it_was(config: PgdConfig, training: bool) -> None:
    net, x = small_net().train(training), images()
    net[1].eval()  # a mode that differs from the model's must come back too
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    unchanged = x.clone()
    pgd(net, x, loss_per_image, config)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(x, unchanged)


def test_modes_come_back_when_the_loss_fails() -> None:
    def fail(_: Tensor) -> Tensor:
        raise KeyError("no loss today")

    net = small_net().train()
    with pytest.raises(KeyError, match="no loss today"):
        pgd(net, images(), fail, LINF)
    assert all(module.training for module in net.modules())


def test_a_model_that_changes_its_buffers_is_found_out() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.get_buffer("calls").add_(1)
            return x

    with pytest.raises(RuntimeError, match="buffer calls"):
        pgd(Counter(), images(), loss_per_image, LINF)


def test_attacks_work_inside_no_grad() -> None:
    net, x = small_net(), images()
    with torch.no_grad():
        assert torch.equal(pgd(net, x, loss_per_image, LINF), pgd(net, x, loss_per_image, LINF))


def test_the_generator_decides_every_random_start() -> None:
    net, x = small_net(), images()
    config = CONFIGS[2]
    first, same, other = (
        pgd(net, x, loss_per_image, config, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_restarts_keep_the_worst_result_of_each_image() -> None:
    net, x = small_net(), images()
    config = PgdConfig(eps=0.1, step_size=0.02, steps=1, random_start=True)
    generator = torch.Generator().manual_seed(0)
    single = [eval_loss(net, pgd(net, x, loss_per_image, config, generator)) for _ in range(4)]
    generator.manual_seed(0)
    best = pgd(net, x, loss_per_image, dataclasses.replace(config, restarts=4), generator)
    assert torch.equal(eval_loss(net, best), torch.stack(single).amax(dim=0))
    assert len({int(index) for index in torch.stack(single).argmax(dim=0)}) > 1


@pytest.mark.parametrize("config", CONFIGS[:4])
def test_a_radius_of_zero_changes_nothing(config: PgdConfig) -> None:
    x = images()
    assert torch.equal(pgd(small_net(), x, loss_per_image, dataclasses.replace(config, eps=0.0)), x)


def test_no_steps_change_nothing() -> None:
    x = images()
    assert torch.equal(pgd(small_net(), x, loss_per_image, PgdConfig(eps=0.1, step_size=0.1, steps=0)), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 8}, "such as 8/255, got 8"),
        ({"eps": -0.1}, "such as 8/255"),
        ({"eps": float("nan")}, "such as 8/255"),
        ({"eps": float("inf"), "norm": "l2"}, "such as 8/255"),
        ({"step_size": -1.0}, "step_size"),
        ({"steps": -1}, "steps >= 0"),
        ({"restarts": 0}, "restarts >= 1"),
        ({"restarts": 2}, "random_start"),
        ({"norm": "l1"}, "linf, l2, got 'l1'"),
    ],
)
def test_impossible_knobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(LINF, **change)


@pytest.mark.parametrize("factor", [255.0, -1.0, float("nan")])
def test_images_out_of_range_are_refused(factor: float) -> None:
    with pytest.raises(InputError, match=r"pixels in \[0, 1\]"):
        pgd(small_net(), images() * factor, loss_per_image, LINF)


def test_gradients_that_are_not_finite_are_an_error() -> None:
    with pytest.raises(GradientError, match="not finite"):
        pgd(small_net(), images(), lambda outputs: loss_per_image(outputs) * float("inf"), LINF)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_a_loss_that_does_not_depend_on_the_image_is_an_error(requires_grad: bool) -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net().requires_grad_(requires_grad)

        def forward(self, x: Tensor) -> Any:
            return self.net(x.detach())

    with pytest.raises(GradientError, match="does not depend on the image"):
        pgd(Detached(), images(), loss_per_image, LINF)


def test_fgsm_is_one_step_across_the_ball() -> None:
    net, x = small_net().eval(), images()
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss_per_image(net(leaf)).sum(), leaf)
    assert torch.equal(pgd(net, x, loss_per_image, fgsm(0.03)), LinfStep(0.03, 0).project(x + 0.03 * grad.sign(), x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_noise_is_a_random_point_of_the_ball_and_asks_nothing(norm: Any) -> None:
    def fail(_: Tensor) -> Tensor:
        raise AssertionError

    x = images()
    noisy = pgd(small_net(), x, fail, uniform_noise(0.2, norm), torch.Generator().manual_seed(0))
    assert float(distance(noisy, x, norm).max()) <= 0.2 * (1 + 1e-5)
    assert float(distance(noisy, x, norm)[2:].min()) > 0.15


def test_another_radius_scales_the_steps() -> None:
    assert LINF.with_eps(0.05) == dataclasses.replace(LINF, eps=0.05, step_size=0.02)
    assert LINF.with_eps(0.0) == dataclasses.replace(LINF, eps=0.0, step_size=0.0)
    assert LINF.with_eps(0.0).with_eps(0.3) == dataclasses.replace(LINF, eps=0.3, step_size=0.0)


def test_called_as_an_attack_it_raises_the_total_loss() -> None:
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 7 * 9, 4)), images()
    losses = classification_losses(torch.tensor([0, 1, 2, 3, 0]))
    expected = pgd(net, x, losses.total, LINF)
    assert torch.equal(LINF(net, x, losses), expected)


@pytest.mark.parametrize("move", [LinfStep(0.2, 0.1), L2Step(1.5, 0.1)])
def test_projection_and_random_starts_obey_the_ball(move: LinfStep | L2Step) -> None:
    norm = "linf" if isinstance(move, LinfStep) else "l2"
    x, far = torch.full((400, 3, 4, 4), 0.5), torch.randn(400, 3, 4, 4)
    projected = move.project(far, x)
    assert float(distance(projected, x, norm).max()) <= move.eps * (1 + 1e-5)
    assert_close(move.project(projected, x), projected)
    start = move.random_start(x, torch.Generator().manual_seed(0))
    lengths = distance(start, x, norm)
    assert float(lengths.max()) <= move.eps * (1 + 1e-5)
    # Uniform in 48 dimensions: nearly all of the volume is near the surface, on every side.
    assert float(lengths.median()) > 0.95 * move.eps
    assert float((start - x).mean().abs()) < 0.02 * move.eps


def test_steps_have_the_stated_length() -> None:
    x, grad = images(), torch.randn(5, 3, 7, 9)
    assert_close(LinfStep(1.0, 0.1).step(x, grad) - x, 0.1 * grad.sign())
    assert_close(distance(L2Step(1.0, 0.1).step(x, grad), x, "l2"), torch.full((5,), 0.1))
    assert torch.equal(L2Step(1.0, 0.1).step(x, torch.zeros_like(grad)), x)
