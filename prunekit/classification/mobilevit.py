"""MobileViT-S (Mehta and Rastegari 2021): MobileNetV2's blocks, and transformers between the pixels of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from prunekit.classification.blocks import conv_norm, initialize, normalization, scaled
from prunekit.classification.mobilenet import InvertedResidual

_STEM, _LAST, _EXPANSION = 16, 640, 4
# Channels and strides of the inverted residuals before the first transformer.
_RESIDUALS = ((32, 1), (64, 2), (64, 1), (64, 1))
# Channels of a stage, of its transformer, and the transformer's layers.
_STAGES = ((96, 144, 2), (128, 192, 4), (160, 240, 3))
_HEADS = 4
PATCH = 2  # pixels: the transformer relates those at the same place of all patches


def mobilevit_s(
    num_classes: int = 1000, width: float = 1.0, small_images: bool = False, normalized: bool = True
) -> nn.Module:
    """Build MobileViT-S, 5.6 million parameters for ImageNet's classes.

    Sides of images are multiples of 64, as the last grid, a 32nd of the side, is cut into patches of two pixels. On
    small images the stem and the first residuals keep H and W, and multiples of 16 will do.
    """
    return MobileViT(num_classes, width, small_images, normalized)


class MobileViT(nn.Module):
    """Stem, inverted residuals, three stages with a transformer each, a 1×1 convolution, mean, one linear layer."""

    def __init__(self, num_classes: int, width: float, small_images: bool, normalized: bool) -> None:
        super().__init__()
        self.normalize = normalization(normalized)
        channels = scaled(_STEM, width)
        self.stem = nn.Sequential(*conv_norm(3, channels, 3, 1 if small_images else 2), nn.SiLU())
        blocks: list[nn.Module] = []
        for out_channels, stride in ((scaled(out, width), stride) for out, stride in _RESIDUALS):
            blocks.append(_residual(channels, out_channels, 1 if small_images else stride))
            channels = out_channels
        for out, inner, depth in _STAGES:
            blocks.append(_residual(channels, scaled(out, width), 2))
            channels = scaled(out, width)
            blocks.append(MobileViTBlock(channels, _HEADS * scaled(inner // _HEADS, width), depth))
        self.blocks = nn.Sequential(*blocks)
        last = scaled(_LAST, width)
        self.last = nn.Sequential(*conv_norm(channels, last, 1), nn.SiLU())
        self.head = nn.Linear(last, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, num_classes] of images [N, 3, H, W]."""
        features: Tensor = self.last(self.blocks(self.stem(self.normalize(x))))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


class MobileViTBlock(nn.Module):
    """Convolutions to the transformer's channels and back, then one over the input and what the transformer made."""

    def __init__(self, channels: int, inner: int, depth: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            *conv_norm(channels, channels, 3), nn.SiLU(), nn.Conv2d(channels, inner, 1, bias=False)
        )
        self.layers = nn.Sequential(*(TransformerLayer(inner) for _ in range(depth)))
        self.norm = nn.LayerNorm(inner)
        self.back = nn.Sequential(*conv_norm(inner, channels, 1), nn.SiLU())
        self.fusion = nn.Sequential(*conv_norm(2 * channels, channels, 3), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of x, [N, C, H, W]; H and W are multiples of the patch."""
        y = self.local(x)
        tokens = self.norm(self.layers(_to_tokens(y)))
        y = self.back(_from_tokens(tokens, y.shape[2], y.shape[3]))
        fused: Tensor = self.fusion(torch.cat([x, y], dim=1))
        return fused


class TransformerLayer(nn.Module):
    """Attention and two linear layers, each behind a layer normalization and added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(channels), Attention(channels))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output [B, tokens, C]."""
        x = x + self.attention(x)
        y: Tensor = x + self.feed_forward(x)
        return y


class Attention(nn.Module):
    """Every token looks at every other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the tokens gather, [B, tokens, C]."""
        count, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(count, tokens, 3, _HEADS, channels // _HEADS).permute(2, 0, 3, 1, 4)
        gathered = scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])  # [B, heads, tokens, C / heads]
        y: Tensor = self.out(gathered.transpose(1, 2).reshape(count, tokens, channels))
        return y


def _residual(in_channels: int, out_channels: int, stride: int) -> InvertedResidual:
    return InvertedResidual(in_channels, out_channels, _EXPANSION, stride, nn.SiLU)


def _to_tokens(x: Tensor) -> Tensor:
    """Return the pixels [N, C, H, W] as [N · patch², patches, C]: a sequence for each place inside a patch."""
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 3, 5, 2, 4, 1)
    return x.reshape(n * PATCH**2, (h // PATCH) * (w // PATCH), c)


def _from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `_to_tokens`."""
    c = tokens.shape[2]
    x = tokens.reshape(-1, PATCH, PATCH, height // PATCH, width // PATCH, c).permute(0, 5, 3, 1, 4, 2)
    return x.reshape(-1, c, height, width)
