"""Small nets that pruning's tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.prune import ChannelGroups, channel_groups


class Residual(nn.Module):
    """Stem, a tied pair, a depthwise pair, batch normalization everywhere but at the biased head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=True)
        self.stem_norm = nn.BatchNorm2d(width)
        self.block = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.block_norm = nn.BatchNorm2d(width)
        self.wide = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.wide_norm = nn.BatchNorm2d(2 * width)
        self.last = nn.Conv2d(2 * width, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 4, 1)
        self.activation = nn.LeakyReLU(0.1)

    def features(self, x: Tensor) -> Tensor:
        x = self.activation(self.stem_norm(self.stem(x)))
        x = x + self.activation(self.block_norm(self.block(x)))
        features: Tensor = self.activation(self.wide_norm(self.depthwise(self.wide(x))))
        return features

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.activation(self.last(self.features(x))))
        return logits


def make_model(seed: int = 0, width: int = 8) -> Residual:
    torch.manual_seed(seed)
    model = Residual(width)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean = torch.randn(norm.num_features)
    return model.eval()


def groups_of(model: nn.Module) -> ChannelGroups:
    return channel_groups(model, torch.zeros(1, 3, 6, 6))


class Net(nn.Module):
    """Layers wired by a function."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.wiring = wiring
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)
