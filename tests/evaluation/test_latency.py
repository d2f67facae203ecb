"""Latency is measured of an artifact that computes the right thing, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunekit.detection import DetectionTask, Detector, yolov3_tiny
from prunekit.evaluation.latency import check_same_outputs
from prunekit.nn import WrongOutputError
from prunekit.pipeline import measure_latency

NMS = SimpleNamespace(score_threshold=0.001, iou_threshold=0.45, max_detections=10, max_candidates=None)


class Altered(nn.Module):
    """A detector whose last head went through `change`."""

    def __init__(self, detector: Detector, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.detector, self.change = detector, change

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, last = self.detector(x)
        return first, self.change(last)


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return yolov3_tiny(3, width=0.05).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(1, 3, 64, 64)


def _poisoned(head: Tensor) -> Tensor:
    head = head.clone()
    head.view(-1)[-1] = float("nan")
    return head


@pytest.mark.parametrize("change", [lambda head: head * 1.001, lambda head: -head, _poisoned])
def test_timing_is_refused_when_outputs_differ(
    detector: Detector, x: Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    with pytest.raises(WrongOutputError, match=r"accelerated model differs from the masked dense model .* at \[1\]"):
        measure_latency(detector, DetectionTask.of(detector), Altered(detector, change), x, 3, NMS)


def test_rounding_differences_are_accepted(detector: Detector, x: Tensor) -> None:
    latency = measure_latency(
        detector, DetectionTask.of(detector), Altered(detector, lambda head: head * (1 + 1e-6)), x, 3, NMS
    )
    for timing in (latency.control, latency.network, *(latency.postprocessing[name] for name in ("decode", "nms"))):
        assert 0 < timing.median_ms <= timing.p90_ms <= timing.p99_ms


@torch.no_grad()
def test_a_missing_head_is_no_match(detector: Detector, x: Tensor) -> None:
    outputs = detector(x)
    with pytest.raises(WrongOutputError, match="Expected a tuple of 2, got a tuple of 1"):
        check_same_outputs(outputs, outputs[:1])


def test_the_slower_artifact_measures_slower(detector: Detector, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0  # of a clock that only the artifact moves

    def slowly(head: Tensor) -> Tensor:
        nonlocal seconds
        seconds += 2.0
        return head

    monkeypatch.setattr("prunekit.timing.time", SimpleNamespace(perf_counter=lambda: seconds))
    latency = measure_latency(detector, DetectionTask.of(detector), Altered(detector, slowly), x, 3, NMS)
    assert (latency.network.median_ms, latency.control.median_ms) == (2000, 0)
