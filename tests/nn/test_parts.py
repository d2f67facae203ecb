"""Parts on the engine: models that no capture takes whole keep their class and become faster where they can."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.comparison import compare
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError
from prunekit.nn.acceleration_report import AccelerationReport
from prunekit.nn.parts import PartForward
from prunekit.ops.native import native_status
from tests.support.part_nets import FAST, Branching, Choosing, ToyDetector, Watched, block, pruned, use_preset_times

pytestmark = pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}")
X = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
IMAGES = [torch.rand(3, 32, 40, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let every call run once and report preset times, so that choices do not depend on the machine's mood."""
    preset = dict(FAST)
    use_preset_times(monkeypatch, preset)
    return preset


def accelerated(model: nn.Module, example: Any, **options: Any) -> tuple[Any, AccelerationReport]:
    """Accelerate, and see that the model is as it was and that the result's class is the model's."""
    before = copy.deepcopy(model.state_dict())
    fast: Any = prunekit.accelerate(model, example, tuning_seconds=0.2, tuning_cache=None, **options)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(isinstance(vars(module).get("forward"), PartForward) for module in model.modules())
    return fast, fast.report


def on_engine(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(vars(module).get("forward"), PartForward)]


def assert_same(model: nn.Module, fast: nn.Module, *args: Any) -> None:
    with torch.no_grad():
        found = compare(model(*args), fast(*args))
    assert found.elements
    assert found.relative_rms < 1e-5


def test_a_detector_keeps_its_class_with_backbone_and_head_on_the_engine() -> None:
    model = pruned(ToyDetector())
    fast, report = accelerated(model, (IMAGES,))
    assert type(fast) is ToyDetector
    assert report.engine == "parts"
    assert on_engine(fast) == ["backbone", "head"]
    assert [(part.name, part.engine, part.calls) for part in report.parts] == [
        ("backbone", "whole graph", 1), ("head", "whole graph", 2),
    ]  # fmt: skip
    assert all(part.comparison.elements for part in report.parts)
    assert any("not run as a whole graph" in note for note in report.notes)
    assert {row.name.split(".")[0] for row in report.rows} == {"backbone", "head"}
    assert_same(model, fast, IMAGES)
    assert_same(model, fast, [torch.rand(3, 24, 48), torch.rand(3, 24, 48), torch.rand(3, 24, 48)])
    assert "Part backbone (1 call): whole graph" in str(report)
    assert report.to_json()["parts"][0]["name"] == "backbone"


def test_a_detector_that_finds_nothing_is_compared_on_what_flows_into_its_decisions() -> None:
    model = pruned(ToyDetector(threshold=1.0))
    assert not any(len(found["scores"]) for found in model(IMAGES))
    fast, report = accelerated(model, (IMAGES,))
    assert on_engine(fast) == ["backbone", "head"]
    assert report.comparison.elements > 1000
    assert any("decisions of" in note for note in report.notes)


@pytest.mark.parametrize("step", [0.25, 0.01])
def test_equal_scores_are_no_difference(step: float) -> None:
    model = pruned(ToyDetector(step=step))
    fast, report = accelerated(model, (IMAGES,))
    assert on_engine(fast) == ["backbone", "head"]
    assert report.relative_rms < 1e-4


def test_branches_over_values() -> None:
    model = pruned(Branching())
    fast, report = accelerated(model, X)
    assert type(fast) is Branching
    assert on_engine(fast) == ["first", "second"]
    assert report.engine == "parts"
    assert_same(model, fast, X)


def test_named_parts_only() -> None:
    model = pruned(ToyDetector())
    fast, report = accelerated(model, (IMAGES,), parts=["backbone"])
    assert on_engine(fast) == ["backbone"]
    assert [part.name for part in report.parts] == ["backbone"]
    assert_same(model, fast, IMAGES)


def test_named_parts_of_a_model_that_could_go_whole() -> None:
    model = pruned(nn.Sequential(block(3, 16), block(16, 8)))
    fast, report = accelerated(model, X, parts=["1"])
    assert type(fast) is nn.Sequential
    assert on_engine(fast) == ["1"]
    assert report.engine == "parts"
    assert_same(model, fast, X)


def test_nested_and_shared_names() -> None:
    body = nn.Sequential(block(3, 8), block(8, 3))
    model = pruned(nn.Sequential(body, nn.MaxPool2d(2), body))
    fast, report = accelerated(model, X, parts=["0", "0.1", "2"])
    assert on_engine(fast) == ["0"]  # named_modules gives a shared module once
    assert vars(fast[2])["forward"] is vars(fast[0])["forward"]
    states = {part.name: (part.engine, part.calls) for part in report.parts}
    assert states["0"] == ("whole graph", 2)
    assert states["0.1"] == ("own code", 0)
    assert_same(model, fast, X)


@pytest.mark.parametrize("parts", [["backbon"], ["head.towr.0"], [], "backbone", [""], [3]])
def test_wrong_names_end_in_one_sentence(parts: Any) -> None:
    with pytest.raises(InputError, match=r"Expected names of submodules as parts, .*got"):
        prunekit.accelerate(pruned(ToyDetector()), (IMAGES,), parts=parts)
    with pytest.raises(InputError, match="backbone"):
        prunekit.accelerate(pruned(ToyDetector()), (IMAGES,), parts=["backbon"])


def test_a_part_that_is_slower_stays_as_it_is(times: dict[str, float]) -> None:
    times["after"] = 3.0
    fast, report = accelerated(pruned(ToyDetector()), (IMAGES,), parts=["backbone"])
    assert not on_engine(fast)
    assert report.parts[0].notes == ["its own code was measured faster"]


def test_a_wrong_engine_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = AcceleratedModel.forward

    def wrong(self: AcceleratedModel, *args: Any, **kwargs: Any) -> Any:
        outputs = right(self, *args, **kwargs)
        return tuple(y * 1.01 for y in outputs) if isinstance(outputs, tuple) else outputs

    monkeypatch.setattr(AcceleratedModel, "forward", wrong)
    model = pruned(ToyDetector())
    fast, report = accelerated(model, (IMAGES,))
    assert "head" not in on_engine(fast)
    head = next(part for part in report.parts if part.name == "head")
    assert "head on the engine differs from the original" in head.notes[0]
    assert_same(model, fast, IMAGES)


def test_a_part_that_does_more_than_return_its_outputs_is_caught_by_the_whole_model() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.watched, self.other = Watched(), block(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.other(self.watched(x))
            if float(y.mean()) > 1e9:
                return y
            z: Tensor = y + self.watched.seen * 2
            return z

    model = pruned(Looking())
    fast, report = accelerated(model, X)
    assert "watched" not in on_engine(fast)
    assert "other" in on_engine(fast)
    watched = next(part for part in report.parts if part.name == "watched")
    assert "model as a whole is wrong" in watched.notes[0]
    assert_same(model, fast, torch.rand(1, 3, 32, 32))


def test_calls_that_the_engine_does_not_take_run_the_own_code() -> None:
    model = pruned(Branching())
    fast, _ = accelerated(model, X)
    x = X.clone().requires_grad_()
    fast.first(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        expected, doubled = [model.get_submodule("first")(y) for y in (X, X * 2)]
    torch.testing.assert_close(fast.first(X), expected)
    traced = torch.jit.trace(fast.first, X)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(X * 2), doubled)
    exported = torch.export.export(fast.first, (X,), strict=False).module()
    torch.testing.assert_close(exported(X), expected)


def test_copies_and_saved_weights() -> None:
    model = pruned(Branching())
    fast, _ = accelerated(model, X)
    again = copy.deepcopy(fast)
    assert on_engine(again) == ["first", "second"]
    assert vars(again.first)["forward"].module is again.first
    assert_same(model, again, X)
    assert fast.state_dict().keys() == model.state_dict().keys()
    buffer = io.BytesIO()
    torch.save(fast.state_dict(), buffer)
    again.first[0][0].weight.zero_()
    assert_same(model, fast, X)


def test_a_whole_graph_that_ends_in_a_choice_among_equal_scores() -> None:
    fast, report = accelerated(pruned(Choosing()), X.expand(2, -1, -1, -1).contiguous())
    assert isinstance(fast, AcceleratedModel)
    assert report.engine == "whole graph"
    assert report.relative_rms < 1e-4
