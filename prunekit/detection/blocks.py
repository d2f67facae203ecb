"""The building blocks of darknet's detectors, as plain modules that torch.fx can trace."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Darknet divides by sqrt(var) + 1e-6, torch by sqrt(var + eps). The two agree exactly where
# eps = 2e-6·sqrt(var) + 1e-12, so 1e-6 is exact at var = 0.25 and within 4e-5 down to var = 0.013, the
# smallest variance in the official yolov3-tiny.weights; torch's default of 1e-5 is ten times further off.
BATCH_NORM_EPS = 1e-6
LEAKY_SLOPE = 0.1


class ConvBlock(nn.Module):
    """Convolution, batch normalization and LeakyReLU: darknet's ``[convolutional]`` section.

    Maps [N, in_channels, H, W] to [N, out_channels, H/stride, W/stride].
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=BATCH_NORM_EPS)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated features."""
        features: Tensor = self.activation(self.norm(self.conv(x)))
        return features


class Residual(nn.Module):
    """A 1×1 bottleneck and a 3×3 block around a shortcut; the shape stays [N, channels, H, W]."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(channels, hidden_channels, kernel_size=1)
        self.expand = ConvBlock(hidden_channels, channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus its residual."""
        residual: Tensor = self.expand(self.reduce(x))
        return x + residual


class SpatialPyramidPool(nn.Module):
    """Concatenate the input with its 5, 9 and 13 pixel wide maxima: [N, C, H, W] to [N, 4C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.pools = nn.ModuleList(nn.MaxPool2d(size, stride=1, padding=size // 2) for size in (5, 9, 13))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled maps and x along the channels."""
        narrow_to_wide = [pool(x) for pool in self.pools]
        # Widest first and the input last is the order that official weights expect.
        return torch.cat([*reversed(narrow_to_wide), x], dim=1)


class SamePool(nn.Sequential):
    """Darknet's 2×2 max-pool of stride 1, which pads right and below only; the shape stays [N, C, H, W]."""

    def __init__(self) -> None:
        # Minus infinity, because LeakyReLU's outputs may be negative and a zero would win against them.
        super().__init__(nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2, stride=1))


class Prediction(nn.Module):
    """A 3×3 block and the linear 1×1 convolution that predicts: [N, C, H, W] to [N, A·(5+classes), H, W]."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.expand = ConvBlock(in_channels, hidden_channels, kernel_size=3)
        self.head = nn.Conv2d(hidden_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the head's raw logits."""
        logits: Tensor = self.head(self.expand(x))
        return logits


class Lateral(nn.Module):
    """Carry coarse features to the next finer scale: 1×1 block, twofold upsampling, concatenation."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = ConvBlock(in_channels, out_channels, kernel_size=1)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """Join coarse [N, C, H, W] and fine [N, D, 2H, 2W] into [N, out_channels + D, 2H, 2W]."""
        return torch.cat([self.upsample(self.reduce(coarse)), fine], dim=1)
