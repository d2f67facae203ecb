"""accelerate on models of all kinds: same outputs, same class, the original untouched, a report that tells why."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import prunekit
from prunekit.engine.graph import Graph
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError
from prunekit.nn import AccelerationReport, MaskedConv2d, WrongOutputError
from prunekit.nn.tuning import tune_layer
from prunekit.ops.native import native_status
from prunekit.timing import Timing
from tests.support.oracles import TOLERANCE, relative_difference

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")
X = torch.randn(1, 32, 40, 40, generator=torch.Generator().manual_seed(0))


def fix_times(monkeypatch: pytest.MonkeyPatch, **median_ms: float) -> None:
    """Let every call run once and report preset times, so that choices do not depend on the machine's mood."""

    def time_in_turn(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*[median_ms.get(name, median_ms["packed"])] * 3) for name in calls}

    for module in ("prunekit.nn.tuning", "prunekit.nn.candidates"):
        monkeypatch.setattr(importlib.import_module(module), "time_in_turn", time_in_turn)


@pytest.fixture(autouse=True)
def _packed_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    fix_times(monkeypatch, dense=2.0, packed=1.0)


def sparsify(model: nn.Module, sparsity: float) -> nn.Module:
    """Zero weights and give BatchNorm statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) >= sparsity)
            if isinstance(module, nn.BatchNorm2d):
                for tensor in module.state_dict(keep_vars=True).values():
                    if tensor.is_floating_point():
                        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.shared = nn.Conv2d(64, 64, 1)
        self.head = nn.Conv2d(64, 32, 1)
        self.calls = 0

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        y = self.act(self.norm(self.conv(x)))
        y = y + F.relu(self.shared(self.shared(y)))
        return self.head(y), {"features": y}

    def greet(self) -> str:
        return "hello"


def accelerated(model: nn.Module, x: Tensor = X) -> tuple[nn.Module, AccelerationReport]:
    fast = prunekit.accelerate(model, x, whole_graph=False)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    return fast, report


def test_same_outputs_same_class_and_the_original_is_untouched() -> None:
    model = sparsify(Block(), 0.97).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fast, report = accelerated(model)
    assert type(fast) is Block
    assert fast.greet() == "hello"
    assert model.training
    assert not fast.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    for x in (X, torch.randn(3, 32, 17, 23)):
        (a, b), (c, d) = model(x), fast(x)
        assert relative_difference(a, c) <= TOLERANCE[torch.float32]
        assert relative_difference(b["features"], d["features"]) <= TOLERANCE[torch.float32]
    assert isinstance(fast.conv, MaskedConv2d)
    assert fast.conv.activation == "leaky_relu"
    assert isinstance(fast.norm, nn.Identity)
    assert isinstance(fast.act, nn.Identity)
    assert report.batch_norms_folded == 1
    assert report.relative_rms <= 1e-5
    assert [row.name for row in report.rows] == ["conv", "shared", "head"]
    assert report.rows[0].density == pytest.approx(0.03, abs=0.01)
    assert "measured faster" in str(report)
    assert report.to_json()["speedup"] == report.speedup


def test_gradients_to_the_input_pass_through() -> None:
    model = sparsify(Block(), 0.95).eval()
    fast, _ = accelerated(model)
    grads = []
    for net in (model, fast):
        x = X.clone().requires_grad_()
        grads.append(torch.autograd.grad(net(x)[0].square().sum(), x)[0])
    assert relative_difference(*grads) <= 1e-4
    assert not any(p.requires_grad for p in fast.parameters())


def pruned_by_torch() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3))
    for conv in (model[0], model[2]):
        prune.random_unstructured(conv, "weight", 0.95)  # type: ignore[no-untyped-call]
    model(X)  # leaves weights that carry a graph, which cannot be copied as they are
    return model


def parametrized() -> nn.Module:
    class Sparse(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight * (weight.abs() > 0.055)

    conv = nn.Conv2d(32, 64, 3)
    parametrize.register_parametrization(conv, "weight", Sparse())
    return nn.Sequential(conv, nn.ReLU())


def untraceable() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = sparsify(nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU()), 0.95)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.body(x)
            return y if bool(y.mean() > 0) else -y

    return Net()


def batch_statistics() -> nn.Module:
    # BatchNorm without running statistics normalizes each batch, so it must not be folded.
    return sparsify(
        nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64, affine=False, track_running_stats=False)), 0.95
    )


def depthwise() -> nn.Module:
    return sparsify(nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.ReLU6(), nn.Conv2d(32, 64, 1, stride=2)), 0.9)


@pytest.mark.parametrize("make", [pruned_by_torch, parametrized, untraceable, batch_statistics, depthwise])
def test_models_pruned_and_written_by_anyone(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(2)
    model = make().eval()
    fast, report = accelerated(model)
    with torch.no_grad():
        assert relative_difference(model(X), fast(X)) <= TOLERANCE[torch.float32]
    assert any(row.implementation.startswith("packed") for row in report.rows)
    assert (make is untraceable) == any("cannot be traced" in note for note in report.notes)


def test_the_faster_one_is_chosen_and_dense_wins_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(nn.Sequential(nn.Conv2d(32, 64, 3)), 0.5)
    fix_times(monkeypatch, dense=1.0, packed=1.0)
    fast, report = accelerated(model)
    assert type(fast[0]) is nn.Conv2d  # type: ignore[index]
    assert (report.rows[0].implementation, report.rows[0].reason) == ("dense", "dense measured faster")
    fix_times(monkeypatch, dense=3.0, packed=2.0, **{"packed, 4 rows": 1.0})
    fast, report = accelerated(model)
    assert isinstance(fast[0], MaskedConv2d)  # type: ignore[index]
    assert (report.rows[0].implementation, report.rows[0].dense_ms, report.rows[0].sparse_ms) == (
        "packed, 4 rows",
        3,
        1,
    )


def test_a_whole_graph_that_is_slower_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("prunekit.nn.candidates"), "_CLEARLY_FASTER", 1.4)
    fix_times(monkeypatch, dense=2.0, packed=1.0, own=1.0, modules=1.0, graph=2.0)
    fast = prunekit.accelerate(sparsify(Block(), 0.9).eval(), X, tuning_cache=None)
    assert isinstance(fast, Block)
    assert any("faster than the whole graph" in note for note in fast.report.notes)  # type: ignore[union-attr]
    assert fast.report.engine == "modules"  # type: ignore[union-attr]
    fix_times(monkeypatch, dense=2.0, packed=1.0, own=1.0, modules=2.0, graph=1.0)
    assert isinstance(prunekit.accelerate(sparsify(Block(), 0.9).eval(), X, tuning_cache=None), AcceleratedModel)


def test_real_measurements_choose_for_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    _, report = accelerated(sparsify(Block(), 0.9))
    for row in report.rows:
        assert row.dense_ms is not None
        assert row.sparse_ms is not None
        if row.reason.startswith("given back"):
            assert row.implementation == "dense"
            assert report.engine == "the model's own"
        else:
            assert (row.implementation == "dense") == (row.sparse_ms >= row.dense_ms)


def test_dense_models_stay_dense_and_hooked_layers_are_left_alone() -> None:
    fast, report = accelerated(nn.Sequential(nn.Conv2d(32, 8, 3), nn.ReLU()))
    assert [(row.implementation, row.reason) for row in report.rows] == [("dense", "no weight is zero")]
    model = sparsify(nn.Sequential(nn.Conv2d(32, 64, 3)), 0.95)
    seen: list[int] = []
    model[0].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index]
    fast, report = accelerated(model)
    seen.clear()
    fast(X)
    assert seen == [1]
    assert report.rows == []


def test_a_wrong_kernel_is_refused_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MaskedConv2d._forward_packed
    monkeypatch.setattr(MaskedConv2d, "_forward_packed", lambda self, x, padding: right(self, x, padding) * 1.001)
    monkeypatch.setattr("prunekit.nn.tuning.time_in_turn", lambda *_, **__: pytest.fail("timed"))
    conv = nn.Conv2d(32, 64, 3).eval()
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) > 0.9)
        with pytest.raises(WrongOutputError, match="layer stem"):
            tune_layer("stem", conv, None, X)


def test_outputs_that_are_not_finite_are_not_trusted() -> None:
    conv = nn.Conv2d(32, 8, 3)
    with torch.no_grad():
        conv.weight.mul_(torch.rand_like(conv.weight) > 0.9)
        _, winner = row_and_winner = tune_layer("stem", conv, None, X * torch.inf)
    assert winner is None
    assert "not finite" in row_and_winner[0].reason


def test_bfloat16_weights_halve_the_values_and_cost_what_rounding_costs(tmp_path: Path) -> None:
    layers = nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 16, 1)
    model = sparsify(nn.Sequential(*layers), 0.7).eval()
    wide, fast = (
        prunekit.accelerate(model, X, weight_dtype=dtype, tuning_cache=None)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert isinstance(fast, AcceleratedModel)
    assert isinstance(wide, AcceleratedModel)
    rounded = [weight.to(torch.bfloat16).values for weight in wide.graph.weights.values()]
    assert all(map(torch.equal, rounded, (weight.values for weight in fast.graph.weights.values())))
    difference = relative_difference(model(X), fast(X))
    assert 1e-4 < difference < TOLERANCE[torch.bfloat16]
    narrow_report, wide_report = fast.report, wide.report
    assert isinstance(narrow_report, AccelerationReport)
    assert isinstance(wide_report, AccelerationReport)
    assert difference <= 1.1 * narrow_report.relative_rms  # of two inputs the larger one
    assert narrow_report.relative_rms < TOLERANCE[torch.bfloat16]
    for row, other in zip(narrow_report.rows, wide_report.rows, strict=True):
        assert 0 < (row.num_bytes or 0) < (other.num_bytes or 0)
    prunekit.save(fast, tmp_path / "fast")
    assert torch.equal(prunekit.load(tmp_path / "fast")(X), fast(X))


def test_a_kernel_that_is_wrong_on_rounded_weights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparsify(nn.Sequential(Block()), 0.7).eval()
    right = Graph.with_weights

    def wrong(graph: Graph, dtype: torch.dtype) -> Graph:
        other = right(graph, dtype)
        for weight in other.weights.values():
            if dtype == torch.float32:
                weight.values.mul_(1.01)
        return other

    monkeypatch.setattr(Graph, "with_weights", wrong)
    fast = prunekit.accelerate(model, X, weight_dtype=torch.bfloat16, tuning_cache=None)
    assert not isinstance(fast, AcceleratedModel)
    assert any("not run as a whole graph: it differs from the original by" in note for note in fast.report.notes)  # type: ignore[union-attr]
    assert relative_difference(model(X)[0], fast(X)[0]) <= TOLERANCE[torch.float32]


def test_bad_input() -> None:
    model = nn.Sequential(nn.Conv2d(32, 8, 3))
    with pytest.raises(InputError, match=r"does not run on example_input of shape \(1, 3, 8, 8\)"):
        prunekit.accelerate(model, torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="tensor or a sequence of tensors; got str"):
        prunekit.accelerate(model, ["x"])
    with pytest.raises(InputError, match=r"weight_dtype torch.float32 or torch.bfloat16; got torch.float16"):
        prunekit.accelerate(model, X, weight_dtype=torch.float16)
    with pytest.raises(InputError, match="on one NVIDIA GPU; model and example_input are on cpu, meta"):
        prunekit.accelerate(model, X.to("meta"))
