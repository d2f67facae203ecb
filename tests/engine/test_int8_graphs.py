"""Graphs in int8: the reference's levels to the bit, whatever the network, the size, the batch and the threads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.engine.calibration import observe
from prunekit.engine.capture import CaptureError, capture, capture_any_size
from prunekit.engine.filters import ConvChoice, fit_here
from prunekit.engine.fusing import fuse
from prunekit.engine.graph import Graph, Quantization
from prunekit.engine.interpreter import interpret
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.program import Program
from prunekit.engine.quantizing import quantized_graph, reasons_for_float32, values_to_observe
from prunekit.engine.tuning import tune
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.int8 import check_layers
from prunekit.ops import native
from tests.support.arena_walk import walk
from tests.support.engine_nets import random_net
from tests.support.oracles import relative_difference

pytestmark = [
    pytest.mark.skipif(not native.is_available(), reason="no native kernels"),
    pytest.mark.usefixtures("one_thread"),
]

#: Hundreds find what is rare: PRUNEKIT_NETS=500.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "90"))
_A_TEST = 30
_PIECEWISE_LINEAR = ("none", "relu", "relu6", "leaky_relu")


def float32_graph(net: nn.Module, inputs: Sequence[Tensor], *, any_size: bool = False) -> Graph:
    graph = (capture_any_size if any_size else capture)(net.eval(), inputs)
    fuse(graph)
    graph.compress()
    return graph


def in_int8(graph: Graph, inputs: Sequence[Tensor], method: str = "minmax") -> Graph:
    names = [name for name, reason in reasons_for_float32(graph).items() if reason is None]
    return quantized_graph(graph, names, observe(graph, values_to_observe(graph, names), [tuple(inputs)], method))


def is_exact(graph: Graph) -> bool:
    kinds = {n.attributes[key].kind for n in graph.nodes for key in ("before", "after") if key in n.attributes}
    return kinds <= {*_PIECEWISE_LINEAR}


def check_outputs(graph: Graph, inputs: Sequence[Tensor]) -> None:
    expected = interpret(graph.at([list(x.shape) for x in inputs]), inputs)
    for a, b in zip(expected, Program(graph, {}).run(inputs), strict=True):
        assert a.shape == b.shape
        if a.numel() and bool(a.isfinite().all()):
            assert relative_difference(a, b) <= 1e-5


def int8_nets(first: int, count: int) -> Iterator[tuple[AcceleratedModel, tuple[Tensor, ...]]]:
    """Yield random nets in int8 with one image each."""
    for seed in range(first, first + count):
        case = random_net(seed)
        inputs = tuple(x[:1] for x in case.inputs)
        try:
            graph = in_int8(float32_graph(case.net, inputs), inputs)
        except (CaptureError, InputError):
            continue
        if any(node.op == "quantized_conv2d" for node in graph.nodes):
            yield AcceleratedModel(graph, {}, [list(x.shape) for x in inputs]), inputs


@pytest.mark.parametrize("first", range(0, NUM_NETS, _A_TEST))
def test_random_networks_have_the_references_levels(first: int) -> None:
    compared = exact = 0
    for seed in range(first, min(first + _A_TEST, NUM_NETS)):
        case = random_net(seed)
        try:
            graph = in_int8(float32_graph(case.net, case.inputs), case.inputs)
        except (CaptureError, InputError):  # not on the engine, or not finite on its input
            continue
        if not any(node.op == "quantized_conv2d" for node in graph.nodes):
            continue
        compared += 1
        check_layers(graph, {}, case.inputs)
        if is_exact(graph):
            exact += 1
            check_outputs(graph, case.inputs)
    assert compared >= _A_TEST // 3
    assert exact


class Everything(nn.Module):
    """What moves levels, and convolutions of every kind: strides, dilations, groups, odd channels, a residual."""

    def __init__(self, channels: int = 13, groups: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.residual = nn.Conv2d(channels, channels, 3, padding=1)
        self.down = nn.Conv2d(channels, 16, 3, stride=2, padding=1)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=groups)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 24, 1)
        self.head = nn.Conv2d(24 + 16, 10, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.leaky_relu(self.stem(x), 0.1)
        x = F.relu(self.residual(x) + x)
        x = F.relu(self.depthwise(F.relu(self.dilated(F.leaky_relu(self.down(x), 0.2)))))
        y = F.relu6(self.wide(F.max_pool2d(x, 2)))
        y = torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), x], 1)
        return self.head(y), y.mean((2, 3))


@pytest.fixture(name="net")
def net_fixture() -> Everything:
    torch.manual_seed(3)
    return Everything()


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_all_of_a_network_is_in_int8_and_near_float32(net: Everything) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x]), [x])
    assert [n.op for n in graph.nodes].count("quantized_conv2d") == 7
    assert [n.op for n in graph.nodes].count("quantize") == 1
    check_outputs(graph, [x])
    with torch.no_grad():
        for a, b in zip(net(x), Program(graph, {}).run([x]), strict=True):
            assert relative_difference(a, b) <= 0.02


def test_other_sizes_batches_and_threads_have_the_references_levels(net: Everything) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x], any_size=True), [x])
    program = Program(graph, {})
    for shape in ((1, 3, 32, 64), (3, 3, 20, 28), (2, 3, 64, 64)):
        other = image(*shape, seed=1)
        check_outputs(graph, [other])
        whole = program.run([other])
        for i in range(shape[0]):
            for a, b in zip(whole, program.run([other[i : i + 1]]), strict=True):
                assert torch.equal(a[i : i + 1], b)
        torch.set_num_threads(2)
        try:
            for a, b in zip(whole, Program(graph, {}).run([other]), strict=True):
                assert torch.equal(a, b)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_padding_and_margins_hold_the_zero_point_whatever_it_is(net: Everything, zero_point: int) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x]), [x])
    for node in graph.nodes:
        for key in ("input", "residual", "output"):
            found = node.attributes.get(key)
            if found is not None:
                node.attributes[key] = Quantization(found.scale, zero_point)
    check_layers(graph, {}, [x])
    check_outputs(graph, [x])


@pytest.mark.parametrize("density", [0.0, 0.02, 0.3])
def test_quads_without_weights_cost_nothing_and_change_nothing(net: Everything, density: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)) < density)
    x = image(1, 3, 36, 44)
    check_outputs(in_int8(float32_graph(net, [x]), [x]), [x])


def test_large_levels_and_weights_saturate_as_the_reference_does(net: Everything) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x]), [x])
    check_outputs(graph, [100 * x])
    check_outputs(graph, [torch.full_like(x, 1e30)])
    check_outputs(graph, [torch.full_like(x, float("nan"))])


@pytest.mark.parametrize(("channels", "outputs", "kernel", "sign"), [(8, 5, 3, 1), (7, 6, 1, -1), (3, 4, 5, 1)])
def test_the_largest_weights_of_one_sign_do_not_overflow(channels: int, outputs: int, kernel: int, sign: int) -> None:
    """Two products of the largest level and weight do not fit into 16 bits, in which some kernels add them."""
    conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2)
    with torch.no_grad():
        conv.weight.copy_(sign * torch.rand(conv.weight.shape, generator=torch.Generator().manual_seed(0)).sqrt())
        conv.weight[:, 0] = sign
    x = image(1, channels, 9, 13)
    graph = in_int8(float32_graph(conv, [x]), [x])
    for levels in (torch.ones_like(x), (x > 0.5).float()):
        check_outputs(graph, [levels])
        choice = ConvChoice(4, 2, 1)
        expected = interpret(graph, [levels])
        found = Program(graph, {node.name: choice for node in graph.convolutions()}).run([levels])
        assert relative_difference(expected[0], found[0]) <= 1e-6


def test_a_kernel_with_more_taps_than_can_be_numbered_stays_float32() -> None:
    for width, is_too_large in ((181, False), (182, True)):  # 32,761 and 32,942 taps
        conv, x = nn.Conv2d(1, 1, (181, width)), image(1, 1, 183, 184)
        reasons = reasons_for_float32(float32_graph(conv, [x]))
        assert [reason is not None and "32767 taps" in reason for reason in reasons.values()] == [is_too_large]
        check_outputs(in_int8(float32_graph(conv, [x]), [x]), [x])


def test_choices_with_blocks_that_this_set_cannot_number_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = nn.Conv2d(64, 64, 61, padding=30, groups=64), image(1, 64, 9, 13)  # 3,721 taps in each of 16 quads
    graph = in_int8(float32_graph(conv, [x]), [x])
    (name,) = (node.name for node in graph.convolutions())
    choices = {name: ConvChoice(4, 1, 16, repeats=2)}
    for max_pair, fits in ((254, True), (128, False)):
        monkeypatch.setattr(native, "quad_layout", lambda most=max_pair: native.QuadLayout(6, 0, "some", 4, most))
        assert fit_here(choices, graph) is fits


@pytest.mark.parametrize("padding", [float("-inf"), 0.0])
def test_padding_before_a_pool_moves_levels(padding: float) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.b(F.max_pool2d(F.pad(F.leaky_relu(self.a(x), 0.1), (0, 1, 0, 1), value=padding), 2, 1))
            return y

    torch.manual_seed(0)
    x = image(1, 3, 13, 17)
    graph = in_int8(float32_graph(Padded(), [x]), [x])
    assert [n.op for n in graph.nodes] == ["quantize", "quantized_conv2d", "pad", "max_pool2d", "quantized_conv2d"]
    check_outputs(graph, [x])


def test_no_step_leaves_its_planes_and_none_reads_what_is_not_there() -> None:
    count = 0
    for fast, inputs in int8_nets(4000, 20):
        expected = dict(zip(fast.graph.outputs, fast.program.run(inputs), strict=True))
        found = walk(fast, inputs)
        for name, value in expected.items():
            assert torch.equal(value, found[name]) or not bool(value.isfinite().all())
        count += 1
    assert count >= 8


def test_what_torch_runs_stands_between_levels(net: Everything) -> None:
    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            z: Tensor = torch.relu(self.b(torch.softmax(y, 1))) + y
            return z

    x = image(1, 3, 13, 17)
    graph = in_int8(float32_graph(Between(), [x]), [x])
    assert any(node.op == "torch" for node in graph.nodes)
    assert any(node.op == "quantized_conv2d" for node in graph.nodes)
    check_outputs(graph, [x])


def test_every_cut_is_right_and_the_best_one_is_kept(net: Everything) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x]), [x])
    tuned = tune(graph, TuningCache(None), 60.0)  # compares each before it times it
    assert set(tuned) == {node.name for node in graph.convolutions()}
    choices = {name: found.choice for name, found in tuned.items()}
    expected = interpret(graph, [x])
    for a, b in zip(expected, Program(graph, choices).run([x]), strict=True):
        assert relative_difference(a, b) <= 1e-6


def test_blocks_of_channels_rest_their_sums(net: Everything) -> None:
    x = image(1, 3, 36, 44)
    graph = in_int8(float32_graph(net, [x]), [x])
    expected = interpret(graph, [x])
    for choice in (ConvChoice(4, 1, 1), ConvChoice(4, 2, 2, row_parts=2), ConvChoice(4, 1, 10, repeats=3)):
        choices = {}
        for node in graph.convolutions():
            quads = -(-graph.sizes[node.inputs[0]][0] // 4)
            block = quads if choice.repeats > 1 else min(choice.channel_block, quads)
            choices[node.name] = replace(choice, channel_block=block)
        for a, b in zip(expected, Program(graph, choices).run([x]), strict=True):
            assert relative_difference(a, b) <= 1e-6


def test_a_model_in_int8_is_the_same_from_its_file(net: Everything, tmp_path: object) -> None:
    x = image(1, 3, 36, 44)
    model = AcceleratedModel(in_int8(float32_graph(net, [x], any_size=True), [x]), {}, [list(x.shape)])
    path = f"{tmp_path}/int8.safetensors"
    model.save(path)
    again = AcceleratedModel.load(path)
    for shape in ((1, 3, 36, 44), (2, 3, 40, 48)):
        for a, b in zip(model(image(*shape)), again(image(*shape)), strict=True):
            assert torch.equal(a, b)
