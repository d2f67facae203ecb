"""accelerate on the kinds of models that people bring, one test a kind: what is compared, called, replaced and left."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

import prunekit
from prunekit.comparison import compare
from prunekit.engine.model import AcceleratedModel
from prunekit.engine.program import Program
from prunekit.errors import InputError
from prunekit.nn import MaskedConv2d
from prunekit.nn.model_copies import OriginalModel
from prunekit.nn.tuning import tune_layer
from prunekit.ops.native import native_status
from prunekit.timing import Timing
from tests.support.accelerate_calls import Net, X, accelerated, check
from tests.support.accelerate_nets import LAYERS, Pair, Result, SamePaddingConv, StandardizedConv
from tests.support.untouched import untouched

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(autouse=True)
def preset_times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let every call run once and report preset times: by default prunekit's own are faster."""
    times = {"dense": 2.0, "own": 2.0}

    def time_in_turn(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*[times.get(name, 1.0)] * 3) for name in calls}

    for module in ("tuning", "candidates"):
        monkeypatch.setattr(importlib.import_module(f"prunekit.nn.{module}"), "time_in_turn", time_in_turn)
    return times


def test_the_report_counts_what_was_compared() -> None:
    fast, report = accelerated(Net(lambda y: Result(y, [y.mean((2, 3)), "text"])).eval())
    assert (report.comparison.inputs, report.comparison.tensors) == (2, 4)
    assert report.comparison.elements == 2 * (4 * 120 + 4)
    assert "(compared 968 numbers in 4 tensors of 2 inputs)" in str(report)
    assert report.to_json()["comparison"]["elements"] == 968
    assert isinstance(fast(X), Result)


def test_a_nan_that_only_a_kernel_makes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Program.run

    def run(program: Program, *args: Any) -> list[Tensor]:
        first, *others = right(program, *args)
        return [first, *(other * torch.nan for other in others)]

    monkeypatch.setattr(Program, "run", run)
    model = Net(lambda y: (y, y + 1)).eval()
    fast, report = accelerated(model)
    assert not isinstance(fast, AcceleratedModel)
    assert any("not run as a whole graph: it differs from the original by inf" in note for note in report.notes)
    check(model, fast, X)


def test_what_is_right_on_the_example_only_is_found_on_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Program.run
    first: dict[Program, list[Tensor]] = {}

    def run(program: Program, *args: Any) -> list[Tensor]:
        return first.setdefault(program, right(program, *args))  # as if the example's numbers were part of the graph

    monkeypatch.setattr(Program, "run", run)
    model = Net().eval()
    fast, report = accelerated(model)
    assert first
    assert not isinstance(fast, AcceleratedModel)
    assert any(note.startswith("not run as a whole graph: it differs from the original") for note in report.notes)
    check(model, fast, X * 3)


def test_outputs_without_tensors_or_numbers() -> None:
    with pytest.raises(InputError, match="a model that returns tensors, in containers of any kind; got str"):
        accelerated(Net(lambda y: "cat").eval())
    fast, report = accelerated(Net(lambda y: y[:, :0]).eval())
    assert type(fast) is Net
    assert report.engine == "the model's own"
    assert "no number on the example, so nothing could be compared" in report.notes[0]
    assert "(nothing was compared)" in str(report)
    fast, report = accelerated(Net().eval(), X[:0])
    assert "nothing could be compared" in report.notes[0]


def test_a_batch_that_the_model_refuses_on_random_numbers_is_compared_on_the_example() -> None:
    def after(y: Tensor) -> Tensor:
        if not torch.equal(y[:1], after.seen):  # type: ignore[attr-defined]
            raise ValueError("I know one image only")
        return y

    model = Net().eval()
    after.seen = model(X).detach()  # type: ignore[attr-defined]
    model.after = after
    _, report = accelerated(model)
    assert report.comparison.inputs == 1
    assert any("does not run on random numbers (I know one image only)" in note for note in report.notes)


def test_randomness_is_named_and_left_as_it_is() -> None:
    model = Net(F.dropout).eval()
    fast, report = accelerated(model)
    assert type(fast) is Net
    assert "two runs of the model itself on the same input differ (dropout that is always on" in report.notes[0]


def test_a_model_that_writes_into_its_input_gets_copies() -> None:
    class Normalizing(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.sub_(0.5).mul_(2))

    model = Normalizing().eval()
    fast, report = accelerated(model)
    assert isinstance(fast, AcceleratedModel)
    assert "the model writes into its input; the accelerated one leaves it as it is" in report.notes
    x = X.clone()
    assert compare(model(X.clone()), fast(x)).relative_rms <= 1e-5
    assert torch.equal(x, X)


@pytest.mark.parametrize("whole_graph", [True, False])
@pytest.mark.parametrize("kind", ["standardized", "same", "own _conv_forward", "functional", "patched"])
def test_convolutions_with_a_forward_of_their_own(kind: str, whole_graph: bool) -> None:
    model = Net(middle=LAYERS[kind](16)).eval()
    fast, report = accelerated(model, whole_graph=whole_graph)
    check(model, fast, X)
    check(model, fast, torch.rand(2, 3, 12, 10))
    if not whole_graph:
        assert isinstance(fast.first, MaskedConv2d)
        assert type(fast.middle) is type(model.middle)
        assert [row.name for row in report.rows] == ["first", "second"]


def test_one_module_under_two_names_is_replaced_under_both() -> None:
    model = Net()
    model.encoder = nn.ModuleDict({"a": model.first, "b": nn.ModuleList([model.second, model.first])})
    fast, _ = accelerated(model.eval(), whole_graph=False)
    assert isinstance(fast.first, MaskedConv2d)
    assert fast.encoder["a"] is fast.first
    assert fast.encoder["b"][1] is fast.first
    assert fast.encoder["b"][0] is fast.second
    check(model, fast, X)


def test_a_layer_held_outside_the_modules_is_given_back() -> None:
    class Hidden(Net):
        def __init__(self) -> None:
            super().__init__(middle=nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16)))
            self.middle[0].weight.data.mul_(torch.rand(16, 16, 1, 1) < 0.5)
            self.middle[1].running_mean.uniform_(1, 2)
            self.steps = [self.middle[0], self.middle[1]]  # a list, which no replacement reaches

        def forward(self, x: Tensor) -> Any:
            y = self.first(x).relu()
            for i, step in enumerate(self.steps):
                y = step(y) if i != 1 else self.middle[1](y)
            return self.second(y)

    model = Hidden().eval()
    fast, report = accelerated(model, whole_graph=False)
    check(model, fast, X)
    assert isinstance(fast.first, MaskedConv2d)
    assert any(note.startswith("layer middle.0 was left to torch: it differs") for note in report.notes)
    assert report.batch_norms_folded == 0


def test_a_kernel_that_is_wrong_or_raises_costs_its_layer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MaskedConv2d._forward_packed

    def forward(masked: MaskedConv2d, x: Tensor, padding: tuple[int, int]) -> Tensor:
        if masked.out_channels == 16:
            raise RuntimeError("illegal instruction\nmore")
        return right(masked, x, padding)

    monkeypatch.setattr(MaskedConv2d, "_forward_packed", forward)
    model = Net().eval()
    fast, report = accelerated(model, whole_graph=False)
    assert type(fast.first) is nn.Conv2d
    assert isinstance(fast.second, MaskedConv2d)
    assert "layer first was left to torch: illegal instruction" in report.notes
    check(model, fast, X)


@pytest.mark.parametrize(
    "place", ["tuning.tune_layer", "whole_graph.capture_any_size", "whole_graph.tune", "candidates.layer_reports"]
)
def test_whatever_fails_inside_is_a_note(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name = place.split(".")

    def fail(*_: object, **__: object) -> None:
        raise IndexError("list index out of range")

    module = "packed_layers" if name == "tune_layer" else module
    monkeypatch.setattr(importlib.import_module(f"prunekit.nn.{module}"), name, fail)
    model = Net().eval()
    fast, report = accelerated(model, whole_graph=name != "tune_layer")
    assert any("list index out of range" in note for note in report.notes)
    assert isinstance(fast, AcceleratedModel) == (name == "layer_reports")
    check(model, fast, X)


def test_a_whole_graph_that_was_right_survives_modules_that_fail(
    preset_times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset_times["own"] = 1.1  # not clearly slower
    monkeypatch.setattr(importlib.import_module("prunekit.nn.candidates"), "_CLEARLY_FASTER", 1.4)

    def fail(*_: object) -> None:
        raise RuntimeError("cannot be packed")

    monkeypatch.setattr(importlib.import_module("prunekit.nn.candidates"), "pack_layers", fail)
    fast, report = accelerated(Net().eval())
    assert isinstance(fast, AcceleratedModel)
    assert "no layer was replaced: cannot be packed" in report.notes


def test_layers_that_make_the_model_slower_are_given_back(preset_times: dict[str, float]) -> None:
    preset_times |= {"own": 1.0, "modules": 2.0}
    model = Net().eval()
    fast, report = accelerated(model, whole_graph=False)
    assert type(fast.first) is nn.Conv2d
    assert report.engine == "the model's own"
    assert "the model itself was measured faster than its layers on packed filters" in report.notes
    assert all(row.reason.startswith("given back") for row in report.rows)
    assert report.before_ms == report.after_ms
    check(model, fast, X, most=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_in_float32_behind_its_doors(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Net(lambda y: Pair(y, y.flatten(1).max(1))).to(dtype).eval()
    x = X.to(dtype)
    fast, _ = accelerated(model, x)
    assert isinstance(fast, AcceleratedModel)
    prunekit.save(fast, tmp_path / "fast")
    loaded = prunekit.load(tmp_path / "fast")
    exact = Net(lambda y: y).eval()
    exact.load_state_dict(model.float().state_dict())
    for net in (fast, loaded):
        found = net(x)
        assert type(found).__name__ == "Pair"
        assert type(found[1]) is torch.return_types.max
        assert found[0].dtype == found[1].values.dtype == dtype
        with torch.no_grad():
            assert compare(exact(x.float()), found[0].float()).relative_rms <= torch.finfo(dtype).eps
    with pytest.raises(InputError, match=r"Expected a b?float16 tensor \[N, C, H, W\] as x, got float32"):
        fast(X)


def test_autocast_inside_and_around() -> None:
    class Auto(Net):
        def forward(self, x: Tensor) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x).float()

    model, plain = Auto().eval(), Net().eval()
    fast, _ = accelerated(model)
    assert isinstance(fast, AcceleratedModel)
    check(plain, fast, X, most=1e-5)  # float32's answer, not bfloat16's
    with torch.autocast("cpu", torch.bfloat16):
        fast, report = accelerated(plain)
        found = fast(X)
    assert isinstance(fast, AcceleratedModel)
    assert found.dtype == torch.float32
    assert report.relative_rms <= 1e-5
    assert compare(plain(X), found).relative_rms <= 1e-5


def test_models_in_float64_keep_their_precision() -> None:
    model = Net().double().eval()
    fast, report = accelerated(model, X.double())
    assert report.engine == "modules"
    assert "not run as a whole graph: the engine computes in float32" in report.notes
    check(model, fast, X.double(), most=1e-12)


def test_hooks_are_named() -> None:
    model = Net().eval()
    model.second.register_forward_hook(lambda *_: None)
    _, report = accelerated(model)
    assert "not run as a whole graph: module second has forward hooks, which the engine does not run" in report.notes


def test_parametrizations_are_made_plain_in_the_copy_only() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    model = Net()
    parametrize.register_parametrization(model.first, "weight", Half())
    fast, _ = accelerated(model.eval())
    assert isinstance(fast, AcceleratedModel)
    assert parametrize.is_parametrized(model.first)
    check(model, fast, X)


def test_what_cannot_be_copied_is_shared_or_wrapped() -> None:
    model = Net().eval()
    model.lock = threading.Lock()  # type: ignore[assignment]
    model.last = model(X)  # carries a graph, which deepcopy refuses
    fast, _ = accelerated(model)
    assert isinstance(fast, AcceleratedModel)
    check(model, fast, X)

    class Unique(Net):
        def __deepcopy__(self, memo: object) -> Unique:
            raise TypeError("there is one of me")

    model = Unique().train()
    fast, report = accelerated(model)
    assert isinstance(fast, OriginalModel)
    assert report.notes == ["the model cannot be copied (there is one of me), so it is called as it is"]
    with untouched(model, X):
        found = fast(x=X)
        fast.requires_grad_(False).train().double()
    assert torch.equal(found, model.eval()(X))


def test_closures_in_the_place_of_methods_run_on_the_copy() -> None:
    model = Net().eval()
    forward = model.first.forward
    model.first.forward = lambda input: forward(input) * 2  # type: ignore[method-assign]
    fast, _ = accelerated(model, whole_graph=False)
    expected = model(X)
    check(model, fast, X)
    with torch.no_grad():
        model.first.weight.zero_()
    assert compare(expected, fast(X)).relative_rms <= 1e-5  # the original's weights are not the copy's


def test_a_subclass_is_plain_only_where_its_forward_is() -> None:
    class Named(nn.Conv2d):
        """A subclass that computes what nn.Conv2d does."""

    model = Net(middle=nn.Sequential(Named(16, 16, 1), StandardizedConv(16, 16, 1), SamePaddingConv(16, 16, 3))).eval()
    with torch.no_grad():
        model.middle[0].weight[3:] = 0
    fast, report = accelerated(model, whole_graph=False)
    assert isinstance(fast.middle[0], MaskedConv2d)
    assert [row.name for row in report.rows] == ["first", "middle.0", "second"]
    row, winner = tune_layer("first", model.first, None, X)
    assert winner is not None
    assert row.density < 1


def test_nothing_is_printed_where_torch_export_fails(capfd: pytest.CaptureFixture[str]) -> None:
    class Conditional(Net):
        """Takes a branch by the pixels."""

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            return y * 2 if y.sum() > 0 else y

    model = Conditional().eval()
    _, report = accelerated(model)
    assert any("torch.export cannot capture the model" in note for note in report.notes)
    with pytest.raises(InputError, match=r"torch\.export can trace"):
        prunekit.compact(model, X)
    assert capfd.readouterr() == ("", "")
