"""A small net with what ResNets and YOLOv3 are made of, for tests of GPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.engine_nets import randomize


class Residual(nn.Module):
    """What ResNets and YOLOv3 are made of: BatchNorm, both orders of addition and activation, a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.a, self.b = (nn.Conv2d(channels, channels, k, padding=k // 2) for k in (1, 3))
        self.c = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + nn.functional.leaky_relu(self.b(nn.functional.silu(self.a(x))), 0.1)  # darknet
        x = torch.relu(self.c(x) + x)  # ResNet
        return self.head(x.mean((2, 3))), x


def residual_net(channels: int = 12, density: float = 0.2) -> Residual:
    net, generator = Residual(channels).eval().requires_grad_(False), torch.Generator().manual_seed(4)
    for module in net.modules():
        randomize(module, generator, 1.0 if isinstance(module, nn.Linear) else density)
    return net
