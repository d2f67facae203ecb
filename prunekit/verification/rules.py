"""What each operator does to intervals, and how a lower bound is pulled back through it.

An affine operator f takes the center c and radius r of an interval to f(c) ± |J| r, with J its linear part. A lower
bound A · f(x) is A J · x + A · f(0). A nonlinearity lies between two lines over its interval, so A · y is at least its
positive part by the lower line plus its negative part by the upper one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input

from prunekit.errors import InputError
from prunekit.verification.lines import Lines, clamp_lines
from prunekit.verification.nodes import Node, Pull

Function = Callable[..., Any]
Arguments = Sequence[Any]
Keywords = Mapping[str, Any]
#: A function's value at the images, and its node.
Found = tuple[Tensor, Node]


def affine(value: Tensor, inputs: Sequence[Node], f: Function, magnitude: Function, pull: Pull | None = None) -> Found:
    """Return the value and node of an affine operator.

    Args:
        value: What it is at the images.
        inputs: What it is computed from, one argument of f each.
        f: The operator.
        magnitude: f with the absolute values of its coefficients, and without its constant.
        pull: How bounds come back; by f's vector-Jacobian product if not given.
    """
    center, radius = f(*(node.center for node in inputs)), magnitude(*(node.radius for node in inputs))
    return value, Node(center - radius, center + radius, tuple(inputs), pull or _transposed(f, inputs))


def _transposed(f: Function, inputs: Sequence[Node]) -> Pull:
    def pull(coefficients: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        is_training = torch.is_grad_enabled()
        with torch.enable_grad():
            zeros = [torch.zeros_like(node.lower, requires_grad=True) for node in inputs]
            constant = f(*zeros)
        pulled = torch.autograd.grad(constant, zeros, coefficients, is_grads_batched=True, create_graph=is_training)
        return pulled, (coefficients * (constant if is_training else constant.detach())).flatten(2).sum(2)

    return pull


def _non_negative(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    """Bound a linear function whose coefficients are all at least 0: it is its own magnitude."""

    def f(x: Tensor) -> Any:
        return func(x, *args[1:], **kwargs)

    return affine(f(args[0]), [args[0].node], f, f)


def _concatenated(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    def f(*parts: Tensor) -> Any:
        return func(parts, *args[1:], **kwargs)

    return affine(f(*args[0]), [_node(part) for part in args[0]], f, f)


def _sum(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    """Bound a + b or a - b, of which one may be a constant."""
    if kwargs:
        raise InputError(f"Expected plain sums to bound, got one with {next(iter(kwargs))}.")
    value, places = func(*args), [place for place, arg in enumerate(args) if hasattr(arg, "node")]

    def f(*bounded: Tensor) -> Any:
        filled = dict(zip(places, bounded, strict=True))
        return func(*(filled.get(place, arg) for place, arg in enumerate(args)))

    def magnitude(*radii: Tensor) -> Tensor:
        return sum(radii, torch.zeros_like(value))

    return affine(value, [args[place].node for place in places], f, magnitude)


def _scaled(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    """Bound a product with a constant, or a quotient by one."""
    bounded = [arg for arg in args if hasattr(arg, "node")]
    is_first = bounded[0] is args[0]
    factor = args[1] if is_first else args[0]
    if len(bounded) > 1 or kwargs or not (is_first or "mul" in func.__name__):
        raise InputError("Expected products with and quotients by constants to bound, got other ones.")
    value = func(*args)
    return affine(value, [bounded[0].node], lambda x: func(x, factor), lambda radius: func(radius, abs(factor)))


def _node(value: Any) -> Node:
    found: Node = getattr(value, "node", None) or Node(value, value)
    return found


def _linear(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    x, weight, bias = (*args, kwargs.get("bias"))[:3]
    return affine(func(x, weight, bias), [x.node], lambda x: func(x, weight, bias), lambda r: func(r, weight.abs()))


def _conv2d(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    x, weight, bias, *rest = (*args, None)[: max(3, len(args))]
    settings = {**dict(zip(("stride", "padding", "dilation", "groups"), rest, strict=False)), **kwargs}
    bias = settings.pop("bias", bias)

    def f(x: Tensor) -> Any:
        return func(x, weight, bias, **settings)

    is_named = isinstance(settings.get("padding"), str)  # "same"
    pull = None if is_named else _transposed_conv2d(x.node, weight, bias, settings)
    return affine(f(x), [x.node], f, lambda radius: func(radius, weight.abs(), None, **settings), pull)


def _transposed_conv2d(node: Node, weight: Tensor, bias: Tensor | None, settings: dict[str, Any]) -> Pull:
    """Let the coefficients of all linear functions pass through one convolution: faster than autograd's, and equal."""

    def pull(coefficients: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        size = (*coefficients.shape[:2], *node.lower.shape[1:])
        folded = (size[0] * size[1], *size[2:])
        pulled = conv2d_input(folded, weight, coefficients.flatten(0, 1), **settings)  # type: ignore[no-untyped-call]
        constant = coefficients.new_zeros(size[:2]) if bias is None else coefficients.flatten(3).sum(3) @ bias
        return [pulled.view(size)], constant

    return pull


def _batch_norm(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    """Bound batch normalization; in training by the statistics of the images themselves (Shi et al. 2021)."""
    x, mean, var, weight, bias, training, momentum, tiny = _normalization(*args, **kwargs)
    value = functional.batch_norm(x, mean, var, weight, bias, training, momentum, tiny)
    if training:
        var, mean = torch.var_mean(x.value, [0, *range(2, x.dim())], correction=0)
    scale = torch.rsqrt(var + tiny) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    scale, shift = (vector.view(-1, *[1] * (x.dim() - 2)) for vector in (scale, shift))
    return affine(value, [x.node], lambda x: x * scale + shift, lambda radius: radius * scale.abs())


def _normalization(
    x: Any, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> tuple[Any, ...]:  # fmt: skip
    return x, mean, var, weight, bias, training, momentum, eps


def _dropout(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    x, *rest = args
    factor = func(torch.ones_like(x.value), *rest, **kwargs)
    return affine(x.value * factor, [x.node], lambda x: x * factor, lambda radius: radius * factor)


def _between_lines(value: Tensor, f: Function, node: Node, lines: Callable[[], Lines]) -> Found:
    """Return the value and node of an increasing function; its lines are drawn when a bound comes back."""
    pull = lambda coefficients: lines().pull(coefficients)  # noqa: E731
    return value, Node(f(node.lower), f(node.upper), (node,), pull, is_affine=False)


def _clamped(least: float, most: float, leak: float, x: Any) -> Found:
    def f(x: Tensor) -> Tensor:
        return leak * x + (1 - leak) * x.clamp(least, most) if leak else x.clamp(least, most)

    node = x.node
    return _between_lines(f(x.value), f, node, lambda: clamp_lines(node.lower, node.upper, least, most).leaky(leak))


def _relu(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    return _clamped(0.0, float("inf"), 0.0, args[0])


def _relu6(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    return _clamped(0.0, 6.0, 0.0, args[0])


def _hardtanh(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    least, most = (*args[1:3], *(kwargs[name] for name in ("min_val", "max_val") if name in kwargs))
    return _clamped(float(least), float(most), 0.0, args[0])


def _leaky_relu(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    slope = args[1] if len(args) > 1 else kwargs.get("negative_slope", 0.01)
    if not 0 <= slope <= 1:
        raise InputError(f"Expected the slope of LeakyReLU to be from 0 to 1, got {slope}.")
    return _clamped(0.0, float("inf"), float(slope), args[0])


def _max_pool(func: Function, args: Arguments, kwargs: Keywords) -> Found:
    x, *rest = args

    def f(x: Tensor) -> Any:
        return func(x, *rest, **kwargs)

    return f(x), Node(f(x.lower), f(x.upper), (x.node,), _pooled(f, x.node), is_affine=False)


def _pooled(f: Function, node: Node) -> Pull:
    """A maximum is at least the input whose lower end is greatest, and at most the greatest upper end."""

    def pull(coefficients: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        is_training = torch.is_grad_enabled()
        with torch.enable_grad():
            start = node.lower.detach().requires_grad_()
            chosen = f(start)
        positive = coefficients.clamp(min=0)
        pulled = torch.autograd.grad(chosen, [start], positive, is_grads_batched=True, create_graph=is_training)
        return pulled, (coefficients.clamp(max=0) * f(node.upper)).flatten(2).sum(2)

    return pull


_NON_NEGATIVE = (
    "mean", "flatten", "reshape", "view", "permute", "transpose", "squeeze", "unsqueeze", "contiguous", "clone", "to",
    "float", "double", "avg_pool2d", "adaptive_avg_pool2d", "__getitem__", "sum", "expand",
)  # fmt: skip
_SUMS = ("add", "sub", "__add__", "__sub__", "__radd__", "__rsub__", "rsub")
_PRODUCTS = ("mul", "div", "__mul__", "__rmul__", "__truediv__", "true_divide")

RULES: dict[str, Callable[[Function, Arguments, Keywords], Found]] = {
    **dict.fromkeys(_NON_NEGATIVE, _non_negative),
    **dict.fromkeys(_SUMS, _sum),
    **dict.fromkeys(_PRODUCTS, _scaled),
    "cat": _concatenated,
    "concat": _concatenated,
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "dropout": _dropout,
    "relu": _relu,
    "relu6": _relu6,
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "max_pool2d": _max_pool,
}
