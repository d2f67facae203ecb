"""A family of detectors of one's own: one head at stride 16. This file is all that it takes."""

from __future__ import annotations

from torch import Tensor, nn

from prunekit.detection import Detector
from prunekit.task import register_model

ANCHORS = (((12.0, 12.0), (24.0, 24.0), (40.0, 40.0)),)


class ToyDetector(Detector):
    """Four convolutions of stride 2 and a head."""

    def __init__(self, num_classes: int, channels: int = 8) -> None:
        super().__init__("toy-detector", num_classes, ANCHORS, strides=(16,))
        layers: list[nn.Module] = []
        for before, after in ((3, channels), (channels, channels), (channels, 2 * channels), (2 * channels, 16)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.1)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(16, self.head_channels(0), 1)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Return the head's raw logits."""
        return (self.head(self.body(x)),)


def wide(num_classes: int) -> ToyDetector:
    """Build one with more channels; it is named by its module and goes without a registered name."""
    return ToyDetector(num_classes, channels=12)


wide.task = "detection"  # type: ignore[attr-defined]
register_model("toy-detector", ToyDetector, "detection")
