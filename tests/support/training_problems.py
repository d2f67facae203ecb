"""Small things to train: a conv net and a detector with data, and a problem on which clean training is not robust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import AttackLosses, classification_losses, cross_entropy_per_image, softmax_divergence
from prunekit.detection import DetectionTask, Detector, Target, yolov3_tiny
from prunekit.task import ModelSpec
from prunekit.training.data import ImagesInMemory
from prunekit.training.state import tensors_of

SIZE = 64


def small_classifier(seed: int = 0) -> nn.Sequential:
    """Convolutions of both kinds, batch normalization, dropout and a linear layer: three classes."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1),
        nn.Dropout(0.3),
        nn.Conv2d(6, 5, 1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 8 * 8, 3),
    )


def labeled_images(count: int = 11) -> ImagesInMemory:
    """Images of 8×8 pixels, uint8, with random labels."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ImagesInMemory(images, torch.randint(3, (count,), generator=generator))


def small_detector(num_classes: int = 2, seed: int = 0) -> Detector:
    """A YOLOv3-tiny as narrow as it gets."""
    torch.manual_seed(seed)
    return yolov3_tiny(num_classes, width=0.01)


def rectangles(count: int = 6, num_classes: int = 2, empty: bool = False) -> ImagesInMemory:
    """Gray images with a bright rectangle each, or none if `empty`."""
    generator = torch.Generator().manual_seed(4)
    images = torch.full((count, 3, SIZE, SIZE), 90, dtype=torch.uint8)
    targets = []
    for image in images:
        left, top = torch.randint(4, 30, (2,), generator=generator).tolist()
        label = int(torch.randint(num_classes, (1,), generator=generator))
        if empty:
            targets.append(Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
            continue
        image[label % 3, top : top + 20, left : left + 24] = 240
        targets.append(Target(torch.tensor([[left, top, left + 24, top + 20]]).float(), torch.tensor([label])))
    return ImagesInMemory(images, targets)


def tempting_features(count: int, seed: int, weak: float = 0.04) -> ImagesInMemory:
    """One pixel tells the class by ±0.3, right nine times in ten; sixty tell it by ±`weak`, in noise a little larger.

    Together the sixty are never wrong, so clean training relies on them, and an L∞ attack of 0.1 turns them all around.
    (After Tsipras et al. 2019.)
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    sign = 2.0 * labels[:, None] - 1
    is_right = torch.rand(count, 1, generator=generator) < 0.9
    robust = 0.5 + 0.3 * torch.where(is_right, sign, -sign)
    tempting = 0.5 + weak * (sign + 1.25 * torch.randn(count, 60, generator=generator))
    images = torch.cat([robust, tempting], dim=1).clamp(0, 1).view(count, 1, 1, 61)
    return ImagesInMemory(images, labels)


class Centered(nn.Module):
    """Moves gray to zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - 0.5


def linear_classifier() -> nn.Sequential:
    """Two logits from the sixty-one pixels, all weights zero."""
    linear = nn.Linear(61, 2)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(Centered(), linear)


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Return the share of images x that are classified as their labels say."""
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == labels).float().mean())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by name."""
    return dict(model.named_parameters())


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copy parameters and buffers."""
    return {name: value.clone() for name, value in tensors_of(model).items()}


def changed(before: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    """Name what is no longer as in the snapshot."""
    return {name for name, value in tensors_of(model).items() if not torch.equal(value, before[name])}


class Recorder:
    """Keeps what a log is told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def step(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **values})


class ClassifierLosses:
    """Outputs are logits [N, C], targets labels [N]."""

    def loss(self, model: nn.Module, x: Tensor, targets: Any) -> Tensor:
        return cross_entropy_per_image(targets)(model(x))

    def attack_losses(self, targets: Any) -> AttackLosses:
        return classification_losses(targets)

    def labels(self, targets: Any) -> Tensor:
        assert isinstance(targets, Tensor)
        return targets

    def divergence(self, attacked: Tensor, clean: Tensor) -> Tensor:
        return softmax_divergence(attacked, clean)


def tiny_task(num_classes: int, width: float) -> DetectionTask:
    """The task of a YOLOv3-tiny."""
    return DetectionTask(ModelSpec("yolov3-tiny", {"num_classes": num_classes, "width": width}))
