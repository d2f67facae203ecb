"""Random problems for the record kernel: every kernel instantiation, odd sizes, empty rows, any cut into blocks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.ops.cuda.record.cost import MODEL, RecordLaunch, RecordProblem
from prunekit.ops.cuda.record.filter import pack_records, window_taps
from prunekit.ops.memory_format import conv_memory_format
from tests.support.emulated_kernels import Convolution, FilterCase
from tests.support.oracles import masked_conv2d_oracle

DENSITIES = (0.0, 0.005, 0.05, 0.1, 0.3, 0.6, 1.0)
KERNELS = ((3, 3), (3, 3), (1, 1), (5, 5), (1, 3), (4, 2), (7, 7))
_SHARED_BYTES = 64 * 1024
_ACTIVATIONS = (
    ("none", 0.0),
    ("leaky_relu", 0.1),
    ("leaky_relu", 0.0),
    ("leaky_relu_last", 0.0),
    ("leaky_relu_last", 0.2),
)


@dataclass(frozen=True)
class RandomConvolution:
    """A convolution, its mask and weight, and what a float64 loop makes of them."""

    conv: Convolution
    weight: Tensor
    mask: Tensor
    groups: int
    expected: Tensor


def random_convolutions(
    count: int, seed: int, max_size: int, dtypes: Sequence[torch.dtype] = (torch.float32,), most_channels: int = 44
) -> Iterator[tuple[RandomConvolution, random.Random]]:
    """Yield `count` convolutions in these dtypes in turn, and what draws the rest of the problem."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    while count:
        groups, c = draw.choice((1, 1, 1, 2, 3)), draw.randint(1, 20)
        k = draw.randint(1, draw.choice((20, most_channels)))
        r, s = draw.choice(KERNELS)
        stride = draw.choice(((1, 1), (1, 1), (2, 2), (draw.randint(1, 3), draw.randint(1, 3))))
        dilation = draw.choice(((1, 1), (1, 1), (draw.randint(1, 2), draw.randint(1, 3))))
        padding = draw.randint(0, 3), draw.randint(0, 3)
        n, h, w = draw.randint(1, 2), draw.randint(1, max_size), draw.randint(1, max_size)
        if h + 2 * padding[0] <= dilation[0] * (r - 1) or w + 2 * padding[1] <= dilation[1] * (s - 1):
            continue
        count -= 1
        dtype = dtypes[count % len(dtypes)]
        weight = torch.randn(groups * k, c, r, s, generator=generator).to(dtype)
        mask = torch.rand(weight.shape, generator=generator) < draw.choice(DENSITIES)
        if count % 3 == 0:
            mask[draw.randrange(groups * k)] = False
        x = torch.randn(n, groups * c, h, w, generator=generator).to(dtype)
        bias = torch.randn(groups * k, generator=generator).to(dtype) if draw.random() < 0.5 else None
        activation, slope = draw.choice(_ACTIVATIONS)
        x_here = x.to(memory_format=torch.channels_last) if draw.random() < 0.3 else x
        is_channels_last = conv_memory_format(x_here) == torch.channels_last
        expected = masked_conv2d_oracle(x, weight, mask, bias, stride, padding, dilation, groups)
        residual = torch.randn(expected.shape, generator=generator).to(dtype) if draw.random() < 0.3 else None
        expected = _finished(expected, residual, activation, slope)
        if residual is not None:
            residual = residual.to(memory_format=torch.channels_last) if is_channels_last else residual
        conv = Convolution(x_here, bias, residual, stride, padding, dilation, activation, slope, is_channels_last)
        yield RandomConvolution(conv, weight, mask, groups, expected), draw


def _finished(y: Tensor, residual: Tensor | None, activation: str, slope: float) -> Tensor:
    def leaky(y: Tensor) -> Tensor:
        return torch.where(y > 0, y, slope * y)

    y = leaky(y) if activation == "leaky_relu" else y
    y = y if residual is None else y + residual.double()
    return leaky(y) if activation == "leaky_relu_last" else y


def record_problems(count: int, seed: int, max_size: int = 26) -> Iterator[tuple[FilterCase, Tensor]]:
    """Yield `count` problems with what a float64 loop makes of them."""
    for drawn, draw in random_convolutions(count, seed, max_size):
        conv, weight = drawn.conv, drawn.weight
        k, c, r, s = weight.shape
        density = float(drawn.mask.float().mean())
        geometry = conv.x.shape[0], _size(drawn.expected), conv.stride, conv.padding, conv.dilation
        launch = _draw_launch(RecordProblem(k, c, (r, s), drawn.groups, density, *geometry), draw)
        taps = window_taps((r, s), conv.stride, conv.dilation)
        packed = pack_records(weight, drawn.mask, drawn.groups, taps, launch.chunk_channels, launch.slices)
        yield FilterCase("record", conv, packed, launch.words()), drawn.expected


def _size(y: Tensor) -> tuple[int, int]:
    return y.shape[2], y.shape[3]


def _draw_launch(problem: RecordProblem, draw: random.Random) -> RecordLaunch:
    """Any cut that fits, few warps more often than many: emulated threads take their time."""
    choices = list(MODEL.launches(problem, _SHARED_BYTES))
    assert choices, problem
    few = [launch for launch in choices if launch.warps <= draw.choice((2, 4, 12))]
    chosen: RecordLaunch = draw.choice(few or choices)
    # The model asks for runs that cut a band evenly; the kernel takes any.
    lanes_w = draw.randint(1, -(-problem.size[1] // 2))
    uneven = replace(chosen, lanes=draw.randint(-(-chosen.lanes // 2), chosen.lanes), lanes_w=lanes_w)
    if draw.random() < 0.6 and MODEL.shared_bytes(problem, uneven) <= _SHARED_BYTES:
        chosen = uneven
    assert MODEL.shared_bytes(problem, chosen) <= _SHARED_BYTES
    return chosen
