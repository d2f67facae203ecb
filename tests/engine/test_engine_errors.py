"""What goes wrong around the engine ends in one clear sentence: inputs, sizes, memory, caches."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.engine.activations import ACTIVATIONS, Activation
from prunekit.engine.filters import ConvChoice, pack_for_lanes
from prunekit.engine.graph import Graph, Node, SparseWeight
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.planning import plan_segment
from prunekit.engine.program import Segment
from prunekit.engine.tuning import tune
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops import native
from prunekit.ops.native import native_status
from tests.support import ROOT
from tests.support.conv_variants import column_of, conv_of_reading

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
X = torch.randn(2, 3, 9, 7)


def net(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)))).eval()


def on_engine(model: nn.Module, inputs: Sequence[Tensor] = (X,), cache: TuningCache | None = None) -> AcceleratedModel:
    seconds = 0.0 if cache is None else 60.0
    return build_whole_graph(model, inputs, seconds, cache or TuningCache(None), lambda done, total: None).model


BAD_INPUT: dict[str, tuple[object, str]] = {
    "float64": (X.double(), r"Expected a float32 tensor \[N, C, H, W\] as input, got float64 \[2, 3, 9, 7\]"),
    "integers": (X.long(), "Expected a float32 tensor"),
    "half": (X.half(), "Expected a float32 tensor"),
    "a device": (X.to("meta"), "Expected a tensor on the CPU as input, got one on meta"),
    "an array": (X.numpy(), "Expected a tensor on the CPU as input, got ndarray"),
    "nothing": (None, "Expected a tensor on the CPU as input, got NoneType"),
    "three dimensions": (X[0], r"Expected \[N, 3, H, W\] as the shape of input, got \[3, 9, 7\]"),
    "channels": (X[:, :2], r"Expected \[N, 3, H, W\] as the shape of input, got \[2, 2, 9, 7\]"),
    "too small": (X[:, :, :1, :1], r"Expected sizes .*input\.shape\[2\] ≥ 3.*, got input of shape \[2, 3, 1, 1\]"),
    "no pixels": (X[:, :, :0], r"Expected sizes .*, got input of shape \[2, 3, 0, 7\]"),
}


@pytest.mark.parametrize(("x", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_of_an_accelerated_model(x: Tensor, sentence: str) -> None:
    fast = on_engine(net(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InputError, match=sentence):
        fast(x)
    with pytest.raises(InputError, match=r"Expected the arguments \(input\), got 2 positional ones"):
        fast(X, X)
    assert fast(X).shape == (2, 4, 7, 5)  # it goes on


def test_an_empty_batch_gives_empty_results() -> None:
    assert on_engine(net())(X[:0]).shape == (0, 4, 7, 5)


def test_views_of_other_memory_are_read_as_they_are() -> None:
    fast, model = on_engine(net()), net()
    negated = torch.randn(2, 3, 9, 7, dtype=torch.complex64).conj().imag
    assert negated.is_neg()
    for x in (negated, X.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), X[:, :1].expand(2, 3, 9, 7)):
        assert torch.allclose(fast(x), model(x), atol=1e-5)


@pytest.mark.parametrize(("model", "example", "sentence"), [
    (nn.Conv2d(3, 4, 3), None, "expects example_input to be a tensor or a sequence of tensors; got NoneType"),
    (nn.Conv2d(3, 4, 3), X.numpy(), "got ndarray"),
    (nn.Conv2d(3, 4, 3), {"x": X}, "the model does not run on example_input"),
    (nn.Conv2d(3, 4, 3), [X, 1], "the model does not run on example_input: too many positional arguments"),
    (nn.Conv2d(3, 4, 3), X.double(), r"the model does not run on example_input of shape \(2, 3, 9, 7\)"),
    (nn.Conv2d(3, 4, 3), X.long(), "the model does not run on example_input"),
    (nn.Conv2d(3, 4, 3), X.to_sparse(), "the model does not run on example_input"),
    (nn.Conv2d(3, 4, 3), (), "expects example_input to be a tensor or a sequence of tensors; got nothing"),
    (lambda x: x, X, "expects model to be a torch.nn.Module; got function"),
])  # fmt: skip
def test_examples_of_the_wrong_kind(model: nn.Module, example: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        prunekit.accelerate(model, example, tuning_cache=None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("whole_graph", [True, False])
def test_models_with_weights_that_are_not_finite(value: float, whole_graph: bool) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("2.weight")[1, 2, 0, 1] = value
    with pytest.raises(InputError, match=r"not finite \(nan or inf\), and neither is its 2.weight"):
        prunekit.accelerate(model, X, whole_graph=whole_graph, tuning_cache=None)
    with pytest.raises(InputError, match=r"not finite \(nan or inf\)\."):
        prunekit.accelerate(net(), X * value, whole_graph=whole_graph, tuning_cache=None)


# 2^31 and more: none of these may take memory before it is refused.


@pytest.mark.parametrize(("op", "attributes"), [
    ("conv2d", {"kernel": 1, "stride": 1}), ("conv2d", {"kernel": 3, "stride": 2}),
    ("upsample", {"factors": [2**9, 2**9]}), ("pad", {"sides": [0, 2**16, 0, 2**16], "fill": 0.0}),
])  # fmt: skip
def test_planes_of_2_31_elements_are_refused(op: str, attributes: dict[str, Any]) -> None:
    weights, size = {}, (1, 2**7, 2**7)
    if op == "conv2d":
        size = (1, 2**16, 2**16)
        weights = {"w": SparseWeight.of(torch.ones(1, 1, attributes["kernel"], attributes["kernel"]))}
        attributes = {
            "weight": "w", "bias": None, "stride": [attributes["stride"]] * 2, "padding": [1, 1], "dilation": [1, 1],
            "groups": 1, "before": Activation(), "after": Activation(),
        }  # fmt: skip
    graph = Graph(["x"], [Node("y", op, ["x"], attributes)], ["y"], {}, "", weights=weights)
    with pytest.raises(InputError, match=r"a plane of \d+×\d+ pixels has 2\^31 elements or more"):
        plan_segment(graph, graph.nodes, {"x": size}, ["y"], {})


def test_offsets_beyond_32_bits_are_refused() -> None:
    weight = torch.ones(1, 5, 1, 1)
    choice = ConvChoice(1, 1, 5)
    for channel, is_wide in ((2**14 - 1, False), (2**14, True), (2**30 - 1, True)):
        packed = pack_for_lanes(SparseWeight.of(weight), 1, choice, np.zeros(1, np.int64), channel)
        assert packed.is_wide == is_wide
        offsets = packed.offsets.numpy().view(np.uint32 if is_wide else np.uint16)
        assert offsets.tolist() == [i * channel for i in range(5)]
    with pytest.raises(InputError, match=r"a block of 5 channels spans 2\^32 vectors or more"):
        pack_for_lanes(SparseWeight.of(weight), 1, choice, np.zeros(1, np.int64), 2**30)


@pytest.mark.parametrize(("padding", "stride", "sentence"), [
    (2**15, 2**15 + 1, r"over 2\^31 elements: use smaller images"),
    (2**30, 2**30 + 1, r"over 2\^31 elements"),
    (2**32, 2**31, r"below 2\^31, got \d+"),
])  # fmt: skip
def test_padded_inputs_of_2_31_elements_are_refused(padding: int, stride: int, sentence: str) -> None:
    weight = torch.ones(1, 1, 1, 1)
    with pytest.raises(RuntimeError, match=sentence):
        prunekit.masked_conv2d(torch.ones(1, 1, 4, 4), weight, weight > 0, None, stride, padding)


# Memory.


def test_an_arena_for_which_there_is_no_memory() -> None:
    plan = conv_of_reading("16 bits").plan([ConvChoice(1, 1, 5)])
    plan.arena_elements = 2**50
    values = {"x": torch.randn(1, 5, 23, 27)}
    with pytest.raises(
        MemoryError, match=r"^Expected 4.5e\+06 GB of memory for the network's values .* smaller images\.$"
    ):
        Segment(plan, ["x"], ["y0"]).run(values)
    for elements in (2**61, 2**62, 2**63 - 1):  # bytes that wrap around to few
        plan.arena_elements = elements
        with pytest.raises(MemoryError, match=r"Expected .* GB of memory"):
            Segment(plan, ["x"], ["y0"]).run(values)


OUT_OF_MEMORY = """
import resource, sys, torch, prunekit
from prunekit.engine.tuning_cache import TuningCache
from prunekit.nn.whole_graph import build_whole_graph
torch.set_num_threads(2)
conv = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, 2)).eval()
fast = build_whole_graph(conv, [torch.zeros(1, 1, 16, 16)], 0.0, TuningCache(None), lambda done, total: None).model
fast(torch.zeros(1, 1, 16, 16))
x = torch.zeros(1, 1, 2048, 2048)  # 268 MB of values in the middle, and as much in phases
weight = torch.ones(1, 64, 3, 3)
wide, strip = torch.zeros(1, 64, 2048, 512), torch.zeros(1, 64, 1, 512).expand(-1, -1, 2048, -1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 220 * 2**20,) * 2)
def convolve(x):
    return prunekit.masked_conv2d(x, weight, weight > 0, None, 1, 1)
for call in (lambda: fast(x), lambda: convolve(wide), lambda: convolve(strip)):
    try:
        call()
        print("no error")
    except (MemoryError, RuntimeError) as error:
        print(type(error).__name__, str(error).splitlines()[0])
print(fast(torch.ones(1, 1, 16, 16)).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
def test_out_of_memory_is_an_error_and_not_the_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    first, *others, last = done.stdout.splitlines()
    assert first.startswith("MemoryError Expected 0.")
    assert len(others) == 2
    assert all("there is no memory for a " in line for line in others), others
    assert last == "torch.Size([1, 1, 7, 7])"


# The tuning cache.


def tuned(cache: TuningCache, model: nn.Module | None = None) -> dict[str, ConvChoice]:
    fast = on_engine(model or net(nn.Conv2d(3, 4, 3)), cache=TuningCache(None))
    return {name: t.choice for name, t in tune(fast.graph, cache, 60.0).items()}


@pytest.mark.parametrize("words", [
    [1, 10**9, 3, 1, 1], [1, 1, 10**9, 1, 1], [1, 1, 3, 10**9, 1], [1, 1, 3, 1, 10**15], [1, 1, 1, 1, 2],
    [4, 28, 3, 1, 1], [1, 1, 3, 10**30, 1],
])  # fmt: skip
def test_choices_that_do_not_fit_are_measured_anew(words: list[int], tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    tuned(TuningCache(path))
    document = json.loads(path.read_text())
    document["measurements"] = dict.fromkeys(document["measurements"], words)
    path.write_text(json.dumps(document))
    model = net(nn.Conv2d(3, 4, 3))
    found = tune(on_engine(model).graph, TuningCache(path), 60.0)
    assert not any(t.is_cached for t in found.values())
    assert json.loads(path.read_text())["measurements"] != document["measurements"]


@pytest.mark.parametrize("place", ["file/tuning.json", "folder", "x" * 300, "nul\0"])
def test_a_tuning_cache_that_cannot_be_written_leaves_a_note(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    fast = prunekit.accelerate(net(nn.Conv2d(3, 4, 3)), X, tuning_cache=path)
    notes: list[str] = fast.report.notes  # type: ignore[union-attr,assignment]
    if isinstance(fast, AcceleratedModel):
        assert any("could not be written" in note for note in notes)
    cache = TuningCache(path)
    tuned(cache)
    assert cache.note is not None
    assert "could not be written" in cache.note


def test_convolutions_of_more_taps_than_one_block_numbers_are_tuned() -> None:
    model = net(nn.Conv2d(1400, 2, 7))
    x = torch.randn(1, 1400, 7, 8)
    fast = on_engine(model, [x], TuningCache(None))
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), atol=1e-4)


# The plan itself.


def test_steps_that_leave_the_arena_are_refused() -> None:
    plan = conv_of_reading("16 bits").plan([ConvChoice(1, 1, 2)])
    native.make_plan(plan.words, plan.arena_elements, 1, 1)
    with pytest.raises(RuntimeError, match="a plan's step is damaged"):
        native.make_plan(plan.words, plan.arena_elements - 16 * 16, 1, 1)
    words = np.frombuffer(plan.words, np.int64).reshape(len(plan.kinds), -1)
    at = plan.kinds.index("conv")
    for field, value in (
        ("x", -16),
        ("x_channel", 2**40),
        ("y", 1),
        ("y_channel", -16),
        ("vectors", 2**40),
        ("tile_vectors", 99),
        ("reading", 7),
        ("weights", 2),
        ("before.activation", len(ACTIVATIONS)),
        ("row_parts", 0),
        ("repeats", 2**40),
    ):
        damaged = words.copy()
        damaged[at, column_of("conv", field)] = value
        with pytest.raises(RuntimeError, match="a plan's step is damaged"):
            native.make_plan(damaged.tobytes(), plan.arena_elements, 1, 1)
