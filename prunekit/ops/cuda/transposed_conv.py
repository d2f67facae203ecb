"""The gradient to a convolution's input as one convolution of stride 1, for any stride and dilation.

    dL/dx[c, i] = Σ over k, r, p with p · stride + r · dilation − padding = i of W[k, c, r] · g[k, p]      (one axis)

Let i + padding = stride · j + phase. Tap r reaches the phase r · dilation mod stride only, and there it reads
g[j − ⌊r · dilation / stride⌋]. So every phase of dL/dx is a convolution of stride 1 over g with some of the taps. All
phases together are *one* convolution whose output channels are (channel, phase): the taps that a phase does not have
are zeros of its filter, and zeros cost a record filter nothing. That is one launch with stride_h · stride_w times as
many output channels to share among warps, where a convolution per phase would be as many short launches, and a gradient
spread out with zeros between its pixels would multiply stride_h · stride_w times more than needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunekit.ops.memory_format import conv_memory_format


@dataclass(frozen=True)
class TransposedAxis:
    """One axis of the transposed convolution.

    Attributes:
        kernel, stride, dilation, padding: of the convolution that is transposed.
        phases: those that some tap reaches, in order.
        taps: of the transposed kernel.
        spacing: its dilation.
    """

    kernel: int
    stride: int
    dilation: int
    padding: int
    phases: tuple[int, ...]
    taps: int
    spacing: int

    @classmethod
    def of(cls, kernel: int, stride: int, dilation: int, padding: int) -> TransposedAxis:
        """Derive the axis."""
        places = [divmod(r * dilation, stride) for r in range(kernel)]
        spacing = math.gcd(*(back for back, _ in places)) or 1
        phases = tuple(sorted({phase for _, phase in places}))
        return cls(kernel, stride, dilation, padding, phases, places[-1][0] // spacing + 1, spacing)

    def widened(self, taps: int) -> TransposedAxis:
        """Return the axis with more taps, zeros at the front."""
        return TransposedAxis(self.kernel, self.stride, self.dilation, self.padding, self.phases, taps, self.spacing)

    @property
    def reach(self) -> int:
        """Pixels from the first to the last tap."""
        return self.spacing * (self.taps - 1)

    def place(self, r: int) -> tuple[int, int]:
        """Return (index of the phase, tap) where weight `r` of the convolution stands in the transposed one."""
        back, phase = divmod(r * self.dilation, self.stride)
        return self.phases.index(phase), self.taps - 1 - back // self.spacing

    def first(self, x_size: int, y_size: int) -> int:
        """Return the j of the transposed convolution's first pixel: the largest that leaves out nothing."""
        last = min(self.padding + x_size - 1, self.stride * (y_size - 1) + self.dilation * (self.kernel - 1))
        first = min(self.padding // self.stride, self.reach)
        while self.stride * (y_size + self.reach - first) <= last or y_size + self.reach < 2 * first + 1:
            first -= 1
        return first

    def span(self, phase: int, x_size: int, first: int, size: int) -> tuple[slice, slice]:
        """Return which pixels of x a phase makes, and from which of the `size` pixels of its own, j ≥ `first`."""
        begin = max(first, -((phase - self.padding) // self.stride))
        end = min(first + size - 1, (x_size - 1 + self.padding - phase) // self.stride)
        start = self.stride * begin + phase - self.padding
        count = max(0, end - begin + 1)
        stop = start + self.stride * (count - 1) + 1 if count else start
        return slice(start, stop, self.stride), slice(begin - first, begin - first + count)


@dataclass(frozen=True)
class TransposedConv:
    """Both axes, and the groups.

    Attributes:
        height: the first axis.
        width: the second.
        groups: of the convolution and of the transposed one.
    """

    height: TransposedAxis
    width: TransposedAxis
    groups: int

    @classmethod
    def of(
        cls,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> TransposedConv:
        """Derive it; small kernels become 3×3, whose nine inputs the record kernel loads at once."""
        height, width = (TransposedAxis.of(kernel_size[i], stride[i], dilation[i], padding[i]) for i in (0, 1))
        is_small = max(height.taps, width.taps) in (2, 3) and height.spacing == width.spacing == 1
        if is_small:
            height, width = height.widened(3), width.widened(3)
        return cls(height, width, groups)

    @property
    def num_phases(self) -> int:
        """Output channels for each channel of x."""
        return len(self.height.phases) * len(self.width.phases)

    @property
    def kernel_size(self) -> tuple[int, int]:
        """Taps of the transposed kernel."""
        return self.height.taps, self.width.taps

    @property
    def dilation(self) -> tuple[int, int]:
        """Of the transposed convolution; its stride is 1."""
        return self.height.spacing, self.width.spacing

    def output_size(self, x_size: Sequence[int], y_size: Sequence[int]) -> tuple[int, int]:
        """Return the height and width that the transposed convolution makes of a gradient of `y_size`."""
        axes = zip((self.height, self.width), x_size, y_size, strict=True)
        height, width = (y + axis.reach - 2 * axis.first(x, y) for axis, x, y in axes)
        return height, width

    def paddings(self, x_size: Sequence[int], y_size: Sequence[int]) -> tuple[int, int]:
        """Return the padding with which it runs on a gradient of `y_size`."""
        axes = zip((self.height, self.width), x_size, y_size, strict=True)
        height, width = (axis.reach - axis.first(x, y) for axis, x, y in axes)
        return height, width

    def sources(self, weight_shape: Sequence[int]) -> Tensor:
        """Return int64 [C · phases, K / groups, *kernel_size]: which weight of [K, C / groups, R, S] stands where.

        −1 where none does.
        """
        k, c, r, s = weight_shape
        index = np.arange(k * c * r * s).reshape(self.groups, k // self.groups, c, r, s)
        phases = len(self.height.phases), len(self.width.phases)
        out = np.full((self.groups, c, *phases, k // self.groups, *self.kernel_size), -1)
        for i in range(r):
            for j in range(s):
                (phase_h, tap_h), (phase_w, tap_w) = self.height.place(i), self.width.place(j)
                out[:, :, phase_h, phase_w, :, tap_h, tap_w] = index[..., i, j].transpose(0, 2, 1)
        return torch.from_numpy(out.reshape(-1, k // self.groups, *self.kernel_size))

    def run(self, convolve: Callable[[tuple[int, int]], Tensor], x_shape: Sequence[int], grad: Tensor) -> Tensor:
        """Return dL/dx [N, C, H, W].

        Args:
            convolve: runs the transposed convolution on grad with a padding.
            x_shape: [N, C, H, W].
            grad: dL/dy [N, K, P, Q].
        """
        n, c, *x_size = x_shape
        axes = self.height, self.width
        first_h, first_w = (axis.first(x, y) for axis, x, y in zip(axes, x_size, grad.shape[2:], strict=True))
        y = convolve((self.height.reach - first_h, self.width.reach - first_w))
        starts_at = zip(axes, (first_h, first_w), strict=True)
        is_whole = all(axis.stride == 1 and axis.padding == at for axis, at in starts_at)
        if is_whole and list(y.shape) == list(x_shape):
            return y
        by_phase = torch.unflatten(y, 1, (c, len(self.height.phases), len(self.width.phases)))
        grad_x = torch.empty(
            (n, c, *x_size),
            dtype=y.dtype,
            device=y.device,
            memory_format=conv_memory_format(y),
        ).zero_()
        for a, phase_h in enumerate(self.height.phases):
            to_h, from_h = self.height.span(phase_h, x_size[0], first_h, y.shape[2])
            for b, phase_w in enumerate(self.width.phases):
                to_w, from_w = self.width.span(phase_w, x_size[1], first_w, y.shape[3])
                grad_x[:, :, to_h, to_w] = by_phase[:, :, a, b, from_h, from_w]
        return grad_x
