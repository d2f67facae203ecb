"""The Rescale rule: through y = f(x) the multiplier is (y - y_ref) / (x - x_ref), the slope of the secant.

Max-pooling and products of two activations are no functions of one number; each has a rule of its own here
that keeps contributions complete, Σ multiplier · Δx = Δy.

Reference: Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
Differences", ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from prunekit.errors import InputError
from prunekit.prune.deeplift.contributions import WeightContributions, read_conv2d
from prunekit.prune.deeplift.replay import Call, Handler, Rule, apply_function

# Functions of one number, by the name under which torch announces them (F.relu6 comes as hardtanh, nn.LogSigmoid
# as log_sigmoid). In-place variants count as the same.
_ELEMENTWISE = """
    abs atan celu clamp clamp_max clamp_min clip elu erf exp expm1 gelu hardshrink hardsigmoid hardswish hardtanh
    leaky_relu log log1p log_sigmoid mish pow prelu reciprocal relu relu6 rsqrt selu sigmoid silu sin cos softplus
    softshrink softsign sqrt square tanh tanhshrink threshold
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
PRODUCTS = frozenset({"mul", "multiply", "matmul", "bmm", "mm"})

# Where |Δx| is below so many roundings of x and y, rounding may move the secant's slope by more than 1/64.
TINY_IN_ROUNDINGS = 64


def secant(delta_y: Tensor, delta_x: Tensor, size: Tensor, slope: Callable[[], Tensor | float]) -> Tensor:
    """Divide Δy by Δx, and take `slope()` where Δx is lost in the rounding of numbers as large as `size`."""
    tiny = TINY_IN_ROUNDINGS * torch.finfo(delta_x.dtype).eps
    is_tiny = delta_x.abs() <= size * tiny
    multiplier = delta_y / delta_x
    return torch.where(is_tiny, slope(), multiplier) if is_tiny.any() else multiplier


def gradient_at(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return f'(x) for a function of one number, with the shape of x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient


class SecantFunction(torch.autograd.Function):
    """A function of one number of which `forward` saves the slope that multipliers are multiplied with."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Multiply with the saved slope."""
        (multiplier,) = ctx.saved_tensors
        return grad * multiplier, None, None


class RescaleFunction(SecantFunction):
    """f itself forwards; backwards the secant instead of the tangent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_ref: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return f(x)."""
        y, y_ref = function(x), function(x_ref)
        ctx.save_for_backward(
            secant(y - y_ref, x - x_ref, x.abs() + y.abs(), lambda: gradient_at(function, (x + x_ref) / 2))
        )
        return y


class MaxPoolFunction(torch.autograd.Function):
    """Max-pooling whose change goes to one place: of the input's and the reference's maxima the larger.

    There |Δx| >= |Δy|: if y > y_ref, the input rose at its maximum from at most y_ref to y. So multipliers are
    in [0, 1], also for windows that overlap and for padding with minus infinity.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, x_ref: Tensor, pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """Return the maxima [N, C, P, Q]; `pool` also returns their flat places."""
        y, place = pool(x)
        y_ref, place_ref = pool(x_ref)
        place = torch.where(y >= y_ref, place, place_ref).flatten(2)  # [N, C, P·Q]
        at_place = x.flatten(2).gather(2, place).view_as(y)
        at_place_ref = x_ref.expand_as(x).flatten(2).gather(2, place).view_as(y)
        multiplier = secant(y - y_ref, at_place - at_place_ref, y.abs(), slope=lambda: y.new_ones(()))
        ctx.save_for_backward(place, multiplier)
        ctx.shape = x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add what each window gives to its place."""
        place, multiplier = ctx.saved_tensors
        grad_x = grad.new_zeros(ctx.shape).flatten(2)
        grad_x.scatter_add_(2, place, (grad * multiplier).flatten(2))
        return grad_x.view(ctx.shape), None, None


class ProductFunction(torch.autograd.Function):
    """A product of two activations: Δ(a·b) = Δa · mean(b, b_ref) + mean(a, a_ref) · Δb, exactly.

    For any bilinear function these are its gradients halfway between reference and input, and each factor's
    Shapley value.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, a_ref: Tensor, b_ref: Tensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return the product."""
        ctx.save_for_backward((a + a_ref) / 2, (b + b_ref) / 2)
        ctx.function = function
        return function(a, b)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Backpropagate through the product halfway."""
        with torch.enable_grad():
            a, b = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
            grad_a, grad_b = torch.autograd.grad(ctx.function(a, b), (a, b), grad)
        return grad_a, grad_b, None, None, None


def _elementwise(call: Call) -> Tensor:
    others = [*call.args[1:], *call.kwargs.values()]
    if any(isinstance(value, Tensor) and value.requires_grad for value in others):
        raise InputError(f"DeepLIFT has no rule for {call.name} of two activations.")
    return apply_function(RescaleFunction, call.args[0], call.reference[0], call.out_of_place)


def _max_pool2d(call: Call) -> Tensor:
    options = {**dict(zip(POOL_OPTIONS, call.args[1:], strict=False)), **call.kwargs, "return_indices": True}
    return apply_function(
        MaxPoolFunction, call.args[0], call.reference[0], lambda x: functional.max_pool2d_with_indices(x, **options)
    )


POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _product(call: Call) -> Tensor:
    a, b = call.args[:2]
    if not all(isinstance(factor, Tensor) and factor.requires_grad for factor in (a, b)):
        constant_product: Tensor = call.out_of_place(a, b)
        return constant_product
    return apply_function(ProductFunction, a, b, *call.reference[:2], call.out_of_place)


RESCALE_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(PRODUCTS, _product),
    "max_pool2d": _max_pool2d,
}


def rescale(weights: WeightContributions) -> Rule:
    """Return the rule; convolutions report to `weights`."""

    def conv2d(call: Call) -> Tensor:
        if not weights.is_layer(call.args[1]):
            constant_filter: Tensor = call.out_of_place(call.args[0])
            return constant_filter
        x, x_ref, conv = read_conv2d(call)
        return weights.convolve(x, (x - x_ref).detach(), conv, call.args[1], is_first=x is weights.model_input)

    return Rule(
        handlers={**RESCALE_HANDLERS, "conv2d": conv2d},
        rows_per_image=1,
        enter=lambda x, x_ref: x.clone(),  # no leaf: the model may work in place
        leave=lambda output, output_ref: output,
    )
