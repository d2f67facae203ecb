"""accelerate on random modules of the kinds that people bring: right, or left alone with a note, and nothing changed.

PRUNEKIT_MODULES sets how many are drawn.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunekit
from prunekit.comparison import compare
from prunekit.engine.model import AcceleratedModel
from prunekit.nn import AccelerationReport
from prunekit.ops.native import native_status
from prunekit.structure import flatten
from prunekit.timing import Timing
from tests.support.accelerate_nets import Case, random_case
from tests.support.untouched import untouched

pytestmark = [
    pytest.mark.skipif(not native_status().available, reason=f"no native kernels: {native_status().reason}"),
    pytest.mark.usefixtures("one_thread"),
]
MODULES = int(os.environ.get("PRUNEKIT_MODULES", "100"))
# The half types' own rounding through four layers, of outputs near zero too.
LARGEST = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.fixture(autouse=True)
def _packed_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call run once, and let prunekit's own measure faster, so that it is what is compared."""

    def time_in_turn(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*[2.0 if name in ("dense", "own") else 1.0] * 3) for name in calls}

    for module in ("tuning", "candidates"):
        monkeypatch.setattr(importlib.import_module(f"prunekit.nn.{module}"), "time_in_turn", time_in_turn)


def accelerated(case: Case, whole_graph: bool) -> nn.Module:
    args: Any = case.args[0] if len(case.args) == 1 and isinstance(case.args[0], Tensor) else case.args
    return prunekit.accelerate(
        case.model,
        args,
        example_kwargs=case.kwargs,
        whole_graph=whole_graph,
        tuning_seconds=0.0,
        tuning_cache=None,
    )


def run(model: nn.Module, args: Any, kwargs: Any) -> Any:
    tensors, structure = flatten([args, kwargs])
    args, kwargs = structure.build([tensor.clone() for tensor in tensors])
    with torch.no_grad():
        return model(*args, **kwargs)


def coarsest(case: Case) -> torch.dtype:
    if case.behavior == "autocast":
        return torch.bfloat16
    return next(case.model.parameters()).dtype


@settings(max_examples=MODULES, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 10**9), whole_graph=st.booleans())
def test_random_modules_are_right_or_left_alone_with_a_note(seed: int, whole_graph: bool) -> None:
    case = random_case(seed)
    with untouched(case.model, case.args, case.kwargs):
        fast = accelerated(case, whole_graph)
    report = fast.report
    assert isinstance(report, AccelerationReport)
    if case.behavior == "random":
        assert type(fast) is type(case.model)
        assert any("two runs of the model itself" in note for note in report.notes), case.kinds
        assert "nothing was compared" in str(report)
        return
    assert report.comparison.elements > 0, (case.kinds, report.notes)
    assert report.comparison.inputs == 2 or any("on the example only" in note for note in report.notes), case.kinds
    if whole_graph and case.behavior in ("hook", "branches", "buffer"):
        assert report.notes, case.kinds
    for args, kwargs in ((case.args, case.kwargs), (case.other_args, case.other_kwargs)):
        expected = run(case.model, args, kwargs)
        found = compare(expected, run(fast, args, kwargs))
        assert found.relative_rms <= LARGEST[coarsest(case)], (case.kinds, report.engine, found)
        assert found.elements
    if isinstance(fast, AcceleratedModel):
        assert case.behavior not in ("hook", "branches", "buffer", "baked"), case.kinds
