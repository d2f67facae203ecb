"""Masked convolution on a condensed filter: gathered inputs times dense columns on tensor cores.

    y[n, k, p, q] = residual + activation(
        bias[k] + Σ_kept weight[k, c, r, s] · x[n, c, p·stride + r·dilation − padding, …])

or, where the activation comes last, activation(residual + bias[k] + Σ …).
Sums are float32. A weight that is not kept contributes nothing, not even where the input is inf or nan: a tile that
holds such inputs adds them one by one, over kept weights only.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from prunekit_kernels.condensed_filter import GROUP_ROWS, CondensedFilter, uncondense

Pair = tuple[int, int]
#: Activations, and the number by which the kernel knows them: before the residual is added, or after it.
ACTIVATIONS = {"none": 0, "leaky_relu": 1, "leaky_relu_last": 2}
#: The bits that inf and nan, and no other values, all have set.
EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}


@triton.jit
def _special_products(weights, inputs):
    """Multiply kept weights [M] by those inputs [N] that are inf or nan; all else gives 0."""
    # -0.0 is the one value whose inverse is -inf: it marks weights that are not kept.
    is_kept = (weights != 0.0) | (1.0 / weights > 0.0)
    is_special = ((inputs.to(tl.int32, bitcast=True) & 0x7F800000) == 0x7F800000)[None, :]
    return tl.where(is_kept[:, None] & is_special, weights[:, None] * inputs[None, :], 0.0)


@triton.jit
def _leaky_relu(sums, negative_slope):
    negative = tl.where(sums < 0.0, 0.0, sums) if negative_slope == 0.0 else sums * negative_slope
    return tl.where(sums < 0.0, negative, sums)


@triton.jit
def _condensed_conv2d_kernel(
    x_ptr,
    rows_ptr,
    starts_ptr,
    columns_ptr,
    values_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    num_pixels,
    h,
    w,
    p,
    q,
    x_stride_n,
    x_stride_c,
    x_stride_h,
    x_stride_w,
    y_stride_n,
    y_stride_k,
    y_stride_p,
    y_stride_q,
    negative_slope,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    EXPONENT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    group = tl.program_id(1)
    pixel = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_pixel = pixel < num_pixels
    image, place = pixel // (p * q), pixel % (p * q)
    top, left = place // q * STRIDE_H - PADDING_H, place % q * STRIDE_W - PADDING_W
    x_image = x_ptr + image.to(tl.int64) * x_stride_n  # [BLOCK_N]
    lane_m, lane_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    last = tl.load(starts_ptr + group + 1)
    for first in range(tl.load(starts_ptr + group), last, BLOCK_K):
        column = first + lane_k
        is_column = column < last
        code = tl.load(columns_ptr + column, mask=is_column, other=0)
        line = top[None, :] + ((code >> 8 & 255) * DILATION_H)[:, None]
        place_w = left[None, :] + ((code & 255) * DILATION_W)[:, None]
        in_bounds = (line >= 0) & (line < h) & (place_w >= 0) & (place_w < w) & is_pixel[None, :] & is_column[:, None]
        at = (code >> 16).to(tl.int64)[:, None] * x_stride_c + line * x_stride_h + place_w * x_stride_w
        inputs = tl.load(x_image[None, :] + at, mask=in_bounds, other=0.0)  # [BLOCK_K, BLOCK_N]
        weights = tl.load(
            values_ptr + column[None, :] * BLOCK_M + lane_m[:, None], mask=is_column[None, :], other=-0.0
        )  # [BLOCK_M, BLOCK_K]
        if inputs.dtype.primitive_bitwidth == 16:
            bits = inputs.to(tl.int16, bitcast=True)
        else:
            bits = inputs.to(tl.int32, bitcast=True)
        is_finite = (bits & EXPONENT) != EXPONENT
        finite = tl.where(is_finite, bits, 0).to(inputs.dtype, bitcast=True)
        sums = tl.dot(weights, finite, sums, input_precision=PRECISION)
        if tl.min(is_finite.to(tl.int32)) == 0:
            for step in range(min(BLOCK_K, last - first)):
                tap = tl.load(columns_ptr + first + step)
                tap_line, tap_place = top + (tap >> 8 & 255) * DILATION_H, left + (tap & 255) * DILATION_W
                is_inside = (tap_line >= 0) & (tap_line < h) & (tap_place >= 0) & (tap_place < w) & is_pixel
                tap_at = (tap >> 16).to(tl.int64) * x_stride_c + tap_line * x_stride_h + tap_place * x_stride_w
                tap_inputs = tl.load(x_image + tap_at, mask=is_inside, other=0.0).to(tl.float32)
                tap_weights = tl.load(values_ptr + (first + step) * BLOCK_M + lane_m).to(tl.float32)
                sums += _special_products(tap_weights, tap_inputs)
    row = tl.load(rows_ptr + group * BLOCK_M + lane_m)
    is_row = row >= 0
    if HAS_BIAS:
        sums += tl.load(bias_ptr + row, mask=is_row, other=0.0).to(tl.float32)[:, None]
    if ACTIVATION == 1:
        sums = _leaky_relu(sums, negative_slope)
    out = image.to(tl.int64) * y_stride_n + place // q * y_stride_p + place % q * y_stride_q
    out = out[None, :] + row.to(tl.int64)[:, None] * y_stride_k
    is_stored = is_row[:, None] & is_pixel[None, :]
    if HAS_RESIDUAL:
        sums += tl.load(residual_ptr + out, mask=is_stored, other=0.0).to(tl.float32)
    if ACTIVATION == 2:
        sums = _leaky_relu(sums, negative_slope)
    tl.store(y_ptr + out, sums.to(y_ptr.dtype.element_ty), mask=is_stored)


class Cut(NamedTuple):
    """How the work is cut into blocks."""

    block_n: int  # pixels of a block
    block_k: int  # columns of a step
    num_warps: int
    num_stages: int  # steps whose loads are under way


#: Cuts worth comparing on a device.
CUTS = (
    Cut(64, 16, 2, 3),
    Cut(64, 32, 4, 3),
    Cut(128, 16, 4, 3),
    Cut(128, 32, 4, 3),
    Cut(128, 32, 4, 4),
    Cut(256, 16, 4, 3),
    Cut(256, 32, 8, 3),
)
_TUNED_KERNEL: Any = None


def _kernel(cut: Cut | None) -> tuple[Any, dict[str, int]]:
    """The autotuned kernel, or that of a cut; in the interpreter, which cannot tune, one with a small cut."""
    global _TUNED_KERNEL
    if cut is not None:
        blocks = {"BLOCK_N": cut.block_n, "BLOCK_K": cut.block_k}
        return _condensed_conv2d_kernel, {**blocks, "num_warps": cut.num_warps, "num_stages": cut.num_stages}
    if not isinstance(_condensed_conv2d_kernel, triton.runtime.JITFunction):
        return _condensed_conv2d_kernel, {"BLOCK_N": 32, "BLOCK_K": 16}
    if _TUNED_KERNEL is None:
        keys = ["num_pixels", "p", "q", "STRIDE_H", "STRIDE_W", "PRECISION"]
        configs = [triton.Config({"BLOCK_N": n, "BLOCK_K": k}, num_warps=w, num_stages=s) for n, k, w, s in CUTS]
        _TUNED_KERNEL = triton.autotune(configs=configs, key=keys)(_condensed_conv2d_kernel)
    return _TUNED_KERNEL, {}


def condensed_conv2d(
    x: Tensor,
    filter: CondensedFilter,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: Literal["none", "leaky_relu", "leaky_relu_last"] = "none",
    negative_slope: float = 0.0,
    precision: Literal["tf32", "ieee"] = "ieee",
    out: Tensor | None = None,
    cut: Cut | None = None,
) -> Tensor:
    """Convolve on a GPU; contiguous and channels-last inputs run as they are.

    Args:
        x: [N, C, H, W], of the filter's dtype and on its device.
        filter: of `condense`.
        bias: [K] or None.
        residual: of the output's shape, added behind the activation or before it, or None.
        stride: pair.
        padding: pair, zeros.
        dilation: pair.
        activation: "none", "leaky_relu", or "leaky_relu_last" behind the residual; a slope of 0 is ReLU.
        negative_slope: of the activation.
        precision: of float32: tensor cores' "tf32", or full "ieee"; other dtypes ignore it.
        out: written and returned instead of a new tensor; of the output's shape and x's dtype, any strides.
        cut: of the work; None compares several on the device, once for each size.

    Returns:
        [N, K, P, Q] of x's dtype and memory format.

    Raises:
        ValueError: x does not fit the filter.
    """
    shape = _output_shape(x, filter, stride, padding, dilation)
    if out is not None and (out.shape != shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(f"condensed_conv2d expects out of shape {tuple(shape)} in {x.dtype}; got {tuple(out.shape)}.")
    y = _empty_like(x, shape) if out is None else out
    if residual is not None and residual.shape != y.shape:
        raise ValueError(f"condensed_conv2d expects a residual of shape {tuple(y.shape)}; got {tuple(residual.shape)}.")
    if residual is not None and residual.stride() != y.stride():
        residual = torch.empty_like(y).copy_(residual)
    num_pixels = y.shape[0] * y.shape[2] * y.shape[3]
    if num_pixels == 0:
        return y
    kernel, numbers = _kernel(cut)
    # Triton launches on the current device, whatever device the tensors are on.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[lambda meta: (triton.cdiv(num_pixels, meta["BLOCK_N"]), filter.num_row_groups)](
            x,
            filter.rows,
            filter.starts,
            filter.columns,
            filter.values,
            x if bias is None else bias.contiguous(),
            x if residual is None else residual,
            y,
            num_pixels,
            *x.shape[2:],
            *y.shape[2:],
            *x.stride(),
            *y.stride(),
            float(negative_slope),
            *stride,
            *padding,
            *dilation,
            HAS_BIAS=bias is not None,
            HAS_RESIDUAL=residual is not None,
            ACTIVATION=ACTIVATIONS[activation],
            PRECISION=precision,
            EXPONENT=EXPONENTS[x.dtype],
            BLOCK_M=GROUP_ROWS,
            **numbers,
        )
    return y


def _output_shape(x: Tensor, filter: CondensedFilter, stride: Pair, padding: Pair, dilation: Pair) -> torch.Size:
    k, c, r, s = filter.shape
    if x.dim() != 4 or x.shape[1] != c * filter.groups or x.dtype != filter.values.dtype:
        raise ValueError(
            f"condensed_conv2d expects x [N, {c * filter.groups}, H, W] in {filter.values.dtype}; "
            f"got {x.dtype} of shape {tuple(x.shape)}."
        )
    if x.device != filter.values.device:
        raise ValueError(f"condensed_conv2d expects x on {filter.values.device}; got {x.device}.")
    spans = [
        size + 2 * pad - far * (taps - 1) - 1
        for size, pad, far, taps in zip(x.shape[2:], padding, dilation, (r, s), strict=True)
    ]
    if min(spans) < 0:
        raise ValueError(f"the dilated kernel {r}×{s} does not fit the padded input {tuple(x.shape[2:])}.")
    return torch.Size([x.shape[0], k, *(span // step + 1 for span, step in zip(spans, stride, strict=True))])


def _empty_like(x: Tensor, shape: torch.Size) -> Tensor:
    is_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if is_channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def condensed_conv2d_reference(
    x: Tensor,
    filter: CondensedFilter,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    activation: Literal["none", "leaky_relu"] = "none",
    negative_slope: float = 0.0,
) -> Tensor:
    """Compute the same for finite inputs by torch's dense convolution in float32; no activation behind the residual."""
    weight, _ = uncondense(filter)
    wide_bias = None if bias is None else bias.float()
    y = F.conv2d(x.float(), weight.float(), wide_bias, stride, padding, dilation, filter.groups)
    if activation != "none":
        y = F.leaky_relu(y, negative_slope)
    return (y if residual is None else y + residual.float()).to(x.dtype)
