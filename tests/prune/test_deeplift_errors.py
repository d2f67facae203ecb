"""What DeepLIFT refuses: contributions that do not add up, steps without a rule, input that makes no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from prunekit.errors import InputError
from prunekit.prune.deeplift import (
    Comparison,
    CompletenessError,
    data_mean,
    deeplift_scores,
)
from prunekit.prune.deeplift.attribution import RuleName
from prunekit.prune.deeplift.contributions import Filter
from prunekit.prune.deeplift.replay import apply_function
from tests.support.deeplift_nets import (
    both_rules,
    conv_then,
    simple_comparison,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@both_rules
def test_the_gate_catches_a_wrong_rule(rule: RuleName, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 2, 3))
    deeplift_scores(net, [simple_comparison()], rule)
    for module in ("rescale", "reveal_cancel"):
        monkeypatch.setattr(f"prunekit.prune.deeplift.{module}.secant", lambda dy, dx, size, slope: slope())
    with pytest.raises(CompletenessError, match=r"image 0 of the batch add up to -?\d.* changes by -?\d"):
        deeplift_scores(net, [simple_comparison()], rule)


@both_rules
def test_the_gate_catches_wrong_contributions(rule: RuleName, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    right = Filter.weight_gradient
    monkeypatch.setattr(Filter, "weight_gradient", lambda self, x, grad: right(self, x, grad) * 1.01)
    with pytest.raises(CompletenessError):
        deeplift_scores(net, [simple_comparison()], rule)


def test_the_gate_catches_nan() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    nn.init.constant_(net.get_parameter("0.weight"), math.nan)
    with pytest.raises(CompletenessError):
        deeplift_scores(net, [simple_comparison()])


class HiddenReLU(torch.autograd.Function):
    """A rectifier that torch announces under no name of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda x: x.softmax(dim=1), "SoftmaxBackward"),
        (lambda x: functional.group_norm(x, 2), "NativeGroupNormBackward"),
        (lambda x: x.amax(dim=(2, 3)), "AmaxBackward"),
        (lambda x: torch.where(x > 0, x, 0.1 * x), "WhereBackward"),
        (lambda x: x / (1 + x.abs()), "DivBackward0 of several activations"),
        (lambda x: torch.einsum("nchw,nchw->nc", x, x), "BmmBackward0 of several activations"),
        (lambda x: x ** x.abs(), "pow of two activations"),
        (lambda x: apply_function(HiddenReLU, x), "HiddenReLUBackward"),
        (lambda x: x.detach(), "depends on the model's input"),
    ],
)
def test_a_step_without_a_rule_is_named(step: Callable[[Tensor], Tensor], message: str) -> None:
    net = conv_then(step)
    with pytest.raises(InputError, match=message):
        deeplift_scores(net, [simple_comparison()])


def test_other_bad_input_is_named() -> None:
    net = conv_then(torch.relu)
    good = simple_comparison()
    with pytest.raises(InputError, match="at least one image"):
        deeplift_scores(net, [])
    with pytest.raises(InputError, match="at least one image"):
        data_mean([])
    with pytest.raises(InputError, match=r"reference of shape \[1, 3, 8, 8\] or \[2, 3, 8, 8\], got \[3, 3, 8, 8\]"):
        deeplift_scores(net, [Comparison(good.x, torch.zeros(3, 3, 8, 8), good.target)])
    with pytest.raises(InputError, match=r"one floating-point dtype, got torch.uint8"):
        deeplift_scores(net, [Comparison(good.x.byte(), good.x_ref, good.target)])
    with pytest.raises(InputError, match="one of rescale, reveal_cancel, got 'gradient'"):
        deeplift_scores(net, [good], rule="gradient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"one number for each of 2 images, got \[\]"):
        deeplift_scores(net, [Comparison(good.x, good.x_ref, lambda out: out.sum())])
    net.register_module("spare", nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="the weight of 'spare' met no conv2d"):
        deeplift_scores(net, [good])


def test_another_path_for_the_reference_is_named() -> None:
    net = conv_then(lambda x: x.relu() if x.sum() > 0 else x.tanh())
    nn.init.constant_(net.get_parameter("conv.weight"), 1.0)
    nn.init.constant_(net.get_parameter("conv.bias"), -1.0)
    with pytest.raises(InputError, match="where the input met relu, the reference met tanh"):
        deeplift_scores(net, [simple_comparison()])


@both_rules
def test_joining_images_with_other_dimensions_needs_a_reference_per_image(rule: RuleName) -> None:
    net = conv_then(lambda x: torch.tanh(x.flatten(0, 1)).view(-1, 4, *x.shape[2:]))
    shared = simple_comparison()
    with pytest.raises(InputError, match="one reference per image"):
        deeplift_scores(net, [shared], rule)
    own = Comparison(shared.x, shared.x_ref.expand_as(shared.x), shared.target)
    plain = conv_then(torch.tanh)
    plain.load_state_dict(net.state_dict())
    assert_close(deeplift_scores(net, [own], rule), deeplift_scores(plain, [shared], rule))


def test_overwriting_what_a_rule_read_is_named() -> None:
    def step(x: Tensor) -> Tensor:
        y = torch.relu(x)
        x += 1
        return y + x

    net = conv_then(step)
    with pytest.raises(InputError, match="what relu read"):
        deeplift_scores(net, [simple_comparison()])
