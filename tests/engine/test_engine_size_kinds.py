"""Kinds of models whose sizes are computed: several inputs, views, saved rules, exported programs, plans kept."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.engine.batches import check_batch
from prunekit.engine.capture import CaptureError, capture, capture_any_size, capture_program
from prunekit.engine.fusing import fuse
from prunekit.engine.graph import Graph
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.plan_cache import PlanCache, bytes_of
from prunekit.engine.program import Program
from prunekit.engine.size_expressions import describe, evaluate
from prunekit.engine.size_rule import SizeRule
from prunekit.errors import InputError
from prunekit.ops.native import native_status
from tests.support.engine_sizes import (
    CHANNELS,
    Net,
    alone_or_not,
    check_same,
    on_engine,
    over_the_batch,
    pad_to_even,
    threshold,
)

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]


def bound_view(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    return net.last(y.view(1, CHANNELS // 2, 2, *x.shape[2:]).transpose(1, 2).reshape(1, CHANNELS, *x.shape[2:]))


class AnyBatch(nn.Module):
    """A forward that is traced for one image and, called with more, takes them one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(bound_view)

    def forward(self, x: Tensor) -> Any:
        return self.net(x) if len(x) == 1 else torch.cat([self.net(one[None]) for one in x])


def test_a_batch_is_run_in_parts_where_the_graph_is_bound_to_one_image_and_the_model_is_not() -> None:
    net = AnyBatch().eval()
    fast = on_engine(net, torch.randn(1, 3, 9, 8))
    assert fast.graph.split_batch == 1
    for batch in (2, 3):
        check_same(net, fast, torch.randn(batch, 3, 11, 6))
    with pytest.raises(InputError, match="xpected"):
        fast(torch.randn(0, 3, 9, 8))


def test_images_that_look_at_each_other_are_not_run_one_by_one() -> None:
    x = torch.randn(2, 3, 9, 8)
    assert not check_batch(Net(over_the_batch).eval(), [x])
    assert not check_batch(Net(alone_or_not).eval(), [x[:1]])
    assert not check_batch(Net(bound_view).eval(), [x[:1]])
    assert check_batch(Net(pad_to_even).eval(), [x])
    assert not check_batch(nn.BatchNorm2d(3, track_running_stats=False).eval(), [x])
    fast = on_engine(Net(alone_or_not), x[:1])
    with pytest.raises(InputError, match="xpected"):
        fast(x)


class ImageAndVector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, CHANNELS, 3), nn.Linear(CHANNELS + 4, 5)

    def forward(self, image: Tensor, vector: Tensor) -> Any:
        return self.head(torch.cat([self.body(image).mean((2, 3)), vector], 1))


class Tracker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, CHANNELS, 3), nn.Conv2d(CHANNELS, 4, 1)

    def forward(self, template: Tensor, search: Tensor) -> Any:
        return self.head(self.body(search) * self.body(template).mean((2, 3), keepdim=True) + self.body(template))


def test_several_inputs_of_one_batch_and_of_different_ones() -> None:
    net: nn.Module = ImageAndVector().eval()
    fast = on_engine(net, torch.randn(1, 3, 9, 9), torch.randn(1, 4))
    for batch in (1, 3):
        check_same(net, fast, torch.randn(batch, 3, 8, 11), torch.randn(batch, 4))
    with pytest.raises(InputError, match="xpected"):
        fast(torch.randn(2, 3, 9, 9), torch.randn(3, 4))
    net = Tracker().eval()
    fast = on_engine(net, torch.randn(1, 3, 12, 12), torch.randn(4, 3, 12, 12))
    for batch in (4, 2):
        check_same(net, fast, torch.randn(1, 3, 12, 12), torch.randn(batch, 3, 12, 12))


class Head(nn.Module):
    """As SSD's and RetinaNet's heads, behind an in-place operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        y = self.b(self.a(x).relu_())
        return y.permute(0, 2, 3, 1).reshape(y.shape[0], -1, 6)


def test_views_of_channels_last_models_hold_for_any_layout() -> None:
    net = Head().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 3, 10, 7)
    for example in (x, x.to(memory_format=torch.channels_last)):
        fast = on_engine(net, example)
        for layout in (torch.contiguous_format, torch.channels_last):
            check_same(net, fast, torch.randn(3, 3, 9, 8).contiguous(memory_format=layout))


def test_a_copy_of_the_input_is_not_the_input() -> None:
    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), x.clone()

    x = torch.randn(1, 3, 5, 5)
    before = x.clone()
    _, copied = on_engine(Copies(), x)(x)
    copied.zero_()
    assert torch.equal(x, before)


def test_outputs_that_are_sizes_are_those_of_the_input() -> None:
    def sizes_too(net: Any, x: Tensor) -> dict[str, Any]:
        return {"y": net.last(net.first(x)), "size": tuple(x.shape[2:]), "none": None, "flag": True}

    net = Net(sizes_too)
    fast = on_engine(net, torch.randn(1, 3, 8, 9))
    found = fast(torch.randn(2, 3, 11, 6))
    assert (found["size"], found["none"], found["flag"]) == ((11, 6), None, True)


class SizesAsTensors(nn.Module):
    """Sizes as tensors, as converters from ONNX write them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8 * 6 * 5, 3)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        shape = torch.tensor(y.shape)
        rest = torch.cat([shape[:1], torch.tensor([-1])])
        return self.b(torch.reshape(y, torch.Size(rest.tolist())))


def test_sizes_as_tensors_are_captured_for_their_size() -> None:
    net, x = SizesAsTensors().eval(), torch.randn(1, 3, 8, 7)
    fast = on_engine(net, x)
    check_same(net, fast, x)
    with pytest.raises(InputError, match="xpected"):
        fast(torch.randn(1, 3, 9, 7))


def test_exported_programs_are_captured() -> None:
    net, x = Net(pad_to_even).eval(), torch.randn(1, 3, 9, 8)
    program = torch.export.export(net, (x,))
    dynamic = torch.export.export(net, (torch.cat([x, x]),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    graphs = capture_program(program), capture(program.module(), [x]), capture_program(dynamic)
    for graph, batch in zip(graphs, (1, 1, 3), strict=True):
        fuse(graph)
        graph.compress()
        check_same(net, AcceleratedModel(graph, {}, [list(x.shape)]), torch.randn(batch, 3, 9, 8))


def test_a_forward_that_computes_sizes_from_pixels_is_refused_or_right() -> None:
    def by_pixels(net: Any, x: Tensor) -> Any:
        y = net.last(net.first(x))
        return y[:, :, : int(x.abs().mean() * 4) + 1]

    net = Net(by_pixels).eval()
    try:
        fast = on_engine(net, torch.randn(1, 3, 9, 9))
    except CaptureError:
        return
    check_same(net, fast, 3 * torch.randn(1, 3, 9, 9))


def test_saved_graphs_keep_their_rule(tmp_path: Path) -> None:
    net = Net(threshold).eval()
    on_engine(net, torch.randn(1, 3, 12, 12)).save(tmp_path / "net")
    fast = AcceleratedModel.load(tmp_path / "net")
    check_same(net, fast, torch.randn(2, 3, 13, 9))
    with pytest.raises(InputError, match=r"x\.shape\[2\] < 20"):
        fast(torch.randn(1, 3, 24, 12))


def test_expressions() -> None:
    shapes = [[2, 3, 13, 40]]
    pad = ["mod", ["neg", ["size", 0, 3]], 32]
    assert (evaluate(pad, shapes), describe(pad, ["x"])) == (24, "neg(x.shape[3]) % 32")
    assert evaluate(["max", ["floordiv", ["size", 0, 2], 2], ["ceil", ["truediv", ["size", 0, 2], 2]]], shapes) == 7
    assert evaluate(["floor", ["mul", ["ratio", 1, 3], ["size", 0, 3]]], shapes) == 13
    nested: Any = 1
    for _ in range(1000):
        nested = ["neg", nested]
    wrongs: tuple[Any, ...] = (
        ["__import__", "os"], ["size", 0, 9], ["size", 1, 0], ["size", 0, -1], [], "x", ["add"], nested, None,
        ["pow", 9, 999999999], ["mod", 1], {"size": 1}, ["size", 0, 2, 3], ["add", "a", 1],
    )  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ValueError, match="Expected"):
            evaluate(wrong, shapes)
    with pytest.raises((ValueError, KeyError, TypeError)):
        SizeRule.from_json({"shapes": [[["size", 0, 0]]], "guards": [["system", 1]], "values": {}, "steps": []})
    assert SizeRule([[["size", 0, 0]]], [["lt", ["floordiv", 4, ["size", 0, 0]], 3]]).refusal([[0]], ["x"]) is not None


class Plan:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


def tensorflow_padding(net: Any, x: Tensor) -> Any:
    for _ in range(3):
        h, w = x.shape[-2:]
        rows, columns = (max((math.ceil(size / 2) - 1) * 2 + 3 - size, 0) for size in (h, w))
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        x = F.conv2d(x, net.again, stride=2)
        x = x * F.adaptive_avg_pool2d(x, 1)
    return net.last(net.first(x))


def test_long_expressions_of_sizes_get_names() -> None:
    net = Net(tensorflow_padding).eval()
    net.register_buffer("again", torch.randn(3, 3, 3, 3))
    fast = on_engine(net, torch.randn(1, 3, 32, 45))
    rule = fast.graph.rule
    assert rule is not None
    assert len(rule.steps) >= 4
    assert len(str(rule)) < 10_000  # without names three times as long with each layer
    for batch, height, width in ((1, 33, 64), (3, 16, 17), (2, 47, 31)):
        check_same(net, fast, torch.randn(batch, 3, height, width))


def in_place_through_views(net: Any, x: Tensor) -> Any:
    y = net.first(x)
    before = F.relu_(y).flatten(1)
    y.add_(1)
    z = net.last(y)
    z.clamp_(-1, 2)
    return before.sum(1), z, z.mul_(2)


def test_in_place_operators_are_seen_by_whoever_shares_the_memory() -> None:
    net = Net(in_place_through_views).eval()
    fast = on_engine(net, torch.randn(2, 3, 6, 7))
    check_same(net, fast, torch.randn(2, 3, 6, 7))
    check_same(net, fast, torch.randn(3, 3, 9, 5))


def test_plans_are_kept_by_the_memory_they_hold_and_the_last_used_one_stays() -> None:
    cache: PlanCache[Plan] = PlanCache(100)
    made: list[str] = []

    def get(key: str, num_bytes: int) -> Plan:
        return cache.get(key, lambda: made.append(key) or Plan(num_bytes))  # type: ignore[func-returns-value]

    for key in "abc":
        get(key, 33)
    get("a", 33)
    get("d", 33)  # b was used longest ago
    assert len(cache.values()) == 3
    get("a", 33)
    get("b", 33)
    assert "".join(made) == "abcdb"
    large = get("large", 1000)
    assert cache.values() == [large]
    assert get("large", 1000) is large
    get("a", 33)
    assert len(cache.values()) == 1


def test_a_dozen_sizes_in_turn_are_planned_once() -> None:
    net = Net(pad_to_even).eval()
    graph = captured_graph(net, torch.randn(1, 3, 8, 8))
    images = [torch.randn(1, 3, 8 + 2 * i, 10) for i in range(12)]
    program = Program(graph, {})
    for _ in range(2):
        for image in images:
            program.run([image])
    segments = program.segments()
    assert len(segments) == 12
    assert all(s.num_bytes >= 4 * s.plan.arena_elements + bytes_of(s.plan.keep_alive) for s in segments)
    small = Program(graph, {}, budget=1)
    for image in images:
        small.run([image])
        assert len(small.segments()) == 1


def captured_graph(net: nn.Module, x: Tensor) -> Graph:
    graph = capture_any_size(net, [x])
    fuse(graph)
    graph.compress()
    return graph
