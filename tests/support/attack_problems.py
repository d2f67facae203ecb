"""Small problems for attacks: a classifier, images, and a problem whose answer is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_CLASSES = 4


def small_classifier() -> nn.Sequential:
    """Logits [N, 4] of images [N, 3, 7, 9]; batch normalization included."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1),
        nn.Conv2d(6, 6, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(6 * 5 * 7, NUM_CLASSES),
    )


def images(batch: int = 6) -> Tensor:
    """Noise in [0, 1]; in the first two images only half of the ball lies inside the box."""
    x = torch.rand(batch, 3, 7, 9, generator=torch.Generator().manual_seed(1))
    x[0], x[1] = 0, 1
    return x


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """How far each image moved, [N]."""
    order = torch.inf if norm == "linf" else 2
    lengths: Tensor = torch.linalg.vector_norm((x_adv - x).flatten(1), ord=order, dim=1)
    return lengths


class Untouched:
    """A model's state, to compare with later."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        self.modes = [module.training for module in net.modules()]

    def holds(self) -> bool:
        """Whether weights, buffers, modes and gradients are as they were."""
        return (
            all(torch.equal(tensor, self.tensors[name]) for name, tensor in self.net.state_dict().items())
            and [module.training for module in self.net.modules()] == self.modes
            and all(parameter.grad is None for parameter in self.net.parameters())
        )
