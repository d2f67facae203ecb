"""Masked sparse convolution: schema, reference, fake kernel, gradients, table of implementations.

    y[n, k, p, q] = bias[k] + Σ_(c, r, s with mask[k, c, r, s]) weight[k, c, r, s] ·
                    x[n, c, p·stride_h + r·dilation_h − padding_h, q·stride_w + s·dilation_w − padding_w]

A dropped weight (mask False) contributes nothing, not even when it or the input is inf or nan. The sum runs
over the input channels of k's group. The compiled extension adds a CPU kernel under the same schema; the
dispatcher prefers it, and `masked_conv2d_reference` stays what it is judged against. `geometry` is stride, padding,
dilation, groups below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.errors import InputError
from prunekit.ops.autocasting import DEVICE_TYPES, cast_for_autocast, under_autocast
from prunekit.ops.conv_arguments import IntPair, conv_output_size, pair, split_padding
from prunekit.ops.library import define, fake, fallback, kernel
from prunekit.ops.masked_conv2d_autograd import convolve, is_traced, register
from prunekit.ops.memory_format import conv_memory_format

_GEOMETRY = "int[2] stride, int[2] padding, int[2] dilation, int groups"
define(f"masked_conv2d(Tensor x, Tensor weight, Tensor mask, Tensor? bias, {_GEOMETRY}) -> Tensor")
define(f"masked_conv2d_input_grad(Tensor grad, Tensor weight, Tensor mask, SymInt[4] x_shape, {_GEOMETRY}) -> Tensor")
define(f"masked_conv2d_weight_grad(Tensor grad, Tensor x, Tensor weight, Tensor mask, {_GEOMETRY}) -> Tensor")


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve with the weights that `mask` keeps; the others cost nothing and contribute nothing.

    The arguments are those of `torch.nn.functional.conv2d` plus the mask. Differentiable to any order in x, weight
    (dropped weights get a zero gradient) and bias, also under the transforms of `torch.func`. Under `torch.autocast`
    the arguments are cast as those of `conv2d` are. Each call packs the filter anew; a module that keeps the packed
    filter between calls is `prunekit.nn.MaskedConv2d`.

    Args:
        x: [N, C, H, W] or [C, H, W].
        weight: [K, C / groups, R, S], of x's dtype.
        mask: bool, of weight's shape, True = kept.
        bias: [K] or None.
        stride: int or pair.
        padding: int, pair, "valid" or "same" (zeros).
        dilation: int or pair.
        groups: number of channel groups.

    Returns:
        [N, K, P, Q] (or [K, P, Q] for unbatched x), of x's dtype, with nn.Conv2d's output size and memory format.

    Raises:
        InputError: shapes, dtypes, devices or the geometry do not fit; the sentence says which.
    """
    unbatched = x.dim() == 3
    if unbatched:
        x = x.unsqueeze(0)
    stride, dilation = pair("stride", stride), pair("dilation", dilation)
    x, weight = cast_for_autocast(x), cast_for_autocast(weight)
    bias = None if bias is None else cast_for_autocast(bias)
    if not is_traced():  # where sizes are tensors; the op checks them again
        _check_arguments(x, weight, mask, bias, stride, dilation, groups)
    before, padding = split_padding(padding, (weight.shape[2], weight.shape[3]), stride, dilation)
    if any(before):
        x = F.pad(x, before)
    if not is_traced():
        conv_output_size(x.shape, weight.shape, stride, padding, dilation)
    y = convolve(x, weight, mask, bias, stride, padding, dilation, groups)
    return y.squeeze(0) if unbatched else y


def _check_arguments(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> None:
    if x.dim() != 4 or weight.dim() != 4:
        raise InputError(
            f"masked_conv2d expects x [N, C, H, W] or [C, H, W] and weight [K, C / groups, R, S]; "
            f"got x {tuple(x.shape)} and weight {tuple(weight.shape)}."
        )
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise InputError(
            f"masked_conv2d expects a bool mask of the weight's shape {tuple(weight.shape)}; "
            f"got {mask.dtype} of shape {tuple(mask.shape)}."
        )
    if min(stride) < 1 or min(dilation) < 1 or groups < 1:
        raise InputError(
            f"masked_conv2d expects stride, dilation and groups of at least 1; "
            f"got stride {stride}, dilation {dilation}, groups {groups}."
        )
    if x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise InputError(
            f"masked_conv2d with groups={groups} expects {weight.shape[1] * groups} input channels and output "
            f"channels divisible by {groups}; got {x.shape[1]} and {weight.shape[0]}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"masked_conv2d expects a bias [{weight.shape[0]}]; got {tuple(bias.shape)}.")
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if len({t.dtype for t in tensors}) > 1 or not x.dtype.is_floating_point:
        raise InputError(
            "masked_conv2d expects x, weight and bias of one floating-point dtype; "
            f"got {', '.join(str(t.dtype) for t in tensors)}."
        )
    if len({t.device for t in [*tensors, mask]}) > 1:
        raise InputError(
            "masked_conv2d expects x, weight, mask and bias on one device; "
            f"got {', '.join(str(t.device) for t in [x, weight, mask])}."
        )


@fallback("masked_conv2d")
def masked_conv2d_reference(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """Compute the op with torch's dense convolution; exact in the masked sense for inf and nan too.

    Where x is finite, a zero weight is as good as a dropped one. Elsewhere 0 · inf would be nan, so each output
    channel gathers the columns it keeps: slow, and only there. The sum is a cheap test: it is finite only if
    every element is.
    """
    kept = torch.where(mask, weight, 0)
    memory_format = conv_memory_format(x, weight)
    if is_finite(x):
        return F.conv2d(x, kept, bias, *geometry).contiguous(memory_format=memory_format)
    stride, padding, dilation, groups = geometry
    n, size = x.shape[0], conv_output_size(x.shape, weight.shape, stride, padding, dilation)
    columns = F.unfold(x, tuple(weight.shape[2:]), tuple(dilation), tuple(padding), tuple(stride))  # [N, C·R·S, P·Q]
    columns = columns.view(n, groups, -1, columns.shape[-1])
    rows = _masked_product(kept.flatten(1), mask.flatten(1), columns, groups)
    y = rows.view(n, -1, *size) if bias is None else rows.view(n, -1, *size) + bias.view(-1, 1, 1)
    return y.contiguous(memory_format=memory_format)


def is_finite(x: Tensor) -> bool:
    """Tell whether every element is finite, by their sum; half precision's is one of float32, which is not exceeded."""
    return bool(x.sum(dtype=torch.float32 if x.itemsize < 4 else x.dtype).isfinite())


def _masked_product(matrix: Tensor, mask: Tensor, columns: Tensor, groups: int) -> Tensor:
    """Multiply [M, T] by columns [N, groups, T, L] over kept entries only: [N, M, L]; M is split over groups."""
    per_group = matrix.shape[0] // groups
    out = columns.new_zeros(columns.shape[0], matrix.shape[0], columns.shape[-1])
    for row in range(matrix.shape[0]):
        taps = mask[row].nonzero().squeeze(1)
        out[:, row] = matrix[row, taps] @ columns[:, row // per_group, taps]
    return out


@fallback("masked_conv2d_input_grad")
def masked_conv2d_input_grad_reference(
    grad: Tensor, weight: Tensor, mask: Tensor, x_shape: list[int], *geometry: Any
) -> Tensor:
    """Compute dL/dx [N, C, H, W] with torch's dense gradient; where dL/dy is inf or nan, gather kept weights."""
    kept = torch.where(mask, weight, 0)
    memory_format = conv_memory_format(grad, weight)
    if is_finite(grad):
        return dense_input_grad(grad, kept, x_shape, *geometry).contiguous(memory_format=memory_format)
    stride, padding, dilation, groups = geometry
    taps = weight[0].numel()
    # Transposing each group's block turns "rows that a tap feeds" into the gathered dimension: [groups·T, K/groups].
    transposed = kept.view(groups, -1, taps).transpose(1, 2).reshape(groups * taps, -1)
    transposed_mask = mask.view(groups, -1, taps).transpose(1, 2).reshape(groups * taps, -1)
    columns = grad.reshape(grad.shape[0], groups, -1, grad.shape[2] * grad.shape[3])
    rows = _masked_product(transposed, transposed_mask, columns, groups)  # [N, C·R·S, P·Q]
    size, kernel_size = tuple(x_shape[2:]), tuple(weight.shape[2:])
    folded = F.fold(rows, size, kernel_size, tuple(dilation), tuple(padding), tuple(stride))
    return folded.contiguous(memory_format=memory_format)


@fallback("masked_conv2d_weight_grad")
def _weight_grad_reference(grad: Tensor, x: Tensor, weight: Tensor, mask: Tensor, *geometry: Any) -> Tensor:
    dense = _convolution_backward(grad, x, weight, (False, True), *geometry)[1]
    return torch.where(mask, dense, 0).contiguous()


def dense_input_grad(grad: Tensor, weight: Tensor, x_shape: list[int], *geometry: Any) -> Tensor:
    """Compute dL/dx of shape `x_shape` with torch's dense kernel, zeros of the weight included."""
    return _convolution_backward(grad, grad.new_empty(x_shape), weight, (True, False), *geometry)[0]


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool], *geometry: Any
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation, groups = geometry
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, [*wanted, False]
    )
    return grad_x, grad_weight


@fake("masked_conv2d")
def _(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    size = conv_output_size(x.shape, weight.shape, *geometry[:3])
    y = x.new_empty((x.shape[0], weight.shape[0], *size))
    return y.contiguous(memory_format=conv_memory_format(x, weight))


@fake("masked_conv2d_input_grad")
def _(grad: Tensor, weight: Tensor, mask: Tensor, x_shape: list[int], *_: object) -> Tensor:
    return grad.new_empty(x_shape).contiguous(memory_format=conv_memory_format(grad, weight))


@fake("masked_conv2d_weight_grad")
def _(grad: Tensor, x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


register()
for _device_type, _key in DEVICE_TYPES.items():
    kernel("masked_conv2d", _key)(under_autocast(_device_type))


def _native(*arguments: object) -> Tensor:
    y: Tensor = torch.ops.prunekit.masked_conv2d(*arguments)
    return y


#: What computes the op, slowest first: tests compare them, benches time them. "native" is the dispatcher's choice
#: and equals the reference while the extension is not there (see `prunekit.ops.native_status`).
IMPLEMENTATIONS: dict[str, Callable[..., Tensor]] = {
    "reference": masked_conv2d_reference,
    "native": _native,
}
