"""Both rules against slow oracles, completeness on random nets, and Captum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from prunekit.prune.deeplift import (
    Comparison,
    deeplift_contributions,
    deeplift_scores,
)
from prunekit.prune.deeplift.attribution import RuleName
from tests.support import deeplift_oracle, reveal_cancel_oracle
from tests.support.deeplift_nets import (
    both_heads,
    both_rules,
    check_completeness,
    contributions_of,
    gated_net,
    images,
    random_steps,
    residual_net,
    tiny_yolo_net,
    two_heads,
)
from tests.support.deeplift_oracle import TORCH_ACTIVATIONS, Step

pytestmark = pytest.mark.usefixtures("one_thread")


def check_against_oracle(steps: list[Step], shared_reference: bool, spelling: int = 0) -> None:
    x, x_ref, weights = images(steps, shared_reference)
    found = contributions_of(steps, x, x_ref, weights, "rescale", spelling)
    expected = deeplift_oracle.rescale(steps, x, x_ref, weights)
    assert found.layers.keys() == {f"{name}" for name in expected}
    for name, value in expected.items():
        assert np.abs(value).max() > 0
        assert_close(found.layers[name].numpy(), value, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "spelling"), [(name, i) for name, spellings in TORCH_ACTIVATIONS.items() for i in range(len(spellings))]
)
def test_every_spelling_of_an_activation_is_the_oracles(name: str, spelling: int) -> None:
    check_against_oracle(residual_net(name), shared_reference=spelling % 2 == 0, spelling=spelling)


@pytest.mark.parametrize("shared_reference", [True, False])
@pytest.mark.parametrize("net", [tiny_yolo_net, gated_net])
def test_max_pools_and_products_are_the_oracles(net: Callable[[], list[Step]], shared_reference: bool) -> None:
    check_against_oracle(net(), shared_reference)


def test_gradients_where_input_and_reference_agree() -> None:
    steps = tiny_yolo_net()
    x, x_ref, weights = images(steps, shared_reference=False)
    x_ref[:, :, :3] = x[:, :, :3]  # so that many activations have Δ = 0
    x_ref[1] = x[1]
    found = contributions_of(steps, x, x_ref, weights, "rescale")
    for name, value in deeplift_oracle.rescale(steps, x, x_ref, weights).items():
        assert_close(found.layers[name].numpy(), value, rtol=1e-7, atol=1e-8)
        assert not found.layers[name][1].any()


@both_rules
def test_contributions_that_cancel_still_count(rule: RuleName) -> None:
    """Both channels rise by 1 and a - b stays as it was: the multiplier is the slope there, through the pool too."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.LeakyReLU(0.1), nn.MaxPool2d(2))
    net[0].weight.data = torch.tensor([[[[1.0]], [[-1.0]]]])
    x_ref = torch.zeros(2, 2, 2, 2)
    x_ref[0, 1] = 3.0
    x_ref[0, 1, 1, 1] = 2.0  # where image 0 has its maximum, -2
    x_ref[1, 0, 0, 1] = 4.0  # where image 1 has its maximum, 4
    comparison = Comparison(x_ref + 1, x_ref, lambda out: out.flatten(0))
    found = deeplift_contributions(net, comparison, rule).layers["0"]
    assert_close(found.flatten(1), torch.tensor([[0.1, -0.1], [1.0, -1.0]]))


@pytest.mark.parametrize("shared_reference", [True, False])
@pytest.mark.parametrize("name", ["relu6", "leaky_relu", "silu", "tanh"])
def test_reveal_cancel_is_the_oracles(name: str, shared_reference: bool) -> None:
    steps = residual_net(name)
    x, x_ref, weights = images(steps, shared_reference)
    found = contributions_of(steps, x, x_ref, weights, "reveal_cancel")
    expected = reveal_cancel_oracle.reveal_cancel(steps, x, x_ref, weights)
    rescaled = contributions_of(steps, x, x_ref, weights, "rescale")
    assert found.layers.keys() == expected.keys()
    for name_of_layer, value in expected.items():
        assert_close(found.layers[name_of_layer].numpy(), value, rtol=1e-8, atol=1e-9)
    assert (found.layers["layers.0"] - rescaled.layers["layers.0"]).abs().max() > 1e-2


def test_reveal_cancel_sees_what_rescale_cannot() -> None:
    """Shrikumar et al.'s case: y = relu(a - b) with a = 2 and b = 3 stays 0, though a alone raises it."""
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), nn.ReLU())
    net[0].weight.data = torch.tensor([[[[1.0]], [[-1.0]]]])
    comparison = Comparison(torch.tensor([2.0, 3.0]).view(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), lambda y: y.flatten(0))
    assert not deeplift_scores(net, [comparison])["0"].any()
    # a raises y by 2 if it comes first and by 0 if last; b lowers it by 0 or by 2.
    signed = deeplift_contributions(net, comparison, "reveal_cancel").layers["0"]
    assert signed.flatten().tolist() == [1.0, -1.0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_steps(("conv", "norm", "activation", "pool", "add", "mul")), st.booleans())
def test_random_nets_are_the_oracles_and_complete(steps: list[Step], shared_reference: bool) -> None:
    x, x_ref, weights = images(steps, shared_reference, size=5)
    found = contributions_of(steps, x, x_ref, weights, "rescale")
    for name, value in deeplift_oracle.rescale(steps, x, x_ref, weights).items():
        scale = float(found.completeness.size.max())
        assert_close(found.layers[name].numpy(), value, rtol=1e-7, atol=1e-9 * scale)
    check_completeness(found)
    # Every net here reads its input in one convolution, so its contributions alone make up the change.
    change = found.layers["layers.0"].flatten(1).sum(dim=1)
    assert_close(change, found.completeness.expected, rtol=0, atol=1e-11 * float(found.completeness.size.max()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_steps(("conv", "norm", "activation", "pool", "add", "mul")), st.booleans())
def test_reveal_cancel_is_complete_on_random_nets(steps: list[Step], shared_reference: bool) -> None:
    x, x_ref, weights = images(steps, shared_reference, size=5)
    check_completeness(contributions_of(steps, x, x_ref, weights, "reveal_cancel"))


@pytest.mark.parametrize("activation", [nn.ReLU, partial(nn.LeakyReLU, 0.1), nn.Sigmoid, nn.Tanh])
def test_captum_agrees_where_it_is_right(activation: Callable[[], nn.Module]) -> None:
    pytest.importorskip("captum", reason="the optional oracle captum is not installed")
    from bench.deeplift import captum_contributions

    net = two_heads(activation)
    x, x_ref = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = deeplift_contributions(net, Comparison(x, x_ref, both_heads))
    for name, contributions in found.layers.items():
        expected = captum_contributions(net, name, x, x_ref, both_heads)
        assert_close(contributions, expected, rtol=1e-9, atol=1e-10)
