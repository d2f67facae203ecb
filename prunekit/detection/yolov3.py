"""YOLOv3, YOLOv3-tiny and YOLOv3-SPP (Redmon and Farhadi 2018), layer for layer as darknet's cfg files.

Every module registers its parts in the order of darknet's cfg: that order is the order of the weights file
(see `darknet_weights`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from prunekit.detection.blocks import (
    LEAKY_SLOPE,
    ConvBlock,
    Lateral,
    Prediction,
    Residual,
    SamePool,
    SpatialPyramidPool,
)
from prunekit.errors import InputError

Anchors = tuple[tuple[float, float], ...]
#: Each head's [width, height] pairs, as JSON has them.
GivenAnchors = Sequence[Sequence[Sequence[float]]]

# Width and height in pixels of the network's input, one row a head, coarsest head first.
YOLOV3_ANCHORS: tuple[Anchors, ...] = (
    ((116, 90), (156, 198), (373, 326)),
    ((30, 61), (62, 45), (59, 119)),
    ((10, 13), (16, 30), (33, 23)),
)
TINY_ANCHORS: tuple[Anchors, ...] = (
    ((81, 82), (135, 169), (344, 319)),
    ((10, 14), (23, 27), (37, 58)),
)
OBJECTNESS_PRIOR = 0.01  # of all anchors, about this share holds an object when training starts


class Detector(nn.Module):
    """What the detectors share: the facts that decoding, loss and weight files need.

    Attributes:
        name: the model's name in `MODELS`.
        num_classes: number of classes.
        anchors: width and height in input pixels, per head.
        strides: input pixels per cell, per head.
    """

    def __init__(self, name: str, num_classes: int, anchors: tuple[Anchors, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"Expected num_classes of at least 1, got {num_classes}")
        self.name = name
        self.num_classes = num_classes
        self.anchors = anchors
        self.strides = strides

    def head_channels(self, head: int) -> int:
        """Return A·(5 + num_classes) for one head."""
        return len(self.anchors[head]) * (5 + self.num_classes)

    def initialize(self) -> None:
        """Draw weights to train from: Kaiming for the blocks, rare objects and even classes for the heads."""
        for module in self.modules():
            if isinstance(module, ConvBlock):
                nn.init.kaiming_normal_(module.conv.weight, a=LEAKY_SLOPE)
            elif isinstance(module, Prediction):
                nn.init.normal_(module.head.weight, std=0.01)
                self._set_head_prior(module.head)

    def _set_head_prior(self, head: nn.Conv2d) -> None:
        assert head.bias is not None
        bias = head.bias.detach().view(-1, 5 + self.num_classes)  # [A, 5+classes]
        bias.zero_()
        bias[:, 4] = math.log(OBJECTNESS_PRIOR / (1 - OBJECTNESS_PRIOR))
        bias[:, 5:] = -math.log(max(self.num_classes - 1, 1))


class Darknet53(nn.Module):
    """The backbone of 52 convolutions; returns the features at strides 8, 16 and 32."""

    def __init__(self, channels: Callable[[int], int]) -> None:
        super().__init__()
        c = channels
        self.stem = ConvBlock(3, c(32), kernel_size=3)
        self.stage1 = _residual_stage(c(32), c(64), num_blocks=1)
        self.stage2 = _residual_stage(c(64), c(128), num_blocks=2)
        self.stage3 = _residual_stage(c(128), c(256), num_blocks=8)
        self.stage4 = _residual_stage(c(256), c(512), num_blocks=8)
        self.stage5 = _residual_stage(c(512), c(1024), num_blocks=4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return [N, 256w, H/8, W/8], [N, 512w, H/16, W/16] and [N, 1024w, H/32, W/32] at width w."""
        fine: Tensor = self.stage3(self.stage2(self.stage1(self.stem(x))))
        middle: Tensor = self.stage4(fine)
        coarse: Tensor = self.stage5(middle)
        return fine, middle, coarse


class YOLOv3(Detector):
    """YOLOv3 with three heads at strides 32, 16 and 8, with spatial pyramid pooling if `spp`."""

    def __init__(
        self, num_classes: int = 80, width: float = 1.0, spp: bool = False, anchors: GivenAnchors | None = None
    ) -> None:
        name = "yolov3-spp" if spp else "yolov3"
        super().__init__(name, num_classes, _checked(anchors, YOLOV3_ANCHORS), strides=(32, 16, 8))
        c = _channel_scaling(width)
        self.backbone = Darknet53(c)
        self.neck32 = _neck(c(1024), c(512), c(1024), spp)
        self.predict32 = Prediction(c(512), c(1024), self.head_channels(0))
        self.lateral16 = Lateral(c(512), c(256))
        self.neck16 = _neck(c(256) + c(512), c(256), c(512))
        self.predict16 = Prediction(c(256), c(512), self.head_channels(1))
        self.lateral8 = Lateral(c(256), c(128))
        self.neck8 = _neck(c(128) + c(256), c(128), c(256))
        self.predict8 = Prediction(c(128), c(256), self.head_channels(2))
        self.initialize()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each head's raw logits, coarsest first.

        x holds images [N, 3, H, W] in [0, 1], H and W multiples of 32.
        """
        fine, middle, coarse = self.backbone(x)
        features32 = self.neck32(coarse)
        features16 = self.neck16(self.lateral16(features32, middle))
        features8 = self.neck8(self.lateral8(features16, fine))
        return self.predict32(features32), self.predict16(features16), self.predict8(features8)


class YOLOv3Tiny(Detector):
    """YOLOv3-tiny: seven convolutions with max-pooling between them, and heads at strides 32 and 16."""

    def __init__(self, num_classes: int = 80, width: float = 1.0, anchors: GivenAnchors | None = None) -> None:
        super().__init__("yolov3-tiny", num_classes, _checked(anchors, TINY_ANCHORS), strides=(32, 16))
        c = _channel_scaling(width)
        self.stage16 = nn.Sequential(
            ConvBlock(3, c(16), kernel_size=3),
            nn.MaxPool2d(2),
            ConvBlock(c(16), c(32), kernel_size=3),
            nn.MaxPool2d(2),
            ConvBlock(c(32), c(64), kernel_size=3),
            nn.MaxPool2d(2),
            ConvBlock(c(64), c(128), kernel_size=3),
            nn.MaxPool2d(2),
            ConvBlock(c(128), c(256), kernel_size=3),
        )
        self.stage32 = nn.Sequential(
            nn.MaxPool2d(2),
            ConvBlock(c(256), c(512), kernel_size=3),
            SamePool(),
            ConvBlock(c(512), c(1024), kernel_size=3),
            ConvBlock(c(1024), c(256), kernel_size=1),
        )
        self.predict32 = Prediction(c(256), c(512), self.head_channels(0))
        self.lateral16 = Lateral(c(256), c(128))
        self.predict16 = Prediction(c(128) + c(256), c(256), self.head_channels(1))
        self.initialize()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return each head's raw logits, coarsest first.

        x holds images [N, 3, H, W] in [0, 1], H and W multiples of 32.
        """
        middle = self.stage16(x)
        coarse = self.stage32(middle)
        return self.predict32(coarse), self.predict16(self.lateral16(coarse, middle))


def yolov3(num_classes: int = 80, width: float = 1.0, anchors: GivenAnchors | None = None) -> Detector:
    """Build YOLOv3: 75 convolutions, 61.9 million parameters at width 1 and 80 classes."""
    return YOLOv3(num_classes, width, anchors=anchors)


def yolov3_tiny(num_classes: int = 80, width: float = 1.0, anchors: GivenAnchors | None = None) -> Detector:
    """Build YOLOv3-tiny: 13 convolutions, 8.9 million parameters at width 1 and 80 classes."""
    return YOLOv3Tiny(num_classes, width, anchors)


def yolov3_spp(num_classes: int = 80, width: float = 1.0, anchors: GivenAnchors | None = None) -> Detector:
    """Build YOLOv3-SPP: YOLOv3 with spatial pyramid pooling before its coarsest head, 76 convolutions."""
    return YOLOv3(num_classes, width, spp=True, anchors=anchors)


MODELS: dict[str, Callable[..., Detector]] = {
    "yolov3": yolov3,
    "yolov3-tiny": yolov3_tiny,
    "yolov3-spp": yolov3_spp,
}


def _checked(anchors: GivenAnchors | None, usual: tuple[Anchors, ...]) -> tuple[Anchors, ...]:
    """Return anchors in the form of the usual ones, as many of them and for each head."""
    if anchors is None:
        return usual
    heads = tuple(tuple((float(width), float(height)) for width, height in head) for head in anchors)
    if [len(head) for head in heads] != [len(head) for head in usual] or not all(
        math.isfinite(side) and side > 0 for head in heads for pair in head for side in pair
    ):
        raise InputError(f"Expected {[len(head) for head in usual]} anchors above 0 in the heads, got {heads}")
    return heads


def _channel_scaling(width: float) -> Callable[[int], int]:
    if not width > 0:
        raise InputError(f"Expected a width above 0, got {width}")
    return lambda channels: max(4, 4 * round(channels * width / 4))


def _residual_stage(in_channels: int, out_channels: int, num_blocks: int) -> nn.Sequential:
    downsample = ConvBlock(in_channels, out_channels, kernel_size=3, stride=2)
    # The bottlenecks are as wide as the stage's input in every stage of darknet-53.
    return nn.Sequential(downsample, *(Residual(out_channels, in_channels) for _ in range(num_blocks)))


def _neck(in_channels: int, channels: int, hidden_channels: int, spp: bool = False) -> nn.Sequential:
    """Five blocks, 1×1 and 3×3 in turn; with `spp`, pooling and one more 1×1 block after the third."""
    pooling = [SpatialPyramidPool(), ConvBlock(4 * channels, channels, kernel_size=1)] if spp else []
    return nn.Sequential(
        ConvBlock(in_channels, channels, kernel_size=1),
        ConvBlock(channels, hidden_channels, kernel_size=3),
        ConvBlock(hidden_channels, channels, kernel_size=1),
        *pooling,
        ConvBlock(channels, hidden_channels, kernel_size=3),
        ConvBlock(hidden_channels, channels, kernel_size=1),
    )
