"""What a detector should find in an image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The objects of one image: boxes [K, 4] xyxy in pixels of the network's input, labels [K] int64."""

    boxes: Tensor
    labels: Tensor
