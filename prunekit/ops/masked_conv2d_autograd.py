"""How masked_conv2d is differentiated and vectorized, to any order.

The op and its two gradients are the partial derivatives of one form, linear in each of its three tensors:

    T(grad, x, weight) = Σ grad · masked_conv2d(x, weight)
    masked_conv2d = ∂T/∂grad,    input_grad = ∂T/∂x,    weight_grad = ∂T/∂weight

so that each one's derivatives are the others. The classes below serve torch.func and forward-mode differentiation,
which torch does not support for registered ops (torch 2.13: grad raises, jvp returns zeros); `register` gives the ops
the same formulas for everything else: eager backward, torch.compile, torch.jit.trace, torch.export.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

InDims = tuple[int | None, ...]
Op = Callable[..., Tensor]


def convolve(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """Return masked_conv2d, [N, K, P, Q]; `geometry` is stride, padding, dilation, groups."""
    return _run(_Convolution, torch.ops.prunekit.masked_conv2d, x, weight, mask, bias, *geometry)


def input_grad(grad: Tensor, weight: Tensor, mask: Tensor, x_shape: Sequence[int], *geometry: Any) -> Tensor:
    """Return the gradient to x, of shape `x_shape`, for `grad` at the output."""
    return _run(_InputGrad, torch.ops.prunekit.masked_conv2d_input_grad, grad, weight, mask, x_shape, *geometry)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, *geometry: Any) -> Tensor:
    """Return the gradient to the weight, zero where the mask drops; of `weight` only the shape counts."""
    return _run(_WeightGrad, torch.ops.prunekit.masked_conv2d_weight_grad, grad, x, weight, mask, *geometry)


def _run(function: type[torch.autograd.Function], op: Op, *args: Any) -> Tensor:
    needs_class = not torch.compiler.is_compiling() and is_transformed()
    out: Tensor = function.apply(*args) if needs_class else op(*args)  # type: ignore[no-untyped-call]
    return out


def is_traced() -> bool:
    """Return whether torch.jit.trace is at work: sizes are tensors then, and what is decided is decided for good."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_transformed() -> bool:
    """Return whether a transform of torch.func or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Convolution(torch.autograd.Function):
    """(x, weight, mask, bias, *geometry) → y."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.ops.prunekit.masked_conv2d(*args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, mask, _, *ctx.geometry = inputs
        _save(ctx, x, weight, mask)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask = ctx.saved_tensors
        needs_x, needs_weight, _, needs_bias, *_ = ctx.needs_input_grad
        grad_x = input_grad(grad, weight, mask, x.shape, *ctx.geometry) if needs_x else None
        grad_weight = weight_grad(grad, x, weight, mask, *ctx.geometry) if needs_weight else None
        return grad_x, grad_weight, None, grad.sum((0, 2, 3)) if needs_bias else None, *_NO_GEOMETRY

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor | None, weight_t: Tensor | None, _: None, bias_t: Tensor | None, *__: None) -> Tensor:
        x, weight, mask = ctx.saved_tensors
        # Zeros where there is no tangent: bias alone still has to be broadcast to y's shape.
        x_t = torch.zeros_like(x) if x_t is None else x_t
        tangent = convolve(x_t, weight, mask, bias_t, *ctx.geometry)
        return tangent if weight_t is None else tangent + convolve(x, weight_t, mask, None, *ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *args: Any, call: Op = convolve) -> tuple[Tensor, int]:
        x, weight, mask, bias, stride, padding, dilation, groups = args
        size = info.batch_size
        if in_dims[1:4] == (None, None, None):
            y = call(_into_images(x, in_dims[0]), weight, mask, bias, stride, padding, dilation, groups)
            return _unfold(y, 0, (size, -1)), 0
        y = call(
            _into_channels(x, in_dims[0], size),
            *_into_filters(size, (weight, in_dims[1]), (mask, in_dims[2])),
            None if bias is None else _into_filters(size, (bias, in_dims[3]))[0],
            stride,
            padding,
            dilation,
            groups * size,
        )
        return _unfold(y, 1, (size, -1)), 1


class _InputGrad(torch.autograd.Function):
    """(grad, weight, mask, x_shape, *geometry) → gradient to x."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.ops.prunekit.masked_conv2d_input_grad(*args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, weight, mask, ctx.x_shape, *ctx.geometry = inputs
        _save(ctx, grad, weight, mask)

    @staticmethod
    def backward(ctx: Any, grad_x: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight, mask = ctx.saved_tensors
        needs_grad, needs_weight, *_ = ctx.needs_input_grad
        to_grad = convolve(grad_x, weight, mask, None, *ctx.geometry) if needs_grad else None
        to_weight = weight_grad(grad, grad_x, weight, mask, *ctx.geometry) if needs_weight else None
        return to_grad, to_weight, None, None, *_NO_GEOMETRY

    @staticmethod
    def jvp(ctx: Any, grad_t: Tensor | None, weight_t: Tensor | None, *_: None) -> Tensor:
        grad, weight, mask = ctx.saved_tensors
        by_grad = None if grad_t is None else input_grad(grad_t, weight, mask, ctx.x_shape, *ctx.geometry)
        by_weight = None if weight_t is None else input_grad(grad, weight_t, mask, ctx.x_shape, *ctx.geometry)
        return _sum(by_grad, by_weight)

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *args: Any, call: Op = input_grad) -> tuple[Tensor, int]:
        grad, weight, mask, x_shape, stride, padding, dilation, groups = args
        size, (n, c, h, w) = info.batch_size, x_shape
        if in_dims[1:3] == (None, None):
            shape, grads = (size * n, c, h, w), _into_images(grad, in_dims[0])
            found = call(grads, weight, mask, shape, stride, padding, dilation, groups)
            return _unfold(found, 0, (size, n)), 0
        grads = _into_channels(grad, in_dims[0], size)
        filters = _into_filters(size, (weight, in_dims[1]), (mask, in_dims[2]))
        found = call(grads, *filters, (n, size * c, h, w), stride, padding, dilation, groups * size)
        return _unfold(found, 1, (size, c)), 1


class _WeightGrad(torch.autograd.Function):
    """(grad, x, weight, mask, *geometry) → gradient to the weight."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.ops.prunekit.masked_conv2d_weight_grad(*args)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, x, weight, mask, *ctx.geometry = inputs
        _save(ctx, grad, x, weight, mask)

    @staticmethod
    def backward(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
        grad, x, _, mask = ctx.saved_tensors
        needs_grad, needs_x, *_ = ctx.needs_input_grad
        to_grad = convolve(x, direction, mask, None, *ctx.geometry) if needs_grad else None
        to_x = input_grad(grad, direction, mask, x.shape, *ctx.geometry) if needs_x else None
        return to_grad, to_x, None, None, *_NO_GEOMETRY

    @staticmethod
    def jvp(ctx: Any, grad_t: Tensor | None, x_t: Tensor | None, *_: None) -> Tensor:
        grad, x, weight, mask = ctx.saved_tensors
        by_grad = None if grad_t is None else weight_grad(grad_t, x, weight, mask, *ctx.geometry)
        by_x = None if x_t is None else weight_grad(grad, x_t, weight, mask, *ctx.geometry)
        zero = torch.zeros_like(weight) if by_grad is None and by_x is None else None
        return _sum(by_grad, by_x, zero)

    @staticmethod
    def vmap(info: Any, in_dims: InDims, *args: Any, call: Op = weight_grad) -> tuple[Tensor, int]:
        grad, x, weight, mask, stride, padding, dilation, groups = args
        size = info.batch_size
        found = call(
            _into_channels(grad, in_dims[0], size),
            _into_channels(x, in_dims[1], size),
            *_into_filters(size, (weight, in_dims[2]), (mask, in_dims[3])),
            stride,
            padding,
            dilation,
            groups * size,
        )
        return _unfold(found, 0, (size, -1)), 0


_NO_GEOMETRY = (None, None, None, None)
_OPS: dict[str, type[Any]] = {
    "masked_conv2d": _Convolution,
    "masked_conv2d_input_grad": _InputGrad,
    "masked_conv2d_weight_grad": _WeightGrad,
}


def register() -> None:
    """Give the three ops, which must be defined, their gradients and their rules under torch.vmap."""
    for name, function in _OPS.items():
        torch.library.register_autograd(f"prunekit::{name}", function.backward, setup_context=function.setup_context)
        rule = partial(function.vmap, call=getattr(torch.ops.prunekit, name))
        torch.library.register_vmap(f"prunekit::{name}", rule)


def _unfold(t: Tensor, dim: int, sizes: tuple[int, int]) -> Tensor:
    """Split a dimension in two, the batch of vmap and what it was folded into."""
    unfolded: Tensor = t.unflatten(dim, sizes)  # type: ignore[no-untyped-call]
    return unfolded


def _save(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _sum(*terms: Tensor | None) -> Tensor:
    found = [term for term in terms if term is not None]
    return found[0] if len(found) == 1 else found[0] + found[1]


def _into_images(x: Tensor, dim: int | None) -> Tensor:
    """Turn a batch of [N, ...] into [B·N, ...]."""
    assert dim is not None
    return x.movedim(dim, 0).flatten(0, 1)


def _into_channels(x: Tensor, dim: int | None, size: int) -> Tensor:
    """Turn a batch of [N, C, H, W], or one that all share, into [N, B·C, H, W]: every member a group of its own."""
    members = x.unsqueeze(1).expand(-1, size, -1, -1, -1) if dim is None else x.movedim(dim, 1)
    return members.flatten(1, 2)


def _into_filters(size: int, *tensors_and_dims: tuple[Tensor, int | None]) -> list[Tensor]:
    """Turn each batch of [K, ...], or one that all share, into [B·K, ...]."""
    members = [
        tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        for tensor, dim in tensors_and_dims
    ]
    return [tensor.flatten(0, 1) for tensor in members]
