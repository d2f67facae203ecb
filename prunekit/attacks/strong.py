"""The strong attack: several losses, several starts, steps that shrink; per image the worst of all that was seen.

One loss can be blind. A detector that is sure of its objects gives the total loss flat gradients where lowering
objectness still works, and the other way round. So each of the task's component losses is climbed in turn, and what
counts in the end is not the loss that was climbed but one common `badness`.

The climb halves an image's step when its loss stalls and goes back to the best point, as APGD does (Croce and Hein
2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks"); APGD's
momentum and its varying distances between checkpoints are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.gradient import loss_at, slope_at
from prunekit.attacks.losses import AttackLosses, LossPerImage
from prunekit.attacks.steps import STEPS, Norm, check_ball, check_pixels, per_image
from prunekit.errors import InputError

RISING_SHARE = 0.75  # APGD's rho: of the steps since the last checkpoint, so many must have raised the loss


@dataclass(frozen=True)
class StrongConfig:
    """The knobs of the strong attack; called like any `Attack`.

    Attributes:
        eps: radius of the ball around the clean image, for pixels in [0, 1].
        norm: "linf" or "l2".
        steps: gradient steps of one climb.
        restarts: climbs per loss; the first starts at the image, the others at random points of the ball.
        first_step: length of the first steps, relative to eps; APGD's 2 crosses the ball at once.
        checkpoint: steps between two decisions on halving.
    """

    eps: float
    norm: Norm = "linf"
    steps: int = 20
    restarts: int = 2
    first_step: float = 2.0
    checkpoint: int = 4

    def __post_init__(self) -> None:
        check_ball(self.norm, self.eps)
        if self.steps < 0 or self.restarts < 1 or self.checkpoint < 1:
            raise InputError(
                f"Expected steps >= 0, restarts >= 1 and checkpoint >= 1, "
                f"got {self.steps}, {self.restarts} and {self.checkpoint}"
            )
        if not (self.first_step >= 0 and math.isfinite(self.first_step)):
            raise InputError(f"Expected a finite first_step of at least 0, got {self.first_step}")

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return, per image, the point with the greatest badness that any climb came through."""
        check_pixels(x)
        x = x.detach()
        # All losses share the starts, so that leaving one out never changes what another finds.
        move = STEPS[self.norm](self.eps, 0.0)
        starts = [x, *(move.random_start(x, generator) for _ in range(self.restarts - 1))]
        with frozen_batch_norm(model):
            worst = Worst(x, loss_at(model, x, losses.badness))

            def watch(x_adv: Tensor, outputs: Any) -> None:
                worst.offer(x_adv, losses.badness(outputs))

            for loss_per_image in losses.components.values():
                for start in starts:
                    climb(model, x, start, loss_per_image, self, watch)
        return worst.x

    def with_eps(self, eps: float) -> StrongConfig:
        """Return the same attack in a ball of another radius."""
        return dataclasses.replace(self, eps=eps)


class Worst:
    """The worst image seen so far, image by image: x [N, ...] and its badness [N]."""

    def __init__(self, x: Tensor, badness: Tensor) -> None:
        self.x = x.clone()
        self.badness = badness

    def offer(self, x_adv: Tensor, badness: Tensor) -> None:
        """Keep the rows of x_adv that are worse than what is there."""
        is_worse = badness > self.badness
        self.x = torch.where(per_image(is_worse, x_adv), x_adv, self.x)
        self.badness = torch.where(is_worse, badness, self.badness)


@dataclass
class Peak:
    """The highest point of a climb, image by image: x_adv and gradient [N, ...], loss [N]."""

    x_adv: Tensor
    grad: Tensor
    loss: Tensor

    def update(self, x_adv: Tensor, grad: Tensor, loss: Tensor) -> None:
        """Move up where `loss` is higher."""
        is_higher = per_image(loss > self.loss, x_adv)
        self.x_adv = torch.where(is_higher, x_adv, self.x_adv)
        self.grad = torch.where(is_higher, grad, self.grad)
        self.loss = torch.maximum(loss, self.loss)


def climb(
    model: nn.Module,
    x: Tensor,
    start: Tensor,
    loss_per_image: LossPerImage,
    config: StrongConfig,
    watch: Callable[[Tensor, Any], None],
) -> None:
    """Climb one loss from `start` in the ball around x, both [N, ...], with steps that halve when it stalls.

    Args:
        model: maps images to outputs.
        x: clean images.
        start: where to begin.
        loss_per_image: maps outputs to losses [N], to be raised.
        config: steps and their lengths.
        watch: told of every point of the climb, with the model's outputs there.
    """
    step_size = per_image(x.new_full((len(x),), config.first_step * config.eps), x)
    rises = x.new_zeros(len(x))
    previous_loss = checkpoint_loss = x.new_full((len(x),), -math.inf)
    peak = Peak(start, torch.zeros_like(x), previous_loss)
    x_adv = start
    for step in range(config.steps):
        outputs, loss, grad = slope_at(model, x_adv, loss_per_image)
        with torch.no_grad():
            watch(x_adv, outputs)
        peak.update(x_adv, grad, loss)
        rises += loss > previous_loss
        previous_loss = loss
        if step > 0 and step % config.checkpoint == 0:
            is_stalled = (rises < RISING_SHARE * config.checkpoint) | (peak.loss <= checkpoint_loss)
            stalled = per_image(is_stalled, x)
            step_size = torch.where(stalled, step_size / 2, step_size)
            x_adv, grad = torch.where(stalled, peak.x_adv, x_adv), torch.where(stalled, peak.grad, grad)
            rises, checkpoint_loss = torch.zeros_like(rises), peak.loss
        move = STEPS[config.norm](config.eps, step_size)
        x_adv = move.project(move.step(x_adv, grad), x)
    with torch.no_grad():
        watch(x_adv, model(x_adv.clone()))
