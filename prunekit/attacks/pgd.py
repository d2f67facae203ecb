"""Projected gradient descent (Madry et al. 2018) on any model with a loss per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.steps import L2Step, LinfStep
from prunekit.errors import InputError

STEPS: dict[str, type[LinfStep] | type[L2Step]] = {"linf": LinfStep, "l2": L2Step}


@dataclass(frozen=True)
class PgdConfig:
    """The knobs of PGD, for pixels in [0, 1].

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
    norm: Literal["linf", "l2"] = "linf"
    random_start: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.norm not in STEPS:
            raise InputError(f"expected the norm to be one of {', '.join(STEPS)}, but got {self.norm!r}")
        largest_eps = 1.0 if self.norm == "linf" else math.inf
        if not (0 <= self.eps <= largest_eps and math.isfinite(self.eps)):
            raise InputError(f"expected eps for pixels in [0, 1], such as 8/255, but got {self.eps}")
        if not (self.step_size >= 0 and math.isfinite(self.step_size)):
            raise InputError(f"expected a finite step_size of at least 0, but got {self.step_size}")
        if self.steps < 0 or self.restarts < 1:
            raise InputError(f"expected steps >= 0 and restarts >= 1, but got {self.steps} and {self.restarts}")
        if self.restarts > 1 and not self.random_start:
            raise InputError(f"expected random_start with {self.restarts} restarts: without it all are equal")


PRESETS: dict[str, PgdConfig] = {
    # What the report on robust pruning of YOLOv3 used.
    "paper": PgdConfig(eps=0.05, step_size=0.02, steps=5),
    # The same ball, searched more thoroughly.
    "standard": PgdConfig(eps=0.05, step_size=0.01, steps=20, random_start=True),
}


def pgd(
    model: nn.Module,
    x: Tensor,
    loss_per_image: Callable[[Any], Tensor],
    config: PgdConfig,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search, around each image, for the one that the model handles worst.

    The model is left as it was: batch normalisation runs in eval mode, buffers and gradients stay untouched.

    Args:
        model: maps images to the outputs that `loss_per_image` takes.
        x: clean images [N, ...] in [0, 1].
        loss_per_image: maps the outputs to losses [N], to be raised.
        config: the attack's knobs.
        generator: source of the random starts, on x's device.

    Returns:
        x_adv [N, ...], within the ball around x and in [0, 1].
    """
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"expected pixels in [0, 1], but got {x.min().item():g} to {x.max().item():g}")
    x = x.detach()
    with frozen_batch_norm(model):
        best = _ascend(model, x, loss_per_image, config, generator)
        if config.restarts == 1:
            return best
        best_loss = _loss_without_grad(model, best, loss_per_image)
        for _ in range(config.restarts - 1):
            x_adv = _ascend(model, x, loss_per_image, config, generator)
            loss = _loss_without_grad(model, x_adv, loss_per_image)
            is_better = loss > best_loss
            best[is_better], best_loss[is_better] = x_adv[is_better], loss[is_better]
    return best


def _ascend(
    model: nn.Module,
    x: Tensor,
    loss_per_image: Callable[[Any], Tensor],
    config: PgdConfig,
    generator: torch.Generator | None,
) -> Tensor:
    move = STEPS[config.norm](config.eps, config.step_size)
    x_adv = move.random_start(x, generator) if config.random_start else x.clone()
    for _ in range(config.steps):
        grad = _input_gradient(model, x_adv, loss_per_image)
        x_adv = move.project(move.step(x_adv, grad), x)
    return x_adv


def _input_gradient(model: nn.Module, x_adv: Tensor, loss_per_image: Callable[[Any], Tensor]) -> Tensor:
    with torch.enable_grad():
        x_adv = x_adv.detach().requires_grad_()
        loss = loss_per_image(model(x_adv)).sum()
        (grad,) = torch.autograd.grad(loss, x_adv)
    if not grad.isfinite().all():
        raise ArithmeticError("the attack met a gradient that is not finite: its result would mean nothing")
    return grad


def _loss_without_grad(model: nn.Module, x_adv: Tensor, loss_per_image: Callable[[Any], Tensor]) -> Tensor:
    with torch.no_grad():
        return loss_per_image(model(x_adv)).clone()
