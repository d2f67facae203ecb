"""A registry of toys for bench.zoo's tests, in a module of its own as child processes import it."""

from __future__ import annotations

import os
import time
from typing import Any

from torch import Tensor, nn

from bench.zoo_models import ZooModel


class Twin(nn.Module):
    """An end that rounding decides, as top-k of near-equal scores."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = _convolutions()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the digits behind float32's say."""
        y: Tensor = self.backbone(x)
        return (y.double() * 1e9).sin().float()


def _convolutions(width: int = 48) -> nn.Sequential:
    """Half of 48 channels are fewer also where they are rounded up to a multiple of 16."""
    first, second = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(first, nn.BatchNorm2d(width), nn.ReLU(), second)


def _net() -> nn.Module:
    return nn.Sequential(
        *_convolutions(),
        nn.ReLU(),
        nn.Conv2d(48, 6, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )


def _crash() -> Any:
    os.abort()


def _hang() -> Any:
    time.sleep(600)


def _raise() -> Any:
    raise OSError("no such weights\nand more")


SIZE = 48
MODELS = {
    "plain": ZooModel("toys", _net, SIZE),
    "twin": ZooModel("toys", Twin, SIZE, ("backbone",)),
    "crash": ZooModel("toys", _crash, SIZE),
    "hang": ZooModel("toys", _hang, SIZE),
    "raise": ZooModel("toys", _raise, SIZE),
}
