"""Training that sees int8: what convolutions compute on, straight-through gradients, and masks that hold."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.engine.graph import SparseWeight
from prunekit.engine.quantization import levels_of, quantization_of, quantized_weight, values_of
from prunekit.training.config import TrainConfig
from prunekit.training.preparation import prepared
from prunekit.training.quantization_aware import QuantizationAware, on_levels, on_weight_levels


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_training_rounds_as_deployment_does() -> None:
    x, weight = drawn(2, 3, 8, 9), drawn(5, 3, 3, 3, seed=1)
    quantization = quantization_of(float(x.min()), float(x.max()))
    torch.testing.assert_close(on_levels(x), values_of(levels_of(x, quantization), quantization), atol=1e-5, rtol=1e-5)
    levels, scale = quantized_weight(SparseWeight.of(weight))
    torch.testing.assert_close(on_weight_levels(weight), levels.dense() * scale[:, None, None, None])
    assert len(torch.unique(on_levels(x))) <= 256


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), 4.0), torch.full((1, 2, 3, 3), -4.0)])
def test_constant_inputs_have_levels(x: Tensor) -> None:
    torch.testing.assert_close(on_levels(x), x)


def test_gradients_look_straight_through() -> None:
    conv = nn.Conv2d(3, 4, 3, bias=False)
    x = drawn(2, 3, 8, 9).requires_grad_()
    torch.autograd.backward(QuantizationAware(conv)(x).square().sum())
    found = x.grad, conv.weight.grad
    rounded = on_levels(x.detach()).requires_grad_(), on_weight_levels(conv.weight.detach()).requires_grad_()
    torch.autograd.backward(F.conv2d(*rounded).square().sum())
    for a, b in zip(found, (rounded[0].grad, rounded[1].grad), strict=True):
        torch.testing.assert_close(a, b)


def test_zeros_stay_zeros_and_nothing_else_is_changed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        net[0].weight.mul_(drawn(4, 3, 3, 3, seed=2) > 0)  # type: ignore[operator]
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    weight = net[0].weight
    assert isinstance(weight, Tensor)
    assert not on_weight_levels(weight)[weight == 0].any()
    x = drawn(2, 3, 8, 8)
    assert not torch.equal(QuantizationAware(net)(x), net(x))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net.state_dict().items())


def test_a_training_in_int8_is_one_of_the_precisions() -> None:
    net = nn.Conv2d(3, 2, 1)
    config = TrainConfig(epochs=1, precision="int8")
    with prepared(net, dict(net.named_parameters()), config) as network:
        assert isinstance(network, QuantizationAware)
        torch.autograd.backward(network(drawn(1, 3, 4, 4)).sum())
        assert net.weight.grad is not None
