"""MobileNetV2 (Sandler et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from prunekit.classification.blocks import conv_norm, initialize, normalization, scaled

# Expansion, channels, blocks, stride of the first block.
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
_STEM, _LAST = 32, 1280
_FULL_RESOLUTION = 2  # on small images so many stages keep H and W


def mobilenetv2(
    num_classes: int = 1000, width: float = 1.0, small_images: bool = False, normalized: bool = True
) -> nn.Module:
    """Build MobileNetV2: 17 inverted residuals, each around a depthwise 3×3 convolution.

    On small images the stem and the second stage keep H and W: an eighth of the side is left at the end.
    """
    return MobileNetV2(num_classes, width, small_images, normalized)


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, a 1×1 convolution, mean over the image, one linear layer."""

    def __init__(self, num_classes: int, width: float, small_images: bool, normalized: bool) -> None:
        super().__init__()
        self.normalize = normalization(normalized)
        channels = scaled(_STEM, width)
        self.stem = nn.Sequential(*conv_norm(3, channels, 3, 1 if small_images else 2), nn.ReLU6())
        blocks = []
        for stage, (expansion, out_channels, count, first_stride) in enumerate(_STAGES):
            for block in range(count):
                keeps_size = block > 0 or (small_images and stage < _FULL_RESOLUTION)
                stride = 1 if keeps_size else first_stride
                blocks.append(InvertedResidual(channels, scaled(out_channels, width), expansion, stride))
                channels = scaled(out_channels, width)
        self.blocks = nn.Sequential(*blocks)
        last = scaled(_LAST, width)
        self.last = nn.Sequential(*conv_norm(channels, last, 1), nn.ReLU6())
        self.head = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.last(self.blocks(self.stem(self.normalize(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class InvertedResidual(nn.Module):
    """A 1×1 convolution to more channels, a depthwise 3×3 one, a 1×1 one back; added to the input where shapes fit."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        wide = (*conv_norm(in_channels, hidden, 1), activation()) if expansion > 1 else ()
        self.body = nn.Sequential(
            *wide, *conv_norm(hidden, hidden, 3, stride, groups=hidden), activation(),
            *conv_norm(hidden, out_channels, 1),
        )  # fmt: skip
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, out_channels, H / stride, W / stride]."""
        y: Tensor = self.body(x)
        return x + y if self.is_residual else y
