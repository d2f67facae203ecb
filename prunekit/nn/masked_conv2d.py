"""MaskedConv2d: nn.Conv2d's signature and a mask; fast where nothing needs a gradient."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import effective
from prunekit.ops import masked_conv2d, native
from prunekit.ops.autocasting import cast_dtype
from prunekit.ops.conv_arguments import pair, split_padding
from prunekit.ops.masked_conv2d_autograd import is_traced, is_transformed
from prunekit.ops.memory_format import is_channels_last
from prunekit.ops.packed_conv2d import ROW_CHOICES, activate

_PACKABLE_DTYPES = (torch.float32, torch.float64)
_Conv = TypeVar("_Conv", bound=nn.Conv2d)


class MaskedConv2d(nn.Conv2d):
    """A convolution whose dropped weights cost nothing and contribute nothing.

    It takes nn.Conv2d's arguments, holds a bool buffer `mask` of the weight's shape (True = kept, all True at
    first) and is a drop-in for nn.Conv2d in training: the gradient of a dropped weight is zero. In eval mode, and
    where no gradient is asked for, it runs on a packed filter that is built once and rebuilt when weight or mask
    change. Changes through `.data`, which torch does not count, are seen after `train()`, `eval()` or `pack()`.

    Attributes:
        mask: bool [K, C / groups, R, S].
        activation: applied to the output, "none" or "leaky_relu" (with `negative_slope`, 0 meaning ReLU).
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self.register_buffer("mask", torch.ones_like(self.weight, dtype=torch.bool))
        self.activation, self.negative_slope = "none", 0.0
        self._rows = 0
        self._packed: tuple[Tensor, Tensor] | None = None
        self._packed_from: tuple[int, ...] = ()

    @classmethod
    def from_dense(cls, conv: nn.Conv2d, mask: Tensor | None = None) -> MaskedConv2d:
        """Copy a dense convolution; its mode (training or eval) and frozen parameters are kept.

        Args:
            conv: any nn.Conv2d, also one pruned with torch.nn.utils.prune or parametrized.
            mask: bool, of conv.weight's shape, True = kept; None: the exact zeros of conv.weight are dropped.

        Raises:
            InputError: conv is no nn.Conv2d, or the mask does not fit.
        """
        if not isinstance(conv, nn.Conv2d):
            raise InputError(f"MaskedConv2d.from_dense expects an nn.Conv2d; got {type(conv).__name__}.")
        weight = effective(conv).detach()
        mask = weight != 0 if mask is None else mask
        if mask.dtype != torch.bool or mask.shape != weight.shape:
            raise InputError(
                f"MaskedConv2d.from_dense expects a bool mask of the weight's shape {tuple(weight.shape)}; "
                f"got {mask.dtype} of shape {tuple(mask.shape)}."
            )
        masked = _copy_as(cls, conv, weight.clone())
        masked.mask = mask.to(weight.device, copy=True)
        return masked.train(conv.training)

    def to_dense(self) -> nn.Conv2d:
        """Copy into a plain nn.Conv2d with zeros where weights are dropped; a fused activation is not part of it."""
        dense = _copy_as(nn.Conv2d, self, torch.where(self.mask, effective(self).detach(), 0))
        return dense.train(self.training)

    @property
    def density(self) -> float:
        """Fraction of weights kept."""
        return self.mask.sum().item() / max(1, self.mask.numel())

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W] or [C, H, W]; see `prunekit.masked_conv2d`."""
        x, padding = self._pad(x)
        if self._can_use_packed(x):
            return self._forward_packed(x, padding)
        stride, dilation = self._pair("stride"), self._pair("dilation")
        y = masked_conv2d(x, self.weight, self.mask, self.bias, stride, padding, dilation, self.groups)
        return activate(y, self.activation, self.negative_slope)

    def pack(self, rows: int = 0) -> None:
        """Build the packed filter now (eval mode builds it at the first call).

        Args:
            rows: output channels that share input loads, 1 or 4; 0 chooses by density. Kept for later rebuilds.

        Raises:
            InputError: rows is none of these, or the compiled extension is not there or cannot take the weight.
        """
        if rows not in (0, *ROW_CHOICES):
            raise InputError(f"rows must be 0 (choose) or one of {ROW_CHOICES}; got {rows}.")
        if not self._is_packable():
            reason = native.native_status().reason or f"weights are {self.weight.dtype} on {self.weight.device}"
            raise InputError(f"the filter cannot be packed: {reason}.")
        self._rows = rows
        with torch.no_grad():
            self._packed = torch.ops.prunekit.pack_filter(self.weight, self.mask, self.groups, rows, 0)
        self._packed_from = self._versions()

    def train(self, mode: bool = True) -> MaskedConv2d:
        """Set the mode and forget the packed filter."""
        self._packed = None
        return super().train(mode)

    def extra_repr(self) -> str:  # noqa: D102
        activation = "" if self.activation == "none" else f", {self.activation}({self.negative_slope:g})"
        density = math.nan if self.mask.is_meta else self.density
        base = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{base}, density={density:.3f}{activation}"

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self._packed = None  # moved or cast parameters need a filter of their own
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _pair(self, name: str) -> tuple[int, int]:
        value = getattr(self, name)
        return value if type(value) is tuple and len(value) == 2 else pair(name, value)

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return x with the padding that the op has no word for, and the symmetric rest (height, width)."""
        if self.padding_mode != "zeros":
            return F.pad(x, self._reversed_padding_repeated_twice, self.padding_mode), (0, 0)
        padding = self.padding if isinstance(self.padding, str) else self._pair("padding")
        if not isinstance(padding, str) and min(padding) >= 0:
            return x, padding
        kernel_size, stride, dilation = (self._pair(name) for name in ("kernel_size", "stride", "dilation"))
        before, symmetric = split_padding(padding, kernel_size, stride, dilation)
        return F.pad(x, before) if any(before) else x, symmetric

    def _is_packable(self) -> bool:
        return (
            native.is_available()
            and self.weight.device.type == "cpu"
            and self.weight.dtype in _PACKABLE_DTYPES
            and self.weight.numel() > 0
        )

    def _can_use_packed(self, x: Tensor) -> bool:
        needs_grad = torch.is_grad_enabled() and (
            x.requires_grad or self.weight.requires_grad or (self.bias is not None and self.bias.requires_grad)
        )
        weight = self.weight
        is_alike = x.dtype == weight.dtype or cast_dtype(x) == cast_dtype(weight)
        if self.training or needs_grad or x.device != weight.device or not is_alike:
            return False
        if is_traced() or is_transformed():
            return False  # a trace keeps the filter as a constant, whatever becomes of the weight, and has no gradients
        if torch.compiler.is_compiling():
            return self._packed is not None  # versions cannot be read in a graph; packing belongs before it
        return self._is_packable()

    def _versions(self) -> tuple[int, ...]:
        tensors = (self.weight, self.mask)
        return (*(-1 if t.is_inference() else t._version for t in tensors), *(t.data_ptr() for t in tensors))

    def _forward_packed(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        if not torch.compiler.is_compiling() and (self._packed is None or self._packed_from != self._versions()):
            self.pack(self._rows)
        assert self._packed is not None
        dtype, unbatched = cast_dtype(x), x.dim() == 3
        x = x.unsqueeze(0) if unbatched else x
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InputError(
                f"MaskedConv2d expects x [N, {self.in_channels}, H, W] or [{self.in_channels}, H, W]; "
                f"got {tuple(x.shape)}."
            )
        y: Tensor = torch.ops.prunekit.packed_conv2d(
            x if x.dtype == self.weight.dtype else x.to(self.weight.dtype),
            *self._packed,
            self.bias,
            self.weight.shape,
            self._pair("stride"),
            padding,
            self._pair("dilation"),
            self.groups,
            self.activation,
            self.negative_slope,
        )
        # Under autocast the packed filter still computes in the weight's dtype, and only what it answers is rounded.
        y = y if y.dtype == dtype else y.to(dtype)
        y = y.contiguous(memory_format=torch.channels_last) if is_channels_last(self.weight) else y
        return y.squeeze(0) if unbatched else y


def _copy_as(kind: type[_Conv], conv: nn.Conv2d, weight: Tensor) -> _Conv:
    """Make a `kind` of conv's geometry with this weight and a copy of conv's bias; frozen parameters stay frozen."""
    copy = kind(
        conv.in_channels,
        conv.out_channels,
        pair("kernel_size", conv.kernel_size),
        pair("stride", conv.stride),
        conv.padding if isinstance(conv.padding, str) else pair("padding", conv.padding),
        pair("dilation", conv.dilation),
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        "meta",
        weight.dtype,
    )
    with torch.enable_grad():  # where it is computed, it requires a gradient if what it is computed from does
        requires_grad = effective(conv).requires_grad
        bias = None if conv.bias is None else effective(conv, "bias")
    copy.weight = nn.Parameter(weight, requires_grad)
    if bias is not None:
        copy.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return copy
