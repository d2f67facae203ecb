"""The RevealCancel rule: what raises an activation and what lowers it travel apart.

Every tensor z [N, ...] becomes a pair [z_ref + Δ⁺; z_ref + Δ⁻] of 2N rows, with Δ⁺ + Δ⁻ = z - z_ref. Steps with
non-negative coefficients (adding, joining, resizing, averaging) treat both halves alike and need nothing new. In the
backward pass the halves carry the multipliers of Δ⁺ and Δ⁻.

Reference: Shrikumar, Greenside and Kundaje, ICML 2017, sections 3.5.1 (linear steps) and 3.5.3 (RevealCancel).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from prunekit.prune.deeplift.contributions import WeightContributions, read_conv2d
from prunekit.prune.deeplift.replay import Call, Handler, Rule, apply_function
from prunekit.prune.deeplift.rescale import (
    ELEMENTWISE,
    PRODUCTS,
    RESCALE_HANDLERS,
    SecantFunction,
    gradient_at,
    secant,
)

# Linear steps that may turn a rise into a fall: their change is split by sign afterwards.
SIGNED = frozenset({"sub", "subtract", "__rsub__", "rsub", "neg", "negative", "div", "true_divide", "conv_transpose2d"})


class MergeFunction(torch.autograd.Function):
    """From the pair [2N, ...] back to z [N, ...]; both halves get z's multiplier."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, z_ref: Tensor) -> Tensor:
        """Return z_ref + Δ⁺ + Δ⁻; where the reference is infinite (padding), so is z."""
        up, down = halves.chunk(2)
        return torch.where(z_ref.isinf(), z_ref, up + (down - z_ref))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Repeat the multiplier."""
        return torch.cat([grad, grad]), None


class SplitFunction(torch.autograd.Function):
    """From z [N, ...] to the pair: Δ counts as Δ⁺ where it is positive, as Δ⁻ where negative."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, z_ref: Tensor) -> Tensor:
        """Return the pair [2N, ...]."""
        delta = z - z_ref
        ctx.save_for_backward(delta)
        return torch.cat([z_ref + delta.clamp(min=0), z_ref + delta.clamp(max=0)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Take the multiplier of the half that holds Δ, their mean where Δ is 0."""
        (delta,) = ctx.saved_tensors
        up, down = grad.chunk(2)
        return torch.where(delta == 0, (up + down) / 2, torch.where(delta > 0, up, down)), None


class SwapFunction(torch.autograd.Function):
    """Swap the halves of a pair in some channels."""

    @staticmethod
    def forward(ctx: Any, halves: Tensor, is_swapped: Tensor) -> Tensor:
        """Return the pair [2N, C, ...], changed where is_swapped [1, C, ...]."""
        ctx.save_for_backward(is_swapped)
        return _swap(halves, is_swapped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Swap back."""
        (is_swapped,) = ctx.saved_tensors
        return _swap(grad, is_swapped), None


def _swap(halves: Tensor, is_swapped: Tensor) -> Tensor:
    return torch.where(is_swapped, halves.roll(len(halves) // 2, dims=0), halves)


class RevealCancelFunction(SecantFunction):
    """What Δ⁺ does to f, on average over coming before and after Δ⁻, and the reverse.

    Δy⁺ = ½ [f(x_ref + Δ⁺) - f(x_ref)] + ½ [f(x) - f(x_ref + Δ⁻)], and its multiplier is Δy⁺ / Δ⁺.
    """

    @staticmethod
    def forward(ctx: Any, halves: Tensor, x_ref: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the pair of f."""
        x_ref = x_ref.expand_as(halves[: len(halves) // 2])
        up, down = halves.chunk(2)
        y_ref, y_up, y_down, y = (function(z) for z in (x_ref, up, down, up + (down - x_ref)))
        delta_y = torch.cat([y_up - y_ref + y - y_down, y_down - y_ref + y - y_up]) / 2
        twice_ref = torch.cat([x_ref, x_ref])

        def slope() -> Tensor:  # the limit for a small Δ of the half at hand
            return (gradient_at(function, twice_ref) + gradient_at(function, torch.cat([down, up]))) / 2

        size = x_ref.abs() + torch.maximum(y_ref.abs(), y.abs())
        ctx.save_for_backward(secant(delta_y, halves - twice_ref, torch.cat([size, size]), slope))
        return torch.cat([y_ref, y_ref]) + delta_y


def merge(halves: Tensor, z_ref: Tensor) -> Tensor:
    """Join a pair [2N, ...] into z [N, ...]."""
    return apply_function(MergeFunction, halves, z_ref)


def split(z: Tensor, z_ref: Tensor) -> Tensor:
    """Make a pair [2N, ...] of z [N, ...] by the sign of z - z_ref."""
    return apply_function(SplitFunction, z, z_ref)


def reveal_cancel(weights: WeightContributions) -> Rule:
    """Return the rule; convolutions report to `weights`."""

    def conv2d(call: Call) -> Tensor:
        halves, x_ref, conv = read_conv2d(call)
        is_first, layer_weight = call.args[0] is weights.model_input, call.args[1]

        def part(delta: Tensor, weight: Tensor) -> Tensor:
            unbiased = conv._replace(weight=weight, bias=None)
            if not weights.is_layer(layer_weight):
                return unbiased(delta)
            return weights.convolve(delta, delta.detach(), unbiased, layer_weight, is_first)

        return _by_sign(halves, x_ref, conv.weight, part) + _twice(conv(x_ref))

    handlers: dict[str, Handler] = {
        **dict.fromkeys(ELEMENTWISE, _elementwise),
        **dict.fromkeys(PRODUCTS | SIGNED | {"max_pool2d"}, _merged),
        "batch_norm": _batch_norm,
        "conv2d": conv2d,
        "linear": _linear,
    }
    return Rule(handlers, rows_per_image=2, enter=split, leave=_leave)


def _leave(output: Any, output_ref: Any) -> Any:
    return merge(output, output_ref) if isinstance(output, Tensor) and output.requires_grad else output


def _linear(call: Call) -> Tensor:
    x, weight = call.args[:2]
    y_ref = call.out_of_place(call.reference[0])
    return _by_sign(x, call.reference[0], weight, linear) + _twice(y_ref)


def _by_sign(halves: Tensor, x_ref: Tensor, weight: Tensor, apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Return [Δ⁺; Δ⁻] behind a linear step: what rises by positive terms w·Δx, and what falls by negative ones.

    Autograd of these lines is the rule for multipliers: m_x = Σ w·(m⁺ where w·Δx > 0, m⁻ where w·Δx < 0), and the
    mean of both where Δx = 0.
    """
    delta = merge(halves, x_ref) - x_ref
    share = (delta.detach().sign() + 1) / 2  # 1 where Δx > 0, 0 where Δx < 0, ½ where 0
    rise, fall = delta * share, delta * (1 - share)
    with_rise_first = apply(torch.cat([rise, fall]), weight.clamp(min=0))
    return with_rise_first + apply(torch.cat([fall, rise]), weight.clamp(max=0))


def _twice(y_ref: Tensor) -> Tensor:
    """Return rows that add to a pair's: [2N, ...], or the one row of a shared reference."""
    return y_ref if len(y_ref) == 1 else torch.cat([y_ref, y_ref])


def _elementwise(call: Call) -> Tensor:
    return apply_function(RevealCancelFunction, call.args[0], call.reference[0], call.out_of_place)


def _merged(call: Call) -> Tensor:
    """Join the pairs, apply the rule of Rescale or a linear step, and split what comes out by sign."""
    args = tuple(
        merge(value, reference) if isinstance(value, Tensor) and value.requires_grad else value
        for value, reference in zip(call.args, call.reference, strict=True)
    )
    merged = replace(call, args=args)
    with torch.no_grad():
        z_ref = call.out_of_place(*call.reference[:2])
    has_rule = call.name in RESCALE_HANDLERS
    return split(RESCALE_HANDLERS[call.name](merged) if has_rule else call.out_of_place(*args[:2]), z_ref)


def _batch_norm(call: Call) -> Tensor:
    """Normalize both halves, and swap them in channels whose scale is negative: there a rise becomes a fall."""
    halves: Tensor = call.out_of_place(call.args[0])
    unit = halves.new_ones(1, halves.shape[1], *[1] * (halves.ndim - 2))
    is_swapped = call.out_of_place(unit) < call.out_of_place(torch.zeros_like(unit))
    return apply_function(SwapFunction, halves, is_swapped) if is_swapped.any() else halves
