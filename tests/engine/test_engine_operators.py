"""Operators beside convolutions in the engine: activations, gates, channels, pools, and taps that only see padding."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.engine.activations import ACTIVATIONS, Activation, activate
from prunekit.engine.capture import capture
from prunekit.engine.fusing import fuse
from prunekit.engine.graph import NODE_KINDS, Graph
from prunekit.engine.lanes import Window
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.planning import plan_segment
from prunekit.ops import native
from prunekit.ops.native import native_status
from tests.support.conv_variants import activated, column_of, instruction_set
from tests.support.engine_layers import SqueezeExcite, shuffle
from tests.support.engine_nets import randomize
from tests.support.oracles import relative_difference

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
TOLERANCE = 1e-5
#: PRUNEKIT_NETS=1000 draws more.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "90"))
SETS = native_status().supported_sets


class Around(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int, after: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Conv2d(3, channels, 1), nn.Conv2d(after, 2, 1)
        for module in (self.first, self.last):
            randomize(module, torch.Generator().manual_seed(1), 0.8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.function(self.first(x)))
        return y


def planned(model: nn.Module, inputs: Sequence[Tensor]) -> AcceleratedModel:
    graph = capture(model.eval().requires_grad_(False), inputs)
    fuse(graph)
    graph.compress()
    return AcceleratedModel(graph, {}, [list(x.shape) for x in inputs])


def check(model: nn.Module, x: Tensor) -> Graph:
    """Compare the engine with torch in float64; return the engine's graph."""
    fast = planned(model, [x])
    actual = fast(x)
    assert isinstance(actual, Tensor)
    expected = model.double()(x.double())
    model.float()
    assert expected.shape == actual.shape
    assert relative_difference(expected, actual) <= TOLERANCE
    for node in fast.graph.nodes:
        if node.is_native:
            kind = NODE_KINDS[node.op]
            assert kind.attributes.keys() >= node.attributes.keys(), node
            assert kind.attributes.keys() <= node.attributes.keys() | kind.optional.keys(), node
            assert kind.inputs[0] <= len(node.inputs) <= (kind.inputs[1] or len(node.inputs)), node
    return fast.graph


def foreign(graph: Graph) -> list[str]:
    return [node.attributes["target"] for node in graph.nodes if not node.is_native]


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("name", SETS)
def test_activations_are_torchs_at_every_number(name: str, kind: str) -> None:
    activation = Activation(kind, 0.3 if ACTIVATIONS[kind].parameter else 0.0)
    near = torch.cat([sign * torch.logspace(-30, 2.5, 300) for sign in (1.0, -1.0)])
    special = torch.tensor(
        [0.0, float("inf"), float("-inf"), float("nan"), 88.0, -88.5, 89.5, -3.0, 3.0, 6.0, 1e30, -1e30]
    )
    values = torch.cat([near, special]).reshape(1, 1, 18, 34)

    class Apply(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1, bias=False)
            nn.init.ones_(self.conv.weight)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return activate(self.conv(x), activation), activate(x, activation)

    with instruction_set(name):
        fast = planned(Apply(), [values])
        fused, alone = fast(values)
        assert not foreign(fast.graph)
    expected = activated(values.double(), activation)
    for actual in (fused, alone):
        assert torch.equal(expected.isnan(), actual.isnan())
        is_number = expected.isfinite()
        assert torch.equal(expected[~is_number].nan_to_num(7.0), actual[~is_number].double().nan_to_num(7.0))
        error = (expected - actual.double()).abs()[is_number]
        scale = torch.maximum(expected.abs(), values.double().abs().clamp(max=8.0))[is_number]
        assert float((error - 4e-7 * scale).max()) <= 1e-37


@pytest.mark.parametrize("seed", range(24))
def test_gates_run_natively(seed: int) -> None:
    draw, channels = random.Random(seed), random.Random(seed).randint(1, 20)
    layer = SqueezeExcite(channels, draw)
    for module in layer.children():
        randomize(module, torch.Generator().manual_seed(seed), draw.choice((0.1, 1.0)))
    x = torch.randn(draw.choice((1, 3)), 3, draw.randint(1, 14), draw.randint(1, 14))
    graph = check(Around(layer, channels, channels), x)
    assert not foreign(graph)


NATIVE: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "shuffle": (12, shuffle(3)),
    "half of a shuffle": (6, lambda x: shuffle(2)(x).chunk(2, 1)[1]),
    "shuffled halves": (12, lambda x: torch.cat([shuffle(3)(x)[:, 6:], F.relu(torch.split(x, 6, 1)[0])], 1)),
    "gated linear unit": (6, lambda x: x.chunk(2, 1)[0] * torch.sigmoid(x.chunk(2, 1)[1])),
    "every second": (6, lambda x: x[:, 1::2]),
    "halves in turn": (12, lambda x: torch.cat(torch.split(x, [5, 7], 1)[::-1], 1)),
    "groups": (8, lambda x: torch.cat(torch.unflatten(x, 1, (3, 4)).unbind(1)[1:], 1)),
    "permuted": (12, lambda x: torch.unflatten(x, 1, (3, 4)).permute(0, 2, 1, 3, 4).flatten(1, 2)),
    "one image and one channel": (12, lambda x: x * x[:, :1] - x[:, 3:4]),
    "residual of a product": (12, lambda x: F.relu(x * x.mean((2, 3), keepdim=True) + x)),
    "numbers": (12, lambda x: (1 - x) * 2 / 3 - 1),
}  # fmt: skip


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 12)])
def test_channels_and_arithmetic_run_natively(name: str, size: tuple[int, int]) -> None:
    after, function = NATIVE[name]
    graph = check(Around(function, 12, after), torch.randn(2, 3, *size))
    assert not foreign(graph)


def test_channels_that_torch_reads_are_brought_to_it() -> None:
    def run(x: Tensor) -> Tensor:
        groups = x.view(len(x), 3, 4, *x.shape[2:]).transpose(1, 2)
        return torch.cat([groups.cumsum(1).flatten(1, 2), *torch.split(x, 5, 1)[1:]], 1)

    graph = check(Around(run, 12, 12 + 7), torch.randn(2, 3, 6, 5))
    assert "aten.cumsum.default" in foreign(graph)


sizes = st.tuples(st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=NUM_NETS // 4, deadline=None)
@given(
    size=sizes, kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)), stride=st.integers(1, 4),
    padding=st.integers(0, 2), dilation=st.integers(1, 3), is_max=st.booleans(), is_ceil=st.booleans(),
    counts=st.booleans(), divisor=st.sampled_from([None, 3]), seed=st.integers(0, 9),
)  # fmt: skip
def test_pools_are_torchs(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, dilation: int, is_max: bool,
    is_ceil: bool, counts: bool, divisor: int | None, seed: int,
) -> None:  # fmt: skip
    padding = min(padding, min(kernel) // 2)
    pool: nn.Module = nn.AvgPool2d(kernel, stride, padding, is_ceil, counts, divisor)
    if is_max:
        pool = nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=is_ceil)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed)) - 3.0
    try:
        expected = pool(x)
    except RuntimeError:  # the kernel does not fit
        return
    if not expected.numel():
        return
    graph = check(Around(pool, 4, 4), x)
    assert not foreign(graph)


@settings(max_examples=NUM_NETS // 4, deadline=None)
@given(
    size=sizes, kernel=st.sampled_from([(3, 3), (3, 1), (5, 3), (2, 2)]), stride=st.sampled_from([1, 1, 1, 2]),
    dilation=st.sampled_from([1, 2, 5, 6, 12, 24, 36]), groups=st.sampled_from([1, 4]), seed=st.integers(0, 9),
)  # fmt: skip
def test_dilations_larger_than_the_image(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, dilation: int, groups: int, seed: int
) -> None:
    padding = tuple(dilation * (k - 1) // 2 for k in kernel)
    conv = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups)  # type: ignore[arg-type]
    randomize(conv, torch.Generator().manual_seed(seed), 0.5)
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))
    net = Around(nn.Sequential(nn.ReLU(), conv), 4, 8)
    if min(n + 2 * p - dilation * (k - 1) for n, p, k in zip(size, padding, kernel, strict=True)) > 0:
        check(net, x)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4), padding=st.integers(0, 6),
    dilation=st.integers(1, 9),
)  # fmt: skip
def test_the_taps_that_count_are_those_that_see_a_pixel(
    size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    window = Window((kernel, 1), (stride, 1), (padding, 0), (dilation, 1))
    count, _ = window.output_size(size, 1)
    if count < 1:
        return
    seeing = {r for r in range(kernel) for i in range(count) if 0 <= i * stride + r * dilation - padding < size}
    assert set(window.trimmed(size, 1).live_rows) == (seeing or {0})


#: Fields of a step that lead elsewhere when they are damaged: of csrc/cpu/plan.h's structs.
_FIELDS: dict[str, tuple[str, ...]] = {
    "elementwise": ("x", "y", "channels", "vectors", "scale_at", "epilogue.activation"),
    "pool": ("x", "y", "channels", "vectors"),
    "mean": ("x", "y", "channels", "vectors"),
    "shift": ("x", "y", "channels", "vectors", "num_copies"),
    "halo": ("y", "channels", "vectors", "front", "back"),
}


@pytest.mark.parametrize("kind", _FIELDS)
def test_steps_of_channels_that_leave_the_arena_are_refused(kind: str) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.far = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=9, dilation=9)

        def forward(self, x: Tensor) -> Tensor:
            y = self.far(self.first(self.first(x)[:, 1:]))
            return F.max_pool2d(y * y.mean((2, 3), keepdim=True), 3, 2, ceil_mode=True)

    graph = planned(Gated(), [torch.randn(1, 3, 10, 10)]).graph
    plan = plan_segment(graph, graph.nodes, {graph.inputs[0]: (3, 10, 10)}, graph.outputs, {})
    native.make_plan(plan.words, plan.arena_elements, 1, 1)
    words = np.frombuffer(plan.words, np.int64).reshape(len(plan.kinds), -1)
    assert set(plan.kinds) == {"remap", "conv", *_FIELDS}
    for field in _FIELDS[kind]:
        for value in (2**40, -16):
            damaged = words.copy()
            damaged[plan.kinds.index(kind), column_of(kind, field)] = value
            if (field, value) != ("scale_at", -16):  # no scale
                with pytest.raises(RuntimeError, match="a plan's step is damaged"):
                    native.make_plan(damaged.tobytes(), plan.arena_elements, 1, 1)
