"""The engine on random networks: the original's outputs, whatever is wired to what."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

from prunekit.engine.capture import CaptureError, capture
from prunekit.engine.fusing import fuse
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.tuning_cache import TuningCache
from prunekit.errors import InputError
from prunekit.nn.whole_graph import build_whole_graph
from prunekit.ops.native import native_status
from tests.support.conv_variants import instruction_set
from tests.support.engine_nets import NetCase, random_net, randomize
from tests.support.oracles import relative_difference

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]

#: A thousand and more find what is rare: PRUNEKIT_NETS=1000.
NUM_NETS = int(os.environ.get("PRUNEKIT_NETS", "90"))
_A_TEST = 30
TOLERANCE = 1e-5


def on_engine(model: nn.Module, inputs: Sequence[Tensor]) -> AcceleratedModel:
    """Capture, fuse and plan by rule of thumb."""
    return build_whole_graph(model.eval(), inputs, 0.0, TuningCache(None), lambda done, total: None).model


def planned(model: nn.Module, inputs: Sequence[Tensor]) -> AcceleratedModel:
    """Do as `on_engine`, without asking whether the model runs on other sizes."""
    graph = capture(model.eval(), inputs)
    fuse(graph)
    graph.compress()
    return AcceleratedModel(graph, {}, [list(x.shape) for x in inputs])


def check_equal(expected: object, actual: object, what: str) -> None:
    assert tree_structure(expected) == tree_structure(actual), what
    for i, (a, b) in enumerate(zip(tree_leaves(expected), tree_leaves(actual), strict=True)):
        assert a.shape == b.shape, (what, i)
        assert relative_difference(a, b) <= TOLERANCE, (what, i)


def run(model: nn.Module, inputs: Sequence[Tensor]) -> object:
    with torch.no_grad():
        return model(*(x.clone() for x in inputs))  # layers may be in-place


def captured(
    seeds: range, accelerate: Callable[[nn.Module, Sequence[Tensor]], AcceleratedModel] = planned
) -> Iterator[tuple[NetCase, AcceleratedModel]]:
    """Yield the nets of `seeds` that can be captured, and what they become."""
    for seed in seeds:
        case = random_net(seed)
        try:
            yield case, accelerate(case.net, [x.clone() for x in case.inputs])
        except CaptureError as error:
            text = str(error)
            assert "no float32 convolution" in text or "changes buffers or its inputs" in text, (seed, text)


@pytest.mark.parametrize("first", range(0, NUM_NETS, _A_TEST))
def test_random_nets_keep_their_outputs(first: int) -> None:
    seen = 0
    for case, fast in captured(range(first, min(first + _A_TEST, NUM_NETS))):
        check_equal(run(case.net, case.inputs), fast(*case.inputs), f"seed {case.seed}")
        inputs = case.fresh_inputs(batch=len(case.inputs[0]), seed=1)
        check_equal(run(case.net, inputs), fast(*inputs), f"seed {case.seed}, other pixels")
        seen += 1
    assert seen >= min(_A_TEST, NUM_NETS - first) // 2


def test_random_nets_give_the_same_bits_for_any_threads_runs_and_place_in_the_batch() -> None:
    num_native = 0
    for case, fast in captured(range(5000, 5006), on_engine):
        first = tree_leaves(fast(*case.inputs))
        torch.set_num_threads(2)  # the fixture restores it
        again = planned(case.net, [x.clone() for x in case.inputs])
        is_native = all(node.is_native for node in fast.graph.nodes)  # torch's own operators need not hold to this
        for other in (fast(*case.inputs), again(*case.inputs), again(*case.inputs)):
            check_equal(first, tree_leaves(other), f"seed {case.seed}, two threads")
            if is_native:
                assert all(torch.equal(a, b) for a, b in zip(first, tree_leaves(other), strict=True)), case.seed
        torch.set_num_threads(1)
        num_native += is_native
        if fast.graph.is_size_free and is_native:
            doubled = tree_leaves(fast(*(torch.cat([x, x]) for x in case.inputs)))
            for a, b in zip(first, doubled, strict=True):
                assert torch.equal(torch.cat([a, a]), b), case.seed
    assert num_native > 0


def test_random_nets_on_other_sizes_and_batches() -> None:
    checked = 0
    for case, fast in captured(range(6000, 6012), on_engine):
        for grown in ((0, 0), (1, 3), (8, 5)):
            inputs = [torch.randn(2, x.shape[1], x.shape[2] + grown[0], x.shape[3] + grown[1]) for x in case.inputs]
            try:
                expected = run(case.net, inputs)
            except RuntimeError:  # the net itself is bound to a size
                continue
            if fast.graph.is_size_free:
                check_equal(expected, fast(*inputs), f"seed {case.seed}, grown by {grown}")
                checked += 1
    assert checked >= 8


def dense_layers(*layers: nn.Module) -> nn.Sequential:
    generator = torch.Generator().manual_seed(3)
    for layer in layers:
        randomize(layer, generator, 0.7)
    return nn.Sequential(*layers).eval().requires_grad_(False)


@pytest.mark.parametrize("height", [8, 16, 32])
@pytest.mark.parametrize("width", [2, 8, 18])
@pytest.mark.parametrize("reach", [1, 5, 9, 17])
@pytest.mark.parametrize("last", ["dilated", "pool"])
def test_rows_far_apart_on_both_sides_of_a_stride(height: int, width: int, reach: int, last: str) -> None:
    far = (
        nn.Conv2d(4, 5, 3, padding=reach, dilation=reach)
        if last == "dilated"
        else nn.MaxPool2d(2 * reach + 1, 1, reach)
    )
    for stride in (
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.Conv2d(3, 4, 4, 2, 1),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)),
    ):
        net = dense_layers(stride, far)
        x = torch.randn(1, 3, 2 * height, 2 * width)
        check_equal(run(net, [x]), on_engine(net, [x])(x), f"{stride}")


@pytest.mark.parametrize("sides", [(0, 0, 0, -1), (0, -1, 0, 0), (-1, 2, -2, 1), (1, 1, 1, -3), (-2, -2, -2, -2)])
@pytest.mark.parametrize("fill", [0.0, 3.0])
def test_what_a_negative_pad_cuts_off_is_gone(sides: tuple[int, int, int, int], fill: float) -> None:
    class Crop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.pad(x, sides, value=fill)

    for size in ((6, 6), (9, 5), (16, 7), (17, 17)):
        net = dense_layers(nn.Conv2d(3, 4, 1), Crop(), nn.Conv2d(4, 4, 5, padding=2))
        x = torch.randn(1, 3, *size)
        check_equal(run(net, [x]), on_engine(net, [x])(x), f"{size}")


@pytest.mark.parametrize("size", [(33, 70), (64, 100), (47, 129), (5, 300), (130, 3)])
@pytest.mark.parametrize("name", native_status().supported_sets)
def test_rows_of_many_vectors_are_picked_as_short_ones_are(name: str, size: tuple[int, int]) -> None:
    near, triple = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3)
    nets = {
        "stride of the input": dense_layers(nn.Conv2d(3, 4, 3, 2, 1)),
        "stride inside": dense_layers(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 5, 2, 2), nn.ReLU()),
        "stride of three": dense_layers(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, 3, 1)),
        "pool": dense_layers(nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1)),
        "upsampling": dense_layers(nn.Conv2d(3, 4, 1), near, nn.Conv2d(4, 4, 3, padding=1)),
        "upsampling by three": dense_layers(nn.Conv2d(3, 4, 1), triple, nn.Conv2d(4, 4, 3, 2, 1)),
    }
    with instruction_set(name):
        for what, net in nets.items():
            x = torch.randn(2, 3, *size)
            check_equal(run(net, [x]), on_engine(net, [x])(x), what)


@pytest.mark.parametrize("name", native_status().supported_sets)
def test_outputs_larger_than_the_caches_are_there_when_the_next_layer_reads_them(name: str) -> None:
    net = dense_layers(nn.Conv2d(3, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.Conv2d(16, 3, 3, padding=1))
    x = torch.randn(1, 3, 530, 520)  # 16 planes of it have more than 16 MiB
    with instruction_set(name):
        for threads in (1, 2):
            torch.set_num_threads(threads)  # the fixture restores it
            check_equal(run(net, [x]), planned(net, [x])(x), f"{threads} threads")


def forward_of(function: Callable[[Tensor], Tensor]) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(function(self.first(x)))
            return y

    return Model().eval().requires_grad_(False)


BOUND: dict[str, Callable[[Tensor], Tensor]] = {
    "pad to a multiple": lambda x: F.pad(x, (0, -x.shape[3] % 4, 0, -x.shape[2] % 4)),
    "pool of all pixels": lambda x: x + F.avg_pool2d(x, x.shape[2:]),
    "scale by size": lambda x: x / (x.shape[2] * x.shape[3]) ** 0.5,
    "resize to a size": lambda x: F.interpolate(F.max_pool2d(x, 2), size=x.shape[2:]),
    "pool to a size": lambda x: F.adaptive_avg_pool2d(x, x.shape[2] // 3),
    "positions": lambda x: x + torch.arange(x.shape[3]) / x.shape[3],
    "scale by batch": lambda x: x / len(x),
    "branch": lambda x: x * 2 if x.shape[3] > 20 else x,
}
FREE: dict[str, Callable[[Tensor], Tensor]] = {
    "global pool": lambda x: x * F.adaptive_avg_pool2d(x, 1),
    "normalize": lambda x: x - x.mean((2, 3), keepdim=True),
    "even sizes only": lambda x: x + F.interpolate(F.max_pool2d(x, 2), scale_factor=2),
}


@pytest.mark.parametrize("size", [(12, 12), (15, 15), (16, 10), (31, 13)])
@pytest.mark.parametrize("name", BOUND)
def test_a_forward_that_computes_with_sizes_is_right_at_others_or_refused(name: str, size: tuple[int, int]) -> None:
    model = forward_of(BOUND[name])
    x = torch.randn(1, 3, *size)
    fast = on_engine(model, [x])
    check_equal(run(model, [x]), fast(x), name)
    for shape in ((2, 3, *size), (1, 3, size[0] + 3, size[1] + 9)):
        other = torch.randn(*shape)
        try:
            outputs = fast(other)
        except InputError:  # test_engine_sizes.py says which forwards may be
            continue
        check_equal(run(model, [other]), outputs, name)


@pytest.mark.parametrize("name", FREE)
def test_a_forward_without_sizes_runs_on_any(name: str) -> None:
    model = forward_of(FREE[name])
    fast = on_engine(model, [torch.randn(1, 3, 12, 14)])
    for shape in ((1, 3, 12, 14), (3, 3, 12, 14), (2, 3, 40, 6)):
        x = torch.randn(*shape)
        check_equal(run(model, [x]), fast(x), name)


def test_batch_norm_behind_an_in_place_operator_is_folded() -> None:
    net = dense_layers(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4),
        nn.SiLU(inplace=True),
    )  # fmt: skip
    x = torch.randn(2, 3, 9, 9)
    fast = on_engine(net, [x])
    assert [node.op for node in fast.graph.nodes] == ["conv2d", "conv2d"]
    check_equal(run(net, [x]), fast(x), "in-place")


@pytest.mark.parametrize("name", native_status().supported_sets)
def test_bfloat16_weights_are_rounded_and_nothing_else_is(name: str) -> None:
    with instruction_set(name):
        for case, fast in captured(range(7100, 7106)):
            narrow = AcceleratedModel(fast.graph.with_weights(torch.bfloat16), {}, fast.example)
            rounded = AcceleratedModel(narrow.graph.with_weights(torch.float32), {}, fast.example)
            weights = [weight.values for weight in narrow.graph.weights.values()]
            assert all(values.dtype == torch.bfloat16 for values in weights)
            for a, b in zip(tree_leaves(rounded(*case.inputs)), tree_leaves(narrow(*case.inputs)), strict=True):
                assert torch.equal(a, b), case.seed  # the same sums in the same order


class MeanOfPixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Classifier(nn.Module):
    """Linear layers behind convolutions, in the ways that classifiers are written."""

    def __init__(self, pool: nn.Module, features: int) -> None:
        super().__init__()
        self.body, self.pool = nn.Conv2d(3, 6, 3, padding=1), pool
        self.first, self.second = nn.Linear(features, 20), nn.Linear(20, 7, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = torch.flatten(self.pool(self.body(x)), 1)
        hidden = F.dropout(F.relu(self.first(pixels)), training=self.training)
        return self.second(hidden), torch.cat([pixels, hidden], 1)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.9])
def test_linear_layers_with_few_weights_run_natively(density: float) -> None:
    grids: dict[str, nn.Module] = {
        "grid": nn.MaxPool2d(4),
        "same size": nn.AdaptiveAvgPool2d(12),
        "one pixel": nn.AdaptiveAvgPool2d(1),
        "a mean": MeanOfPixels(),
    }
    for (name, pool), pixels in zip(grids.items(), (9, 144, 1, 1), strict=True):
        net = Classifier(pool, 6 * pixels).eval().requires_grad_(False)
        randomize(net, torch.Generator().manual_seed(1), 0.7)
        for linear in (net.first, net.second):
            linear.weight.mul_(torch.rand(linear.weight.shape, generator=torch.Generator().manual_seed(2)) < density)
        x = torch.randn(3, 3, 12, 12)
        fast = on_engine(net, [x])
        assert sum(node.op == "conv2d" for node in fast.graph.nodes) == (3 if density < 0.5 else 1), name
        check_equal(run(net, [x]), fast(x), name)


@pytest.mark.parametrize("size", [(2, 1), (7, 7), (5, 40), (33, 3)])
def test_means_of_all_pixels(size: tuple[int, int]) -> None:
    net = dense_layers(nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1))
    x = torch.randn(2, 3, *size)
    fast = on_engine(net, [x])
    assert [node.op for node in fast.graph.nodes] == ["conv2d", "global_mean", "conv2d"]
    check_equal(run(net, [x]), fast(x), f"{size}")


def test_torchs_defaults_do_not_matter() -> None:
    net = dense_layers(nn.Conv2d(3, 4, 3))
    x = torch.randn(1, 3, 9, 9)
    expected = run(net, [x])
    try:
        torch.set_default_dtype(torch.float64)
        check_equal(expected, on_engine(net, [x])(x), "float64 by default")
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")
        check_equal(expected, on_engine(net, [x])(x), "meta by default")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize("name", native_status().supported_sets)
def test_every_instruction_set_runs_random_nets(name: str) -> None:
    with instruction_set(name):
        for case, fast in captured(range(7000, 7008)):
            check_equal(run(case.net, case.inputs), fast(*case.inputs), f"seed {case.seed}")
