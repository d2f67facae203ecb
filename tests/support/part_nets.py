"""Small nets whose forward no capture can take whole: loops and branches over values, lists of images, decisions."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.timing import Timing

#: Milliseconds, by what `accelerate` calls that which it times: the whole graph first, then parts, then layers.
FAST = {"own": 9.0, "modules": 5.0, "parts": 2.0, "graph": 1.0, "before": 2.0, "after": 1.0}


def use_preset_times(monkeypatch: pytest.MonkeyPatch, preset: Mapping[str, float]) -> None:
    """Let `accelerate` run every call once and take preset times, so that choices do not depend on the machine."""

    def time_in_turn(calls: dict[str, Callable[[], object]], *_: object, **__: object) -> dict[str, Timing]:
        for call in calls.values():
            call()
        return {name: Timing(*[preset.get(name, 1.0)] * 3) for name in calls}

    for module in ("prunekit.nn.candidates", "prunekit.nn.part_search", "prunekit.nn.tuning"):
        monkeypatch.setattr(importlib.import_module(module), "time_in_turn", time_in_turn)


def pruned(model: nn.Module, zeros: float = 0.9, seed: int = 0) -> nn.Module:
    """Set the smallest weights of each convolution to zero; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_(
                    torch.randn(layer.weight.shape, generator=generator) / layer.weight[0].numel() ** 0.5
                )
                sizes = layer.weight.abs().flatten()
                layer.weight[layer.weight.abs() <= sizes.kthvalue(int(len(sizes) * zeros)).values] = 0
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
    return model.eval()


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return convolution, BatchNorm and ReLU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


class Pyramid(nn.Module):
    """Features at two strides, as a dict."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem, self.down = block(3, channels, 2), block(channels, channels, 2)
        self.out_channels = channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.stem(x)
        return {"fine": fine, "coarse": self.down(fine)}


class Head(nn.Module):
    """Scores [N, anchors] and boxes [N, anchors, 4] of one level; called with a keyword."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tower, self.scores, self.boxes = (
            block(channels, channels),
            nn.Conv2d(channels, 1, 1),
            nn.Conv2d(channels, 4, 1),
        )

    def forward(self, features: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        y = self.tower(features)
        return self.scores(y).flatten(1), self.boxes(y).permute(0, 2, 3, 1).flatten(1, 2) * scale


class ToyDetector(nn.Module):
    """A list of images to a list of detections: backbone, one head for all levels, threshold, greedy suppression.

    Args:
        threshold: of the sigmoid of the scores; at 1 nothing is found.
        step: scores are rounded down to its multiples, so that many are equal; 0 leaves them.
    """

    def __init__(self, threshold: float = 0.5, step: float = 0.0) -> None:
        super().__init__()
        self.backbone = Pyramid()
        self.head = Head(self.backbone.out_channels)
        self.threshold, self.step = threshold, step

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        features = self.backbone(torch.stack([(image - 0.5) * 2 for image in images]))
        levels = [self.head(features=level, scale=2.0) for level in features.values()]
        scores = torch.cat([level[0] for level in levels], 1).sigmoid()
        boxes = torch.cat([level[1] for level in levels], 1)
        if self.step:
            scores = (scores / self.step).floor() * self.step
        return [self._detections(s, b) for s, b in zip(scores, boxes, strict=True)]

    def _detections(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        kept = torch.nonzero(scores > self.threshold).flatten()
        scores, boxes = scores[kept], boxes[kept]
        found: list[Tensor] = []
        while len(scores) and len(found) < 5:
            best = int(scores.argmax())
            found.append(torch.cat([scores[best, None], boxes[best]]))
            far = (boxes - boxes[best]).abs().sum(1) > 0.5
            scores, boxes = scores[far], boxes[far]
        rows = torch.stack(found) if found else torch.zeros(0, 5)
        return {"scores": rows[:, 0], "boxes": rows[:, 1:]}


class Branching(nn.Module):
    """A branch over a value between two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(block(3, 32), block(32, 32)), nn.Sequential(block(32, 32), block(32, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = y * 2 if float(y.mean()) > 0 else -y
        z: Tensor = self.second(y)
        return z


class Choosing(nn.Module):
    """A whole graph that ends in a top-k over scores of which many are equal but for rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 32), nn.Conv2d(32, 4, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.body(x).mean((2, 3))  # [N, 4], all of a row nearly equal once repeated
        many = torch.cat([scores * (1 + i * 0.0) for i in range(4)], 1) + x.mean((1, 2, 3), keepdim=False)[:, None]
        values, places = many.topk(3)
        return values, places


class Shared(nn.Module):
    """One block under two names, called twice, on two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(block(3, 32), block(32, 3))
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.first(x)
        if float(y.sum()) == 12345:
            return y
        z: Tensor = self.again(F.max_pool2d(y, 2))
        return z


class Watched(nn.Module):
    """Keeps what it computed in an attribute, which the model reads: a side effect that no capture shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 32), block(32, 8))
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        self.seen = y
        return y
