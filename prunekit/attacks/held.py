"""One perturbation for many images: what a sticker on a lens, or whoever can write to a camera's stream once, can do.

A universal perturbation (Moosavi-Dezfooli et al. 2017, "Universal Adversarial Perturbations"), found by PGD on the mean
loss over the images (Shafahi et al. 2020, "Universal Adversarial Training").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from prunekit.attacks.losses import LossPerImage
from prunekit.attacks.pgd import PgdConfig, pgd
from prunekit.attacks.steps import check_pixels

#: Images that go through the model at a time, forward and again backward: more would only need more memory.
AT_A_TIME = 8
# Perturbations are searched for as images around this one, so that pgd, which searches for images, can do it.
_MIDDLE = 0.5


def held_perturbation(
    model: nn.Module,
    x: Tensor,
    losses_of: Callable[[slice], LossPerImage],
    config: PgdConfig,
    where: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search for the one perturbation that a model handles worst in the mean over images; the model stays as it was.

    Args:
        model: Maps images to outputs.
        x: Clean images [N, 3, H, W] in [0, 1].
        losses_of: Returns, for a slice of the images, what maps their outputs to losses, to be raised.
        config: The ball, in which the perturbation lies, and the search in it. No pixel moves by more than 0.5.
        where: What may be perturbed, 1, and what not, 0: [N, 1, H, W].
        generator: Source of the random starts, on x's device.

    Returns:
        The perturbation [1, 3, H, W], to be added by `moved`.

    Raises:
        InputError: When pixels are not in [0, 1].
        GradientError: The loss does not depend on the pixels, or its gradient is not finite.
    """
    check_pixels(x)
    middle = torch.full_like(x[:1], _MIDDLE)
    return pgd(_MeanLoss(model, x, losses_of, where), middle, lambda loss: loss, config, generator) - _MIDDLE


def moved(x: Tensor, perturbation: Tensor, where: Tensor) -> Tensor:
    """Return images [N, 3, H, W] with a perturbation [1, 3, H, W] where they may be perturbed, in [0, 1]."""
    return (x + perturbation * where).clamp(0, 1)


class _MeanLoss(nn.Module):
    """Maps the middle of all colors plus a perturbation, [1, 3, H, W], to the mean loss of the images with it, [1]."""

    def __init__(self, model: nn.Module, x: Tensor, losses_of: Callable[[slice], LossPerImage], where: Tensor) -> None:
        super().__init__()
        self.model, self.x, self.losses_of, self.where = model, x, losses_of, where

    def forward(self, found: Tensor) -> Tensor:
        perturbation = found - _MIDDLE
        # Recomputed part by part on the way back: as many images as one likes in the memory of a few.
        losses = [checkpoint(self._losses, perturbation, part, use_reentrant=False) for part in self._parts()]
        return torch.cat(losses).mean()[None]

    def _parts(self) -> Sequence[slice]:
        return [slice(start, start + AT_A_TIME) for start in range(0, len(self.x), AT_A_TIME)]

    def _losses(self, perturbation: Tensor, part: slice) -> Tensor:
        outputs = self.model(moved(self.x[part], perturbation, self.where[part]))
        return self.losses_of(part)(outputs)
