"""What of torchvision's detectors runs on the engine: prunekit's networks whole, torchvision's own models in parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.detection.torchvision_families import FAMILIES
from prunekit.nn import AccelerationReport, accelerate
from prunekit.ops.native import native_status
from tests.support.part_nets import FAST, pruned, use_preset_times
from tests.support.torchvision_nets import SIDES, problem, torchvision_twin

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
#: What torch runs inside of the networks, as docs/detection.md says it.
IN_TORCH = {"fcos-resnet50-fpn": "group_norm", "ssd300-vgg16": "linalg_vector_norm"}
PARTS = {name: ["backbone", "head"] for name in FAMILIES} | {"fasterrcnn-resnet50-fpn": ["backbone", "rpn.head"]}


@pytest.fixture(autouse=True)
def _preset_times(monkeypatch: pytest.MonkeyPatch) -> None:
    use_preset_times(monkeypatch, FAST)


def report_of(model: nn.Module) -> AccelerationReport:
    assert isinstance(model.report, AccelerationReport)
    return model.report


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_is_one_graph(name: str) -> None:
    case = problem(name)
    x = case.x[:1]
    fast = accelerate(pruned(case.model), x, tuning_seconds=0.0, tuning_cache=None)
    report = report_of(fast)
    assert report.engine == "whole graph", report.notes
    assert report.relative_rms <= 1e-4
    assert report.comparison.tensors == 2 * len(case.model(x))  # the example, and other numbers
    convolutions = [layer for layer, module in case.model.named_modules() if isinstance(module, nn.Conv2d)]
    assert {row.name for row in report.rows} == set(convolutions)
    operators = next((note for note in report.notes if note.startswith("torch runs")), "")
    assert (IN_TORCH[name] in operators) if name in IN_TORCH else not operators


@pytest.mark.parametrize("name", FAMILIES)
def test_torchvision_s_own_model_has_parts_on_the_engine(name: str) -> None:
    case = problem(name)
    pruned(case.model)
    twin = torchvision_twin(case)
    side = SIDES[name]
    images = [torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))]
    fast = accelerate(twin, (images,), parts=PARTS[name], tuning_seconds=0.0, tuning_cache=None)
    report = report_of(fast)
    assert type(fast) is type(twin)
    assert [(part.name, part.engine) for part in report.parts] == [(part, "whole graph") for part in PARTS[name]]
    assert all(part.comparison.elements > 0 and part.comparison.relative_rms <= 1e-4 for part in report.parts)
    assert report.relative_rms <= 1e-4
    assert report.comparison.elements > 0
