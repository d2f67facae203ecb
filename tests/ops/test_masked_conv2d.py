"""The op: every implementation against a float64 loop, gradients, masked semantics, torch.compile, bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import prunekit
from prunekit.errors import InputError
from prunekit.ops.masked_conv2d import IMPLEMENTATIONS
from tests.support.conv_cases import ConvCase, random_cases
from tests.support.oracles import TOLERANCE, masked_conv2d_oracle, relative_difference

CASES = list(random_cases(60, seed=1))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_agrees_with_the_oracle(name: str, dtype: torch.dtype) -> None:
    for case in CASES:
        typed = case.to(dtype)
        expected = masked_conv2d_oracle(typed.x, typed.weight, typed.mask, typed.bias, *typed.geometry)
        actual = IMPLEMENTATIONS[name](typed.x, typed.weight, typed.mask, typed.bias, *typed.geometry)
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        assert relative_difference(expected, actual) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_density_0_is_exactly_the_bias(name: str) -> None:
    x, weight, bias = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    y = IMPLEMENTATIONS[name](x, weight, torch.zeros_like(weight, dtype=torch.bool), bias, (1, 1), (1, 1), (1, 1), 1)
    assert torch.equal(y, bias.view(1, 4, 1, 1).expand(2, 4, 5, 7))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_dropped_weights_contribute_nothing_even_times_inf_or_nan(name: str, poison: float) -> None:
    for case in random_cases(12, seed=2, max_size=12):
        x, weight = case.x.float(), case.weight.float()
        x[:, ::2] = poison
        weight[~case.mask] = poison
        bias = None if case.bias is None else case.bias.float()
        expected = masked_conv2d_oracle(x, weight, case.mask, bias, *case.geometry)
        actual = IMPLEMENTATIONS[name](x, weight, case.mask, bias, *case.geometry)
        assert relative_difference(expected, actual) <= TOLERANCE[torch.float32]


def test_non_contiguous_arguments() -> None:
    x = torch.randn(2, 9, 11, 6).permute(0, 3, 1, 2)
    weight = torch.randn(3, 3, 6, 8).permute(3, 2, 0, 1)
    mask = (torch.rand(8, 3, 3, 6) < 0.3).permute(0, 3, 1, 2)
    bias = torch.randn(16)[::2]
    expected = F.conv2d(x, weight * mask, bias, padding=1)
    actual = prunekit.masked_conv2d(x, weight, mask, bias, padding=1)
    assert relative_difference(expected, actual) <= TOLERANCE[torch.float32]
    channels_last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(prunekit.masked_conv2d(channels_last, weight, mask, bias, padding=1), actual)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid", 1, (0, 2)])
def test_padding_forms_and_unbatched_input_follow_torch(kernel: int, padding: str | int | tuple[int, int]) -> None:
    x, weight = torch.randn(3, 9, 8), torch.randn(5, 3, kernel, kernel)
    mask = torch.rand_like(weight) < 0.5
    expected = F.conv2d(x, weight * mask, padding=padding)
    actual = prunekit.masked_conv2d(x, weight, mask, padding=padding)
    assert actual.shape == expected.shape
    assert relative_difference(expected, actual) <= TOLERANCE[torch.float32]


def test_results_repeat_bit_by_bit_and_do_not_depend_on_the_batch() -> None:
    x, weight = torch.randn(5, 32, 27, 31), torch.randn(48, 32, 3, 3)
    mask = torch.rand_like(weight) < 0.2
    y = prunekit.masked_conv2d(x, weight, mask, padding=1)
    assert torch.equal(prunekit.masked_conv2d(x, weight, mask, padding=1), y)
    assert torch.equal(prunekit.masked_conv2d(x[3:4], weight, mask, padding=1), y[3:4])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(prunekit.masked_conv2d(x, weight, mask, padding=1), y)
    finally:
        torch.set_num_threads(threads)


def gradcheck_case(case: ConvCase) -> tuple[torch.Tensor, ...]:
    tensors = (case.x, case.weight) if case.bias is None else (case.x, case.weight, case.bias)
    return tuple(t.clone().requires_grad_() for t in tensors)


def test_gradcheck() -> None:
    for case in random_cases(8, seed=3, max_size=6):
        small = replace(case, x=case.x[:1])

        def call(
            x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, case: ConvCase = small
        ) -> torch.Tensor:
            return prunekit.masked_conv2d(x, weight, case.mask, bias, *case.geometry)

        assert torch.autograd.gradcheck(call, gradcheck_case(small), fast_mode=True)


def test_gradients_equal_those_of_the_dense_convolution_with_zeros() -> None:
    for case in random_cases(20, seed=4, max_size=15):
        arguments, masked_arguments = gradcheck_case(case), gradcheck_case(case)
        bias, masked_bias = (a[2] if case.bias is not None else None for a in (arguments, masked_arguments))
        y = F.conv2d(arguments[0], arguments[1] * case.mask, bias, *case.geometry)
        x, weight = masked_arguments[:2]
        masked = prunekit.masked_conv2d(x, weight, case.mask, masked_bias, *case.geometry)
        upstream = torch.randn_like(y)
        expected = torch.autograd.grad(y, arguments, upstream)
        actual = torch.autograd.grad(masked, masked_arguments, upstream)
        for a, b in zip(expected, actual, strict=True):
            assert relative_difference(a, b) <= TOLERANCE[torch.float64]
        assert not actual[1][~case.mask].any()


def test_input_gradient_ignores_dropped_weights_times_inf() -> None:
    for case in random_cases(8, seed=5, max_size=10):
        x = case.x.clone().requires_grad_()
        y = prunekit.masked_conv2d(x, case.weight, case.mask, None, *case.geometry)
        upstream = torch.randn_like(y)
        upstream[:, ::2] = math.inf
        is_dropped_everywhere = ~case.mask.clone()
        is_dropped_everywhere[1::2] = True  # rows with a finite upstream gradient cannot poison anything
        (grad,) = torch.autograd.grad(y, x, upstream)
        fed_by_inf = ~is_dropped_everywhere.view(case.groups, -1, *case.weight.shape[1:]).all(1)
        clean_channels = ~fed_by_inf.flatten(2).any(2).flatten()
        assert grad[:, clean_channels].isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    for case in random_cases(4, seed=6, max_size=8):
        x, weight = (t.clone().requires_grad_() for t in (case.x, case.weight))
        b = torch.randn(weight.shape[0], dtype=torch.float64, requires_grad=True) if bias else None
        stride, padding, dilation, groups = case.geometry
        arguments = (x, weight, case.mask, b, list(stride), list(padding), list(dilation), groups)
        torch.library.opcheck(torch.ops.prunekit.masked_conv2d.default, arguments)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_graph_breaks_forward_and_backward(backend: str) -> None:
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    mask = torch.rand_like(weight) < 0.4

    def block(x: torch.Tensor) -> torch.Tensor:
        return F.relu(prunekit.masked_conv2d(x, weight, mask, None, 2, 1))

    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    for size in (9, 12):
        x = torch.randn(2, 4, size, size, requires_grad=True)
        expected, actual = block(x), compiled(x)
        assert torch.allclose(expected, actual)
        for a, b in zip(
            torch.autograd.grad(expected.sum(), (x, weight)),
            torch.autograd.grad(actual.sum(), (x, weight)),
            strict=True,
        ):
            assert torch.allclose(a, b)


def test_meta_tensors_give_the_shape() -> None:
    x, weight = torch.empty(2, 4, 9, 9, device="meta"), torch.empty(6, 4, 3, 3, device="meta")
    y = prunekit.masked_conv2d(x, weight, torch.empty(6, 4, 3, 3, dtype=torch.bool, device="meta"), None, 2, 1)
    assert y.shape == (2, 6, 5, 5)
    assert y.device.type == "meta"


def test_empty_batch() -> None:
    weight = torch.randn(6, 4, 3, 3)
    y = prunekit.masked_conv2d(torch.empty(0, 4, 9, 9), weight, weight > 0, padding=1)
    assert y.shape == (0, 6, 9, 9)


X, W = torch.zeros(1, 4, 8, 8), torch.zeros(6, 4, 3, 3)
BAD_INPUT = {
    "3-D weight": ({"weight": torch.zeros(6, 4, 3)}, "weight \\(6, 4, 3\\)"),
    "mask shape": ({"mask": torch.ones(6, 4, 3, 1, dtype=torch.bool)}, "mask of the weight's shape"),
    "mask dtype": ({"mask": torch.ones(6, 4, 3, 3)}, "bool mask"),
    "channels": ({"x": torch.zeros(1, 5, 8, 8)}, "expects 4 input channels"),
    "groups": ({"groups": 4}, "groups=4 expects 16 input channels"),
    "stride": ({"stride": 0}, "at least 1"),
    "negative padding": ({"padding": -1}, "padding must not be negative"),
    "padding word": ({"padding": "full"}, '"valid" or "same"'),
    "same with stride": ({"padding": "same", "stride": 2}, "needs stride 1"),
    "three strides": ({"stride": (1, 1, 1)}, "pair of ints"),
    "kernel too large": ({"x": torch.zeros(1, 4, 2, 2)}, "does not fit"),
    "bias": ({"bias": torch.zeros(5)}, "bias \\[6\\]"),
    "mixed dtypes": ({"x": X.double()}, "one floating-point dtype"),
    "integers": ({"x": X.long(), "weight": W.long()}, "floating-point"),
    "devices": ({"x": X.to("meta")}, "one device"),
}


@pytest.mark.parametrize(("change", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_one_sentence(change: dict[str, object], sentence: str) -> None:
    arguments: dict[str, object] = {"x": X, "weight": W, "mask": torch.ones(6, 4, 3, 3, dtype=torch.bool), **change}
    with pytest.raises(InputError, match=sentence):
        prunekit.masked_conv2d(**arguments)  # type: ignore[arg-type]
