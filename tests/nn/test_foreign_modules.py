"""Modules that are no ordinary classes: exported, scripted, compiled, wrapped, quantized, converted by other tools."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import prunekit
from prunekit.comparison import compare
from prunekit.engine.model import AcceleratedModel
from prunekit.ops.native import native_status
from prunekit.timing import Timing
from tests.support.part_nets import block, pruned

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]
X = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _engine_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = {"own": 9.0, "modules": 5.0, "parts": 2.0, "graph": 1.0, "before": 2.0, "after": 1.0}

    def time_in_turn(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*[preset.get(name, 1.0)] * 3) for name in calls}

    for module in ("prunekit.nn.candidates", "prunekit.nn.part_search", "prunekit.nn.tuning"):
        monkeypatch.setattr(importlib.import_module(module), "time_in_turn", time_in_turn)


def net() -> nn.Module:
    return pruned(nn.Sequential(block(3, 8), nn.Dropout(), block(8, 4)))


def exported() -> nn.Module:
    return torch.export.export(net(), (X,)).module()


def scripted() -> nn.Module:
    made: nn.Module = torch.jit.script(net())
    return made


def traced() -> nn.Module:
    made: nn.Module = torch.jit.trace(net(), X)  # type: ignore[no-untyped-call]
    return made


def frozen() -> nn.Module:
    made: nn.Module = torch.jit.freeze(torch.jit.script(net()))
    return made


def compiled() -> nn.Module:
    made: Any = torch.compile(net(), backend="eager")
    return made  # type: ignore[no-any-return]


def compiled_in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


def parallel() -> nn.Module:
    return nn.DataParallel(net())


def partly_compiled() -> nn.Module:
    inner: Any = torch.compile(net(), backend="eager")
    return nn.Sequential(inner, nn.ReLU())


def converted() -> nn.Module:
    """Return a GraphModule whose reshape takes sizes computed from tensors, as converters of ONNX write them."""

    class Reshape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shape = torch.cat([torch.tensor(x.shape)[:2], torch.tensor([-1])])
            return torch.reshape(x, [int(size) for size in shape])

    graph_module = fx.symbolic_trace(nn.Sequential(net(), nn.ReLU()))
    graph_module.add_submodule("reshape", Reshape())
    output = next(node for node in graph_module.graph.nodes if node.op == "output")
    with graph_module.graph.inserting_before(output):
        output.args = (graph_module.graph.call_module("reshape", (output.args[0],)),)
    graph_module.recompile()
    return graph_module


class Refusing(nn.Module):
    """Raises at train() and eval()."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def train(self, mode: bool = True) -> Refusing:
        raise NotImplementedError("train() is not supported")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


def quantized() -> nn.Module:
    """Return a module with torch.ao's fake quantization behind its convolutions."""
    from torch.ao.quantization import FakeQuantize

    fake = FakeQuantize()  # type: ignore[no-untyped-call]
    model = nn.Sequential(net(), fake, block(4, 4))
    fake(torch.linspace(-3, 3, 50))
    fake.disable_observer()
    return pruned(model)


_WHOLE = [exported, compiled, compiled_in_place, parallel, partly_compiled, Refusing]


@pytest.mark.parametrize("make", [*_WHOLE, scripted, traced, frozen, converted, quantized])
def test_every_module_runs_or_is_left_alone_with_a_note(make: Callable[[], nn.Module]) -> None:
    model = make()
    flags = [getattr(module, "training", None) for module in model.modules()]
    weights = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(X)
    fast: Any = prunekit.accelerate(model, X, tuning_seconds=0.2, tuning_cache=None)
    assert compare(expected, fast(X)).relative_rms < 1e-4
    assert [getattr(module, "training", None) for module in model.modules()] == flags
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)
    if make in _WHOLE:
        assert isinstance(fast, AcceleratedModel), fast.report.notes
    elif not isinstance(fast, AcceleratedModel):
        assert fast.report.notes
    if make in (compiled, parallel):
        assert fast.report.notes[0].startswith("the model was taken out of ")
    assert fast.report.comparison.elements
