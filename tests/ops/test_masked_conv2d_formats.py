"""The masked convolution under autocast and in other memory formats: what it does there is what a dense one does."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

import prunekit
from prunekit.nn import MaskedConv2d
from prunekit.ops.masked_conv2d import IMPLEMENTATIONS
from tests.support.conv_cases import random_cases
from tests.support.masked_conv2d_calls import both, pruned_conv
from tests.support.oracles import TOLERANCE, relative_difference
from tests.support.untouched import untouched

searching = settings(deadline=None, max_examples=int(os.environ.get("PRUNEKIT_EXAMPLES", "60")))


HALF = (torch.bfloat16, torch.float16)


@searching
@given(
    x_dtype=st.sampled_from([torch.float32, torch.float64, *HALF]),
    dtype=st.sampled_from([torch.float32, torch.float64, *HALF]),
    autocast=st.sampled_from(HALF),
    bias=st.booleans(),
    training=st.booleans(),
    enabled=st.booleans(),
    unbatched=st.booleans(),
)
def test_autocast_does_to_the_module_what_it_does_to_a_dense_convolution(
    x_dtype: torch.dtype,
    dtype: torch.dtype,
    autocast: torch.dtype,
    bias: bool,
    training: bool,
    enabled: bool,
    unbatched: bool,
) -> None:
    generator = torch.Generator().manual_seed(3)
    conv = pruned_conv(bias=bias, padding=1, dtype=dtype).train(training)
    masked = MaskedConv2d.from_dense(conv)
    x = torch.randn(*([] if unbatched else [2]), 4, 7, 6, generator=generator).to(x_dtype)
    with torch.autocast("cpu", dtype=autocast, enabled=enabled):
        try:
            expected = conv(x)
        except RuntimeError:
            with pytest.raises(prunekit.InputError, match="one floating-point dtype"):
                masked(x)
            return
        with torch.no_grad():
            masked(x)  # builds the packed filter that it keeps
        for context in (torch.no_grad, torch.enable_grad):
            with context(), untouched(masked, x):
                actual = masked(x)
            assert actual.dtype == expected.dtype
            assert relative_difference(expected, actual) <= TOLERANCE[expected.dtype]
        arguments = (x, conv.weight, masked.mask, conv.bias, 1, 1)
        assert prunekit.masked_conv2d(*arguments).dtype == expected.dtype


def test_autocast_reaches_calls_of_the_op_itself() -> None:
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(6, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.ops.prunekit.masked_conv2d(x, weight, weight > 0, None, (1, 1), (0, 0), (1, 1), 1)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALF)
def test_training_in_mixed_precision_with_a_scaler_follows_the_dense_layer(dtype: torch.dtype) -> None:
    conv = pruned_conv(padding=1)
    masked, mask = MaskedConv2d.from_dense(conv), conv.weight.detach() != 0
    batches = torch.randn(5, 2, 4, 7, 6)
    steps = []
    for layer in (conv, masked):
        net = nn.Sequential(nn.Conv2d(4, 4, 1), layer, nn.Conv2d(6, 2, 1))
        torch.manual_seed(7)
        for part in (net[0], net[2]):
            part.reset_parameters()  # type: ignore[operator]
        optimizer, scaler = torch.optim.SGD(net.parameters(), lr=0.05), torch.amp.GradScaler("cpu", init_scale=256.0)
        for x in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                loss = net(x).float().square().mean()
            scaler.scale(loss).backward()
            with torch.no_grad():
                layer.weight.grad.mul_(mask)  # type: ignore[union-attr]
            scaler.step(optimizer)
            scaler.update()
        steps.append(layer.weight.detach().clone())
    assert relative_difference(*steps) <= TOLERANCE[dtype]
    assert not torch.equal(steps[1], steps[1] * 0)


@pytest.mark.parametrize("dtype", HALF)
def test_gradients_in_half_precision_are_those_of_float64_but_for_rounding(dtype: torch.dtype) -> None:
    for case in random_cases(12, seed=18, max_size=12):
        typed = case.to(dtype)
        wide = typed.to(torch.float64)
        grads = []
        for each, function in ((wide, both(wide)[1]), (typed, both(typed)[0])):
            arguments = [t.clone().requires_grad_() for t in (each.x, each.weight, each.bias) if t is not None]
            y = function(*arguments)
            upstream = torch.linspace(-1, 1, y.numel()).to(dtype).to(y.dtype).view(y.shape)
            grads.append(torch.autograd.grad(y, arguments, upstream))
        for expected, actual in zip(*grads, strict=True):
            assert actual.dtype == dtype
            assert relative_difference(expected, actual) <= TOLERANCE[dtype]


@searching
@given(
    last=st.tuples(st.booleans(), st.booleans()),
    training=st.booleans(),
    kernel=st.sampled_from([1, 2, 3]),
    channels=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    slope=st.sampled_from([None, 0.0, 0.1]),
    size=st.tuples(st.integers(1, 3), st.integers(4, 9), st.integers(4, 9)),
)
def test_the_output_has_the_memory_format_that_a_dense_convolution_answers_in(
    last: tuple[bool, bool],
    training: bool,
    kernel: int,
    channels: tuple[int, int],
    slope: float | None,
    size: tuple[int, int, int],
) -> None:
    formats = [torch.channels_last if is_last else torch.contiguous_format for is_last in last]
    conv = nn.Conv2d(*channels, kernel).to(memory_format=formats[1]).train(training)  # type: ignore[call-overload]
    masked = MaskedConv2d.from_dense(conv, torch.rand_like(conv.weight) < 0.5)
    assert masked.weight.stride() == conv.weight.stride()
    if slope is not None:
        masked.activation, masked.negative_slope = "leaky_relu", slope
    x = torch.randn(size[0], channels[0], *size[1:]).to(memory_format=formats[0])
    expected = conv(x)
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            assert masked(x).stride() == expected.stride()
    arguments = (x, masked.weight, masked.mask, masked.bias, (1, 1), (0, 0), (1, 1), 1)
    for implementation in IMPLEMENTATIONS.values():
        assert implementation(*arguments).stride() == expected.stride()


@pytest.mark.parametrize("last", [(True, False), (False, True), (True, True)])
def test_opcheck_in_channels_last(last: tuple[bool, bool]) -> None:
    x, weight = (
        torch.randn(2, 4, 5, 6, dtype=torch.float64)[:, :, : 3 if k else 5, : 3 if k else 6].contiguous(
            memory_format=torch.channels_last if last[k] else torch.contiguous_format
        )
        for k in range(2)
    )
    mask = torch.rand(weight.shape) < 0.5
    checks = ("test_schema", "test_faketensor")  # tests/ops/test_masked_conv2d.py runs them all
    arguments = (x.requires_grad_(), weight.requires_grad_(), mask, None, [1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(torch.ops.prunekit.masked_conv2d.default, arguments, test_utils=checks)
    y = torch.randn(2, 2, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    ops, geometry = torch.ops.prunekit, ([1, 1], [1, 1], [1, 1], 1)
    torch.library.opcheck(
        ops.masked_conv2d_input_grad.default, (y, weight, mask, list(x.shape), *geometry), test_utils=checks
    )
    torch.library.opcheck(ops.masked_conv2d_weight_grad.default, (y, x, weight, mask, *geometry), test_utils=checks)


def test_autocast_and_vmap_compile_without_graph_breaks() -> None:
    masked = MaskedConv2d.from_dense(pruned_conv(padding=1))

    def under_autocast(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = masked(x).relu()
        return y

    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    compiled = torch.compile(under_autocast, fullgraph=True, backend="aot_eager")
    expected, actual = under_autocast(x), compiled(x)
    assert actual.dtype == torch.bfloat16
    assert actual.stride() == expected.stride()
    assert torch.equal(expected, actual)
    compiled = torch.compile(vmap(lambda x: masked(x)), fullgraph=True, backend="aot_eager")
    xs = torch.randn(3, 2, 4, 6, 6)
    assert torch.allclose(compiled(xs), torch.stack([masked(x) for x in xs]), atol=1e-6)
