"""Projected gradient descent (Madry et al. 2018) on any model with a loss per image; FGSM is its first step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.gradient import loss_at, slope_at
from prunekit.attacks.losses import AttackLosses, LossPerImage
from prunekit.attacks.steps import STEPS, Norm, check_ball, check_pixels
from prunekit.errors import InputError


@dataclass(frozen=True)
class PgdConfig:
    """The knobs of PGD, for pixels in [0, 1]; called like any `Attack`, it raises the total loss.

    Attributes:
        eps: radius of the ball around the clean image, such as 8/255.
        step_size: length of one step.
        steps: number of gradient steps.
        norm: "linf" bounds every pixel's change, "l2" the Euclidean length of an image's whole change.
        random_start: start at a random point of the ball rather than at the image.
        restarts: attack so often and keep, per image, the result with the highest loss.
    """

    eps: float
    step_size: float
    steps: int
    norm: Norm = "linf"
    random_start: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)
        if not (self.step_size >= 0 and math.isfinite(self.step_size)):
            raise InputError(f"Expected a finite step_size of at least 0, got {self.step_size}")
        if self.steps < 0 or self.restarts < 1:
            raise InputError(f"Expected steps >= 0 and restarts >= 1, got {self.steps} and {self.restarts}")
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"Expected random_start with {self.restarts} restarts: without it all are equal")

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return `pgd` on the total loss."""
        return pgd(model, x, losses.total, self, generator)

    def with_eps(self, eps: float) -> PgdConfig:
        """Return the same attack in a ball of another radius, its steps in proportion."""
        scale = eps / self.eps if self.eps else 1.0
        return dataclasses.replace(self, eps=eps, step_size=self.step_size * scale)


def fgsm(eps: float, norm: Norm = "linf") -> PgdConfig:
    """Return the fast gradient method (Goodfellow et al. 2015): one step as long as the radius."""
    return PgdConfig(eps, step_size=eps, steps=1, norm=norm)


def uniform_noise(eps: float, norm: Norm = "linf") -> PgdConfig:
    """Return the attack that knows nothing: a random point of the ball."""
    return PgdConfig(eps, step_size=0.0, steps=0, norm=norm, random_start=True)


def pgd(
    model: nn.Module,
    x: Tensor,
    loss_per_image: LossPerImage,
    config: PgdConfig,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search, around each image, for the one that the model handles worst.

    The model is left as it was: batch normalization runs in eval mode, buffers and gradients stay untouched.

    Args:
        model: maps images to the outputs that `loss_per_image` takes.
        x: clean images [N, ...] in [0, 1].
        loss_per_image: maps the outputs to losses [N], to be raised.
        config: the attack's knobs.
        generator: source of the random starts, on x's device.

    Returns:
        x_adv [N, ...], within the ball around x and in [0, 1].
    """
    check_pixels(x)
    x = x.detach()
    with frozen_batch_norm(model):
        best = _ascend(model, x, loss_per_image, config, generator)
        if config.restarts == 1:
            return best
        best_loss = loss_at(model, best, loss_per_image)
        for _ in range(config.restarts - 1):
            x_adv = _ascend(model, x, loss_per_image, config, generator)
            loss = loss_at(model, x_adv, loss_per_image)
            is_better = loss > best_loss
            best[is_better], best_loss[is_better] = x_adv[is_better], loss[is_better]
    return best


def _ascend(
    model: nn.Module,
    x: Tensor,
    loss_per_image: LossPerImage,
    config: PgdConfig,
    generator: torch.Generator | None,
) -> Tensor:
    move = STEPS[config.norm](config.eps, config.step_size)
    x_adv = move.random_start(x, generator) if config.random_start else x.clone()
    for _ in range(config.steps):
        grad = slope_at(model, x_adv, loss_per_image).grad
        x_adv = move.project(move.step(x_adv, grad), x)
    return x_adv
