"""masked_conv2d under what rewrites it: higher derivatives, torch.func, tracing."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import prunekit
from prunekit.nn import MaskedConv2d
from prunekit.ops.masked_conv2d import IMPLEMENTATIONS
from tests.support.conv_cases import ConvCase, random_cases
from tests.support.masked_conv2d_calls import Function, both, pruned_conv
from tests.support.oracles import TOLERANCE, relative_difference
from tests.support.untouched import untouched

jit: Any = torch.jit  # neither has types


dual: Any = forward_ad


def small_cases(count: int, seed: int) -> Iterator[ConvCase]:
    """Cases of one image or two, so that whole Jacobians stay small."""
    for case in random_cases(count, seed, max_size=5):
        yield replace(case, x=case.x[:2], weight=case.weight, bias=torch.randn(len(case.weight), dtype=torch.float64))


def assert_same(expected: object, actual: object) -> None:
    pairs = list(zip(*(torch.utils._pytree.tree_leaves(tree) for tree in (expected, actual)), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape
        assert relative_difference(a, b) <= TOLERANCE[a.dtype]


def _total(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.sum() for t in tensors]).sum()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradgradcheck(name: str) -> None:
    for case in random_cases(6, seed=11, max_size=5):
        arguments = [t[:1] if t is case.x else t for t in (case.x, case.weight, case.bias) if t is not None]
        tensors = tuple(t.clone().requires_grad_() for t in arguments)

        def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, case: ConvCase = case) -> Tensor:
            return IMPLEMENTATIONS[name](x, weight, case.mask, bias, *case.geometry)

        assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def test_second_and_third_derivatives_are_those_of_the_dense_convolution() -> None:
    for case in small_cases(8, seed=12):
        results = []
        for function in both(case):
            x, weight, bias = (t.clone().requires_grad_() for t in (case.x, case.weight, case.bias) if t is not None)
            y = function(x, weight, bias).sigmoid().square().sum()  # curved: no derivative of it vanishes
            first = torch.autograd.grad(y, (x, weight, bias), create_graph=True)
            second = torch.autograd.grad(_total(g.square() for g in first), (x, weight, bias), create_graph=True)
            third = torch.autograd.grad(_total(g.sin() for g in second), (x, weight, bias))
            results.append((first, second, third))
        assert_same(*results)


def test_a_gradient_penalty_trains_as_with_a_dense_convolution() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) < 0.5)
    masked, x = MaskedConv2d.from_dense(conv), torch.randn(2, 3, 6, 6)
    penalties = []
    for layer in (conv, masked):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(layer(leaf).tanh().sum(), leaf, create_graph=True)
        slope.square().sum().backward()  # type: ignore[no-untyped-call]
        assert layer.weight.grad is not None
        penalties.append(torch.where(masked.mask, layer.weight.grad, 0))
    assert relative_difference(*penalties) <= TOLERANCE[torch.float32]
    assert bool(penalties[0].any())


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: grad(lambda x, w, b: f(x, w, b).sigmoid().sum(), argnums=(0, 1, 2)),
        lambda f: lambda x, w, b: vjp(f, x, w, b)[1](torch.ones_like(f(x, w, b))),
        lambda f: lambda x, w, b: jvp(f, (x, w, b), (x.cos(), w.cos(), b.cos())),
        lambda f: lambda x, w, b: jvp(lambda b: f(x, w, b), (b,), (b.cos(),)),
        lambda f: jacrev(lambda x, w, b: f(x, w, b).mean((0, 2, 3)), argnums=(0, 1)),
        lambda f: jacfwd(lambda x, w, b: f(x, w, b).mean((0, 2, 3)), argnums=2),
        lambda f: lambda x, w, b: hessian(lambda b: f(x, w, b).sigmoid().sum())(b),
        lambda f: lambda x, w, b: hessian(lambda s: f(x * s, w * s.sin(), b).sigmoid().sum())(b.new_tensor(2.0)),
    ],
    ids=["grad", "vjp", "jvp", "jvp of the bias", "jacrev", "jacfwd", "hessian of the bias", "hessian of all"],
)
def test_torch_func_differentiates_as_it_does_the_dense_convolution(transform: Callable[[Function], Function]) -> None:
    for case in small_cases(5, seed=13):
        masked, dense = both(case)
        arguments = (case.x, case.weight, case.bias)
        assert_same(transform(dense)(*arguments), transform(masked)(*arguments))


def test_forward_mode_gives_the_tangent_also_without_torch_func() -> None:
    for case in small_cases(3, seed=14):
        tangents = []
        for function in both(case):
            with dual.dual_level():
                x, weight = (dual.make_dual(t, t.cos()) for t in (case.x, case.weight))
                tangents.append(dual.unpack_dual(function(x, weight)).tangent)
        assert_same(*tangents)


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("which", ["x", "weight", "bias", "x weight", "x bias", "weight bias", "x weight bias"])
def test_vmap_over_any_of_the_tensors(which: str, with_gradients: bool) -> None:
    generator = torch.Generator().manual_seed(15)
    for case in small_cases(4, seed=15):
        arguments, dims = [], []
        for name in ("x", "weight", "bias"):
            tensor = getattr(case, name)
            dim = int(torch.randint(tensor.dim() + 1, (), generator=generator)) if name in which.split() else None
            factors = torch.rand(3, dtype=torch.float64, generator=generator)
            arguments.append(tensor if dim is None else torch.stack([tensor * f for f in factors], dim))
            dims.append(dim)

        def run(function: Function) -> object:
            call = grad(lambda *a: function(*a).sigmoid().sum(), argnums=(0, 1, 2)) if with_gradients else function
            return vmap(call, tuple(dims), randomness="error")(*arguments)  # noqa: B023 (called at once)

        masked, dense = both(case)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch's fallback loops, and warns
            assert_same(run(dense), run(masked))


def test_vmap_over_masks_makes_an_ensemble() -> None:
    case = next(small_cases(1, seed=16))
    masks = torch.rand(4, *case.weight.shape) < 0.5
    y = vmap(lambda mask: prunekit.masked_conv2d(case.x, case.weight, mask, case.bias, *case.geometry))(masks)
    one_by_one = [prunekit.masked_conv2d(case.x, case.weight, mask, case.bias, *case.geometry) for mask in masks]
    assert_same(torch.stack(one_by_one), y)


def test_vmap_of_the_op_itself_needs_no_loop() -> None:
    case = next(small_cases(1, seed=17))
    xs = torch.stack([case.x, -case.x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op = torch.ops.prunekit.masked_conv2d
        y = vmap(lambda x: op(x, case.weight, case.mask, None, *case.geometry))(xs)
    assert_same(torch.stack([both(case)[1](x, case.weight) for x in xs]), y)


@pytest.mark.parametrize("training", [True, False])
def test_the_module_under_functional_call_grad_and_vmap(training: bool) -> None:
    conv = pruned_conv(padding=1).train(training)
    masked, xs = MaskedConv2d.from_dense(conv), torch.randn(5, 1, 4, 7, 6)
    per_sample = []
    for layer in (conv, masked):
        weights = {"weight": layer.weight.detach()}

        def loss(weights: dict[str, Tensor], x: Tensor, layer: nn.Module = layer) -> Tensor:
            y: Tensor = functional_call(layer, weights, x).sigmoid().square().sum()
            return y

        found = vmap(grad(loss), (None, 0))(weights, xs)["weight"]
        per_sample.append(torch.where(masked.mask, found, 0))
    assert_same(*per_sample)
    with torch.no_grad():
        assert_same(vmap(conv)(xs), vmap(masked)(xs))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("arguments", [{"padding": 1, "stride": 2}, {"padding": "same"}, {"padding_mode": "reflect"}])
def test_a_traced_module_follows_sizes_weights_and_dtype(
    training: bool, with_grad: bool, arguments: dict[str, Any]
) -> None:
    if "padding_mode" in arguments:
        arguments = {**arguments, "padding": 1}
    masked = MaskedConv2d.from_dense(pruned_conv(**arguments)).train(training)
    x = torch.randn(2, 4, 7, 6)
    with torch.no_grad():
        masked(x)  # packs in eval mode
    with warnings.catch_warnings(), torch.set_grad_enabled(with_grad), untouched(masked, x):
        warnings.simplefilter("error", jit.TracerWarning)
        traced = jit.trace(masked, x)
    buffer = io.BytesIO()
    jit.save(traced, buffer)
    buffer.seek(0)
    loaded = jit.load(buffer)
    with torch.no_grad():
        for size in ((1, 4, 9, 8), (3, 4, 5, 12)):
            other = torch.randn(size)
            for run in (traced, loaded):
                assert relative_difference(masked(other), run(other)) <= TOLERANCE[torch.float32]
        traced.weight.mul_(2)  # the module's own weight
        assert relative_difference(masked(x), traced(x)) <= TOLERANCE[torch.float32]
        loaded.load_state_dict(masked.state_dict())
        assert relative_difference(masked(x), loaded(x)) <= TOLERANCE[torch.float32]
        wide = copy.deepcopy(masked).double()
        assert relative_difference(wide(x.double()), loaded.double()(x.double())) <= TOLERANCE[torch.float64]
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(masked(leaf).square().sum(), leaf)
    (actual,) = torch.autograd.grad(traced(leaf).square().sum(), leaf)
    assert relative_difference(expected, actual) <= TOLERANCE[torch.float32]
