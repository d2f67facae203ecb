"""One convolution as a graph of the engine's, cut in given ways, and what it should give by the float64 loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prunekit.engine.activations import ACTIVATIONS, Activation
from prunekit.engine.filters import ConvChoice
from prunekit.engine.graph import Graph, Node, SparseWeight
from prunekit.engine.planning import SegmentPlan, plan_segment
from prunekit.engine.program import Segment
from prunekit.engine.step_words import step_kinds
from prunekit.ops import native
from prunekit.ops.native import native_status
from tests.support.oracles import masked_conv2d_oracle


@contextmanager
def instruction_set(name: str) -> Iterator[None]:
    """Use an instruction set inside the block."""
    before = native_status().instruction_set
    native.use_instruction_set(name)
    try:
        yield
    finally:
        native.use_instruction_set(str(before))


@contextmanager
def wide_offsets(is_wide: bool) -> Iterator[None]:
    """Give every filter that is packed inside the block offsets of 32 bits."""
    with pytest.MonkeyPatch.context() as patch:
        if is_wide:
            patch.setattr("prunekit.engine.filters._MAX_UINT16", -1)
        yield


@dataclass(frozen=True)
class EngineConv:
    """A convolution y = after(before(conv(x)) + residual), without zeros in `weight` but the dropped ones."""

    x: Tensor  # [N, C, H, W]
    weight: Tensor  # [K, C / groups, R, S]
    bias: Tensor | None = None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    before: Activation = field(default_factory=Activation)
    after: Activation = field(default_factory=Activation)
    residual: Tensor | None = None  # [N, K, P, Q]
    weight_dtype: torch.dtype = torch.float32

    def expected(self) -> Tensor:
        """Return y by the oracle, in float64."""
        weight = self.weight.to(self.weight_dtype).float()
        y = masked_conv2d_oracle(
            self.x, weight, weight != 0, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        y = activated(y, self.before)
        return y if self.residual is None else activated(y + self.residual.double(), self.after)

    def graph(self, names: Sequence[str]) -> Graph:
        """Return a graph of one node for each of `names`, all the same convolution."""
        attributes = {
            "weight": "weight", "bias": None if self.bias is None else "bias", "stride": list(self.stride),
            "padding": list(self.padding), "dilation": list(self.dilation), "groups": self.groups,
            "before": self.before, "after": self.after,
        }  # fmt: skip
        inputs = ["x"] if self.residual is None else ["x", "residual"]
        nodes = [Node(name, "conv2d", inputs, dict(attributes)) for name in names]
        constants = {} if self.bias is None else {"bias": self.bias}
        weight = SparseWeight.of(self.weight).to(self.weight_dtype)
        return Graph(inputs, nodes, list(names), constants, "", weights={"weight": weight})

    def values(self) -> dict[str, Tensor]:
        """Return the inputs by name."""
        return {"x": self.x} if self.residual is None else {"x": self.x, "residual": self.residual}

    def plan(self, choices: Sequence[ConvChoice]) -> SegmentPlan:
        """Plan the convolution once for each choice, all in one plan."""
        names = [f"y{i}" for i in range(len(choices))]
        graph = self.graph(names)
        sizes = {name: (int(x.shape[1]), int(x.shape[2]), int(x.shape[3])) for name, x in self.values().items()}
        return plan_segment(graph, graph.nodes, sizes, names, dict(zip(names, choices, strict=True)))

    def results(self, choices: Sequence[ConvChoice]) -> list[Tensor]:
        """Run the convolution, once for each choice."""
        names, values = [f"y{i}" for i in range(len(choices))], self.values()
        Segment(self.plan(choices), list(values), names).run(values)
        return [values[name] for name in names]

    def reading(self) -> int:
        """Return how the plan's convolution reads (LaneReading of csrc/cpu/lane_kernels.h)."""
        plan = self.plan([ConvChoice(1, 1, 1)])
        steps = np.frombuffer(plan.words, np.int64).reshape(len(plan.kinds), -1)
        return int(steps[plan.kinds.index("conv"), column_of("conv", "reading")])

    def with_poison(self, value: float, generator: torch.Generator) -> EngineConv:
        """Put `value` into some pixels."""
        is_hit = torch.rand(self.x.shape, generator=generator) < 0.05
        return replace(self, x=torch.where(is_hit, value, self.x))


def column_of(kind: str, name: str) -> int:
    """Return which word of a step's row has this name (csrc/cpu/plan.h)."""
    return 1 + step_kinds()[kind].names.index(name)


def activated(y: Tensor, activation: Activation) -> Tensor:
    """Apply an activation with torch."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda y: y, "relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish,
        "sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "tanh": torch.tanh, "gelu": F.gelu, "mish": F.mish,
        "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
        "leaky_relu": lambda y: F.leaky_relu(y, activation.negative_slope),
        "elu": lambda y: F.elu(y, activation.negative_slope),
    }  # fmt: skip
    return functions[activation.kind](y)


def every_cut(conv: EngineConv, seed: int) -> list[ConvChoice]:
    """Return every number of rows with every length of tile; blocks, repeats and parts are drawn."""
    draw = random.Random(seed)
    out_channels, channels = len(conv.weight) // conv.groups, conv.weight.shape[1]
    choices = []
    for rows, longest in zip((1, 2, 4), native.lane_layout()[1], strict=True):
        for tile in range(1, longest + 1):
            repeats = draw.choice((1, 2, 3, 100))
            block = channels if repeats > 1 else draw.randint(1, channels)
            choices.append(ConvChoice(rows, tile, block, draw.randint(1, out_channels), repeats))
    return choices


#: Of LaneReading: neighboring vectors with offsets of 16 and of 32 bits, and every second vector.
READINGS = {"16 bits": 0, "32 bits": 1, "every second": 2}


def conv_of_reading(name: str, weight_dtype: torch.dtype = torch.float32) -> EngineConv:
    """Return a convolution that is read in the way of a name of READINGS, longer than the longest tile."""
    generator = torch.Generator().manual_seed(READINGS[name])
    weight = torch.randn(7, 5, 3, 3, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < 0.4
    weight[3] = 0.0
    size, stride = ((2 * native.lane_layout()[0], 60), (2, 2)) if name == "every second" else ((23, 27), (1, 1))
    x = torch.randn(1, 5, *size, generator=generator)
    bias = torch.randn(7, generator=generator)
    return EngineConv(x, weight, bias, stride, (1, 1), weight_dtype=weight_dtype)


def random_conv(seed: int) -> EngineConv:
    """Draw a convolution: every stride, padding, dilation, grouping, kernel and density, with and without extras."""
    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    while True:
        groups = draw.choice((1, 1, 1, 2, 3, 6))
        channels = 1 if groups == 6 else draw.randint(1, 9)
        kernel = draw.choice(((1, 1), (3, 3), (5, 5), (7, 7), (2, 2), (4, 4), (6, 6), (1, 7), (5, 2), (3, 1)))
        stride = (draw.randint(1, 3), draw.randint(1, 3)) if draw.random() < 0.4 else draw.choice(((1, 1), (2, 2)))
        dilation = draw.randint(1, 3), draw.randint(1, 3)
        padding = draw.randint(0, 4), draw.randint(0, 4)
        if draw.random() < 0.5:
            padding = dilation[0] * (kernel[0] - 1) // 2, dilation[1] * (kernel[1] - 1) // 2
        size = draw.choice((draw.randint(1, 40), 8, 16, 32)), draw.randint(1, 40)
        reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        spans = [n + 2 * p - r for n, p, r in zip(size, padding, reach, strict=True)]
        if min(spans) > 0:
            break
    weight = torch.randn(groups * draw.randint(1, 9), channels, *kernel, generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < draw.choice((0.0, 0.01, 0.1, 0.5, 1.0))
    if draw.random() < 0.5:
        weight[draw.randrange(len(weight))] = 0.0
    n = draw.randint(1, 3)
    x = torch.randn(n, groups * channels, *size, generator=generator)
    bias = torch.randn(len(weight), generator=generator) if draw.random() < 0.6 else None
    kinds = [Activation(kind, 0.1 if kind in ("leaky_relu", "elu") else 0.0) for kind in ACTIVATIONS]
    before, after = (draw.choice([*kinds, Activation()]) for _ in range(2))
    residual = None
    if draw.random() < 0.4:
        output = [(span - 1) // s + 1 for span, s in zip(spans, stride, strict=True)]
        residual = torch.randn(n, len(weight), *output, generator=generator)
    dtype = draw.choice((torch.float32, torch.float32, torch.bfloat16))
    return EngineConv(x, weight, bias, stride, padding, dilation, groups, before, after, residual, dtype)


def random_cut(conv: EngineConv, seed: int) -> ConvChoice:
    """Draw one of `every_cut`."""
    return random.Random(seed).choice(every_cut(conv, seed))
