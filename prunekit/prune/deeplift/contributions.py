"""Contributions of a convolution's weights, picked up while multipliers travel backwards through the model.

With multipliers m at the output and Δx = x - x_ref at the input, an image's contribution of one weight is

    C[o, i, r, s] = W[o, i, r, s] · Σ_p m_o(p) · Δx_i(p·stride + (r, s)),

the weight times the weight gradient of a convolution whose input is Δx and whose output gradient is m.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from prunekit.errors import InputError
from prunekit.ops.conv_arguments import IntPair, pair, split_padding
from prunekit.prune.deeplift.replay import Call, apply_function

Sink = Callable[[str, int, Tensor], None]


class Filter(NamedTuple):
    """What a convolution does: weight [K, C / groups, R, S], bias [K], and the rest in torch's order."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __call__(self, x: Tensor) -> Tensor:
        """Convolve x [N, C, H, W]."""
        return torch.conv2d(x, *self)

    def input_gradient(self, shape: torch.Size, grad: Tensor) -> Tensor:
        """Return the gradient at an input of this shape, for `grad` at the output."""
        gradient: Tensor = conv2d_input(list(shape), self.weight, grad, *self[2:])  # type: ignore[no-untyped-call]
        return gradient

    def weight_gradient(self, x: Tensor, grad: Tensor) -> Tensor:
        """Return the gradient at the weight, for the input x and `grad` at the output."""
        shape = list(self.weight.shape)
        gradient: Tensor = conv2d_weight(x, shape, grad, *self[2:])  # type: ignore[no-untyped-call]
        return gradient


def read_conv2d(call: Call) -> tuple[Tensor, Tensor, Filter]:
    """Return input, reference and filter of a call of `torch.conv2d`; lopsided padding is already done."""
    return _read_conv2d(call.args[0], call.reference[0], *call.args[1:], **call.kwargs)


def _read_conv2d(
    x: Tensor,
    x_ref: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Filter]:
    strides, dilations = pair("stride", stride), pair("dilation", dilation)
    lopsided, symmetric = split_padding(padding, weight.shape[2:], strides, dilations)
    if any(lopsided):
        x, x_ref = functional.pad(x, lopsided), functional.pad(x_ref, lopsided)
    return x, x_ref, Filter(weight, bias, strides, symmetric, dilations, groups)


class ConvFunction(torch.autograd.Function):
    """A convolution that keeps Δx instead of x and hands it out together with the multipliers."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor, conv: Filter, collect: Callable[[Tensor, Tensor], None], is_first: bool
    ) -> Tensor:
        """Return conv(x)."""
        ctx.save_for_backward(delta)
        ctx.conv, ctx.collect, ctx.is_first = conv, collect, is_first
        return conv(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, multiplier: Tensor) -> tuple[Tensor | None, ...]:
        """Hand out Δx and the multipliers, and send the multipliers on, unless there is nothing before."""
        (delta,) = ctx.saved_tensors
        ctx.collect(delta, multiplier)
        grad_x = None if ctx.is_first else ctx.conv.input_gradient(delta.shape, multiplier)
        return grad_x, None, None, None, None


class _Part(NamedTuple):
    """What one call adds to the contributions of a layer; rows n, n + N, … belong to image n."""

    conv: Filter
    delta: Tensor
    multiplier: Tensor
    is_first: bool


class WeightContributions:
    """Gathers the contributions of one batch and hands them on image by image.

    A weight that several calls share gets the sum of its contributions in all of them.

    Args:
        layers: layer name → weight, the tensor that its convolutions read.
        num_images: images in the batch.
        sink: called with layer name, image and the signed contributions of the weight's shape, to be left as they are.

    Attributes:
        model_input: the tensor that enters the model. Convolutions that read it send no multipliers further back.
        first_sum: Σ C per image over the convolutions that read `model_input`, float64 [N].
        first_size: Σ |C| likewise.
    """

    def __init__(self, layers: Mapping[str, Tensor], num_images: int, sink: Sink) -> None:
        self.num_images = num_images
        self.sink = sink
        self.model_input: Tensor | None = None
        self.first_sum = torch.zeros(num_images, dtype=torch.float64)
        self.first_size = torch.zeros(num_images, dtype=torch.float64)
        self._names: dict[int, list[str]] = {}
        for name, weight in layers.items():
            self._names.setdefault(id(weight), []).append(name)
        self._num_calls: Counter[int] = Counter()
        self._pending: dict[int, list[_Part]] = {}

    def is_layer(self, weight: Tensor) -> bool:
        """Whether the weight belongs to one of the layers."""
        return id(weight) in self._names

    def convolve(self, x: Tensor, delta: Tensor, conv: Filter, layer_weight: Tensor, is_first: bool) -> Tensor:
        """Convolve x and note its contributions, for a weight or a part of the weight `layer_weight`.

        Args:
            x: input [M·N, C, H, W]; rows n, n + N, … belong to image n.
            delta: x minus its reference.
            conv: the filter, whose weight may be a part of the layer's.
            layer_weight: the weight of the layer that the contributions count for.
            is_first: whether x is the model's input.
        """
        key = id(layer_weight)
        self._num_calls[key] += 1

        def collect(delta: Tensor, multiplier: Tensor) -> None:
            parts = self._pending.setdefault(key, [])
            parts.append(_Part(conv, delta, multiplier, is_first))
            if len(parts) == self._num_calls[key]:
                self._hand_on(key)

        return apply_function(ConvFunction, x, delta, conv, collect, is_first)

    def finish(self) -> None:
        """Hand on what waits for calls that the target does not depend on.

        Raises:
            InputError: a layer's weight met no convolution at all.
        """
        unused = [name for key, names in self._names.items() for name in names if not self._num_calls[key]]
        if unused:
            raise InputError(
                f"DeepLIFT expected the model to use every convolution, but the weight of {unused[0]!r} met no conv2d."
            )
        for key in list(self._pending):
            self._hand_on(key)

    def _hand_on(self, key: int) -> None:
        parts = self._pending.pop(key)
        for image in range(self.num_images):
            contributions = self._of_image(image, parts[0])
            for part in parts[1:]:
                contributions += self._of_image(image, part)
            for name in self._names[key]:
                self.sink(name, image, contributions)

    def _of_image(self, image: int, part: _Part) -> Tensor:
        rows = slice(image, None, self.num_images)
        contributions = part.conv.weight_gradient(part.delta[rows], part.multiplier[rows]).mul_(part.conv.weight)
        if part.is_first:
            self.first_sum[image] += contributions.sum(dtype=torch.float64).cpu()
            self.first_size[image] += contributions.abs().sum(dtype=torch.float64).cpu()
        return contributions
