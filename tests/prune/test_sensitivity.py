"""Sensitivities: what moving one module's weight in a ball does to the loss on attacked images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.attacks import PgdConfig, pgd
from prunekit.errors import InputError
from prunekit.prune.sensitivity import (
    Attacked,
    Sensitivity,
    project,
    rank_correlation,
    robustness_sensitivities,
    sensitive_layers,
)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip


def labeled(count: int = 48) -> tuple[Tensor, Tensor]:
    """Return images whose class is where they are bright."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.rand(count, 3, 8, 8, generator=generator) * 0.5, torch.arange(count) % 4
    for image, label in zip(x, y.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 0.4
    return x, y


@pytest.fixture(scope="module", name="trained")
def _trained() -> nn.Sequential:
    net, (x, y) = small_net(), labeled()
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
    return net.eval().requires_grad_()


def losses(y: Tensor) -> Callable[[Any], Tensor]:
    return lambda outputs: functional.cross_entropy(outputs, y, reduction="none")


def attacked(net: nn.Module) -> list[Attacked]:
    x, y = labeled()
    generator = torch.Generator().manual_seed(2)
    attack = PgdConfig(8 / 255, 2 / 255, 4, random_start=True)
    parts = [slice(0, 32), slice(32, 48)]
    return [(pgd(net, x[part], losses(y[part]), attack, generator), losses(y[part])) for part in parts]


def risk(net: nn.Module, images: list[Attacked]) -> float:
    with torch.no_grad():
        return sum(float(loss(net(x)).sum()) for x, loss in images) / sum(len(x) for x, _ in images)


def values(found: Mapping[str, Sensitivity]) -> list[float]:
    return [one.value for one in found.values()]


def test_projection_onto_the_ball() -> None:
    far, near = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.4])
    assert torch.allclose(project(far, 2.5), far / 2)
    assert torch.equal(project(near, 2.5), near)


def test_sensitivities_are_at_least_zero_and_what_random_directions_reach(trained: nn.Sequential) -> None:
    images = attacked(trained)
    found = robustness_sensitivities(trained, images, passes=4)
    assert list(found) == ["0", "3", "8"] == list(sensitive_layers(trained))
    start, generator = risk(trained, images), torch.Generator().manual_seed(3)
    for name, one in found.items():
        weight = trained.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        origin, reached = weight.detach().clone(), []
        for _ in range(10):
            delta = torch.randn(weight.shape, generator=generator)
            with torch.no_grad():
                weight.copy_(origin + delta * (0.1 * origin.norm() / delta.norm()))
                reached.append(risk(trained, images) - start)
                weight.copy_(origin)
        assert one.exact is not None
        assert one.exact >= max(0, *reached)


def test_a_scale_that_normalization_undoes_changes_nothing(trained: nn.Sequential) -> None:
    images = attacked(trained)
    before = robustness_sensitivities(trained, images, passes=3)
    scaled = small_net().eval()
    scaled.load_state_dict(trained.state_dict())
    conv, norm = scaled[0], scaled[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        conv.weight.mul_(8)
        norm.running_mean.mul_(8)
        norm.running_var.copy_(64 * (norm.running_var + norm.eps) - norm.eps)
    after = robustness_sensitivities(scaled, images, passes=3)
    assert values(after) == pytest.approx(values(before), rel=1e-3)
    assert [one.first_order for one in after.values()] == pytest.approx(
        [b.first_order for b in before.values()], rel=1e-3
    )


def test_fast_and_exact_rank_alike(trained: nn.Sequential) -> None:
    found = robustness_sensitivities(trained, attacked(trained), passes=4)
    assert (rank_correlation(found) or 0) >= 0.5
    assert rank_correlation({"a": Sensitivity(1, 3), "b": Sensitivity(2, 2), "c": Sensitivity(3, 1)}) == -1


def test_the_first_order_is_the_slope(trained: nn.Sequential) -> None:
    images = attacked(trained)
    (slope, *_) = values(robustness_sensitivities(trained, images, eps=1.0, passes=0))
    weight = trained[0].weight
    assert isinstance(weight, Tensor)
    start, origin = risk(trained, images), weight.detach().clone()
    x = torch.cat([x for x, _ in images])
    y = torch.cat([torch.arange(48)[:32] % 4, torch.arange(48)[32:] % 4])
    (gradient,) = torch.autograd.grad(functional.cross_entropy(trained(x), y), weight)
    with torch.no_grad():
        weight.add_(gradient * (1e-3 * origin.norm() / gradient.norm()))
        rise = risk(trained, images) - start
        weight.copy_(origin)
    assert rise / 1e-3 == pytest.approx(slope, rel=0.05)


def test_measuring_goes_on_where_it_was_ended_and_leaves_the_model_as_it_was(trained: nn.Sequential) -> None:
    images, kept = attacked(trained), dict[str, Sensitivity]()
    whole = robustness_sensitivities(trained, images, passes=2, save=kept.update)
    assert kept == whole
    visited: list[str] = []

    def interrupt(found: Mapping[str, Sensitivity]) -> None:
        visited.extend(name for name in found if name not in visited)
        if len(visited) == 2:
            raise KeyboardInterrupt

    before = {name: value.clone() for name, value in trained.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        robustness_sensitivities(trained, images, passes=2, save=interrupt)
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in trained.parameters())
    done = {name: whole[name] for name in visited}
    assert robustness_sensitivities(trained, images, passes=2, done=done) == whole


@pytest.mark.parametrize(
    ("images", "net", "sentence"),
    [
        ([], nn.Conv2d(3, 1, 1), "an attacked image"),
        ([(torch.zeros(1, 3, 2, 2), lambda y: y.mean((1, 2, 3)))], nn.Identity(), "a module with convolutions"),
        ([(torch.zeros(1, 3, 2, 2), lambda y: y.mean((1, 2, 3)) * torch.nan)], nn.Conv2d(3, 1, 1), "a finite loss"),
    ],
)
def test_bad_input_is_one_sentence(images: list[Attacked], net: nn.Module, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^Expected {sentence}"):
        robustness_sensitivities(net, images)
