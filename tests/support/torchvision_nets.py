"""torchvision's own detectors with the weights of prunekit's networks, on images that are not resized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunekit.detection.target import Target
from prunekit.detection.torchvision_families import FAMILIES
from prunekit.detection.torchvision_task import TorchvisionTask
from prunekit.task import ModelSpec

#: Small, and with a cell or more at every level.
SIDES = {name: 320 if name.startswith("ssd") else 64 for name in FAMILIES}
CLASSES = 3
#: Families whose label 0 is the background.
WITH_BACKGROUND = {name for name in FAMILIES if name.startswith(("fasterrcnn", "ssd"))}


@dataclass(frozen=True)
class Thresholds:
    score_threshold: float = 0.001
    iou_threshold: float = 0.5
    max_detections: int = 50
    max_candidates: int | None = None


@dataclass(frozen=True)
class Problem:
    """A family's network in eval mode, images [2, 3, S, S], and their objects; the second image has none."""

    name: str
    task: TorchvisionTask
    model: nn.Module
    x: Tensor
    targets: list[Target]


def problem(name: str, classes: int = CLASSES) -> Problem:
    """Build a problem; its batch normalizations have seen images, so that maps are not all alike."""
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'prunekit[torchvision]'")
    side = SIDES[name]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        task = TorchvisionTask(ModelSpec(name, {"num_classes": classes}))
        model = task.spec.build()
        x = torch.rand(2, 3, side, side)
        boxes = torch.tensor([[0.1, 0.1, 0.55, 0.6], [0.2, 0.3, 0.9, 0.95]]) * side
        _see_images(model, side)
    targets = [Target(boxes, torch.tensor([0, classes - 1])), Target(boxes[:0], torch.empty(0, dtype=torch.int64))]
    return Problem(name, task, model.eval(), x, targets)


@torch.no_grad()
def _see_images(model: nn.Module, side: int) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what was seen
    model(torch.rand(2, 3, side, side))


def torchvision_twin(case: Problem, options: Thresholds | None = None) -> Any:
    """Return torchvision's own detector with the same weights, in eval mode, at the images' own size."""
    from prunekit.detection.torchvision_networks import build_torchvision

    twin = build_torchvision(case.name, CLASSES)
    twin.load_state_dict(case.model.state_dict())
    side = case.x.shape[-1]
    twin.transform.min_size, twin.transform.max_size = (side,), side
    if twin.transform.fixed_size is not None:
        twin.transform.fixed_size = (side, side)
    limited = getattr(twin, "roi_heads", twin)
    if options is not None:
        limited.score_thresh, limited.nms_thresh = options.score_threshold, options.iou_threshold
        limited.detections_per_img = options.max_detections
    return twin.eval()


def torchvision_losses(twin: Any, x: Tensor, targets: Sequence[Target], background: int) -> list[float]:
    """Return torchvision's summed training losses of each image alone, with batch normalization in eval mode."""
    twin.train()
    twin.transform._skip_resize = True  # which would also draw a size at random
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses = []
    for image, target in zip(x, targets, strict=True):
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            parts = twin([image], [{"boxes": target.boxes, "labels": target.labels + background}])
        losses.append(sum(float(part) for part in parts.values()))
    return losses
