"""MaskedConv2d: a drop-in for nn.Conv2d that follows every change of its weights."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

import prunekit
from prunekit.errors import InputError
from prunekit.nn import MaskedConv2d
from prunekit.ops.native import native_status
from tests.support.oracles import TOLERANCE, relative_difference

needs_native = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")
X = torch.randn(2, 6, 13, 11, generator=torch.Generator().manual_seed(0))


def pruned_conv(**arguments: object) -> nn.Conv2d:
    conv = nn.Conv2d(6, 8, 3, **arguments)  # type: ignore[arg-type]
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.3)
    return conv.eval()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": 1, "stride": 2},
        {"padding": "same"},
        {"padding": (2, 1), "dilation": (1, 2)},
        {"groups": 2, "bias": False},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "circular", "dtype": torch.float64},
        {"padding": 1, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_from_dense_computes_what_the_dense_one_computes(arguments: dict[str, object]) -> None:
    conv = pruned_conv(**arguments)
    masked, x = MaskedConv2d.from_dense(conv), X.to(conv.weight.dtype)
    assert torch.equal(masked.mask, conv.weight != 0)
    assert masked.weight.data_ptr() != conv.weight.data_ptr()
    with torch.no_grad():
        for inputs in (x, x[0]):
            assert relative_difference(conv(inputs), masked(inputs)) <= TOLERANCE[x.dtype]
    with_gradient = masked(x)
    assert with_gradient.requires_grad
    assert relative_difference(conv(x), with_gradient) <= TOLERANCE[x.dtype]
    assert torch.equal(masked.to_dense().weight, conv.weight)


def test_from_dense_reads_convolutions_pruned_or_parametrized_by_torch() -> None:
    conv = nn.Conv2d(6, 8, 3)
    prune.l1_unstructured(conv, "weight", 0.75)  # type: ignore[no-untyped-call]
    masked = MaskedConv2d.from_dense(conv)
    assert masked.density == 0.25
    assert torch.allclose(masked(X), conv(X), atol=1e-6)

    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight * (torch.arange(weight.shape[-1]) > 0)

    conv = nn.Conv2d(6, 8, 3)
    parametrize.register_parametrization(conv, "weight", Half())
    assert MaskedConv2d.from_dense(conv).density == pytest.approx(2 / 3)


def test_an_explicit_mask_drops_weights_that_are_not_zero() -> None:
    conv = nn.Conv2d(6, 8, 3)
    mask = torch.rand_like(conv.weight) < 0.5
    masked = MaskedConv2d.from_dense(conv, mask)
    assert torch.allclose(masked(X), F.conv2d(X, conv.weight * mask, conv.bias), atol=1e-6)
    with pytest.raises(InputError, match="bool mask of the weight's shape"):
        MaskedConv2d.from_dense(conv, mask[:2])
    with pytest.raises(InputError, match=r"expects an nn\.Conv2d; got Linear"):
        MaskedConv2d.from_dense(nn.Linear(2, 2))  # type: ignore[arg-type]


def test_training_keeps_dropped_weights_where_they_are() -> None:
    conv = MaskedConv2d(6, 8, 3)
    conv.mask.copy_(torch.rand_like(conv.weight) < 0.5)
    before = conv.weight.detach().clone()
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    conv(X).square().mean().backward()
    optimizer.step()
    assert torch.equal(conv.weight[~conv.mask], before[~conv.mask])
    assert not torch.equal(conv.weight[conv.mask], before[conv.mask])


@needs_native
def test_the_packed_filter_follows_changes_of_weight_and_mask() -> None:
    masked = MaskedConv2d.from_dense(pruned_conv())
    with torch.no_grad():
        masked(X)
        masked.weight.mul_(2)
        assert relative_difference(F.conv2d(X, masked.weight, masked.bias), masked(X)) <= TOLERANCE[torch.float32]
        masked.mask.zero_()
        assert torch.equal(masked(X), F.conv2d(X, masked.weight * 0, masked.bias))
        masked.mask.fill_(True)
        masked.load_state_dict(MaskedConv2d(6, 8, 3).state_dict())
        assert relative_difference(F.conv2d(X, masked.weight, masked.bias), masked(X)) <= TOLERANCE[torch.float32]
        masked.weight.data.neg_()
        masked.eval()
        assert relative_difference(F.conv2d(X, masked.weight, masked.bias), masked(X)) <= TOLERANCE[torch.float32]
        wide = masked.double()
        assert relative_difference(F.conv2d(X.double(), wide.weight, wide.bias), wide(X.double())) <= 1e-12


@needs_native
@pytest.mark.parametrize("slope", [0.0, 0.1])
def test_the_fused_activation_is_the_same_on_every_path(slope: float) -> None:
    conv = pruned_conv(padding=1)
    masked = MaskedConv2d.from_dense(conv)
    masked.activation, masked.negative_slope = "leaky_relu", slope
    expected = F.leaky_relu(conv(X), slope)
    assert relative_difference(expected, masked(X)) <= TOLERANCE[torch.float32]
    with torch.inference_mode():
        for rows in (1, 4):
            masked.pack(rows)
            assert relative_difference(expected, masked(X)) <= TOLERANCE[torch.float32]


@needs_native
def test_inference_compiles_without_graph_breaks_on_the_packed_filter() -> None:
    masked = MaskedConv2d.from_dense(pruned_conv(padding=1))
    masked.pack()
    with torch.no_grad():
        compiled = torch.compile(masked, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(X), masked(X))


def test_copies_state_and_printing() -> None:
    masked = MaskedConv2d.from_dense(pruned_conv())
    with torch.no_grad():
        y = masked(X)
        assert torch.equal(copy.deepcopy(masked)(X), y)
        buffer = io.BytesIO()
        torch.save(masked.state_dict(), buffer)
        buffer.seek(0)
        fresh = MaskedConv2d(6, 8, 3).eval()
        fresh.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(fresh(X), y)
    assert f"density={masked.density:.3f}" in repr(masked)
    assert math.isnan(float(repr(MaskedConv2d(6, 8, 3, device="meta")).split("density=")[1].rstrip(")")))


def test_wrong_input_and_wrong_rows_are_refused_in_words() -> None:
    masked = MaskedConv2d.from_dense(pruned_conv())
    with torch.no_grad(), pytest.raises(InputError, match="5"):
        masked(torch.zeros(1, 5, 9, 9))
    with pytest.raises(InputError, match="rows must be 0"):
        masked.pack(3)
    with pytest.raises(InputError, match="cannot be packed"):
        masked.half().pack()
    assert prunekit.nn.MaskedConv2d is MaskedConv2d
