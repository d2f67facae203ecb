"""Carlini and Wagner's L2 attack (2017): the smallest change that fools the model, rather than the worst in a ball.

Per image it minimizes, over w with x_adv = (tanh(w) + 1) / 2, which is in [0, 1] whatever w is,

    ‖x_adv - x‖² + constant · max(0, confidence - margin(x_adv))

by Adam, and searches the constant: ×10 until the attack succeeds, then bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.gradient import loss_at, slope_at
from prunekit.attacks.losses import AttackLosses, LossPerImage
from prunekit.attacks.steps import check_pixels, per_image
from prunekit.errors import InputError

# Keeps atanh finite for black and white pixels. The authors' code has 1 - 1e-6, from where Adam needs hundreds of steps
# to move such a pixel at all; here it starts 5e-5 away from its value.
SHRINK = 1 - 1e-4


@dataclass(frozen=True)
class CarliniWagnerConfig:
    """The knobs of C&W; called like any `Attack`. There is no ball: what it finds is a distance.

    Attributes:
        steps: Adam steps per constant.
        learning_rate: Adam's, on w.
        searches: constants tried per image.
        first_constant: the first of them.
        confidence: the margin to reach, at least 0.
    """

    steps: int = 50
    learning_rate: float = 0.02
    searches: int = 4
    first_constant: float = 1.0
    confidence: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.searches < 1:
            raise InputError(f"Expected steps >= 1 and searches >= 1, got {self.steps} and {self.searches}")
        for name in ("learning_rate", "first_constant"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise InputError(f"Expected a finite {name} above 0, got {value}")
        if not (self.confidence >= 0 and math.isfinite(self.confidence)):
            raise InputError(f"Expected a finite confidence of at least 0, got {self.confidence}")

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return, per image, the nearest success; where there was none, the point with the greatest margin.

        Images on which the model fails already come back as they are. Nothing is random.
        """
        check_pixels(x)
        x = x.detach()
        with frozen_batch_norm(model):
            nearest = Nearest(x, loss_at(model, x, losses.margin), self.confidence)
            constants = Constants(x.new_full((len(x),), self.first_constant))
            for _ in range(self.searches):
                has_succeeded = self._minimize(model, x, losses.margin, constants.current, nearest)
                constants.update(has_succeeded)
        return nearest.x_adv

    def _minimize(
        self, model: nn.Module, x: Tensor, margin_per_image: LossPerImage, constant: Tensor, nearest: Nearest
    ) -> Tensor:
        """Minimize the objective for one constant per image, [N]; return whether each succeeded, bool [N]."""
        w = ((2 * x - 1) * SHRINK).atanh()
        optimizer = torch.optim.Adam([w], lr=self.learning_rate)
        has_succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for _ in range(self.steps):
            x_adv = (w.tanh() + 1) / 2
            _, margin, margin_grad = slope_at(model, x_adv, margin_per_image)
            has_succeeded |= nearest.offer(x_adv, margin)
            pull = per_image(constant * (margin <= self.confidence), x)
            grad = 2 * (x_adv - x) - pull * margin_grad
            w.grad = grad * (1 - w.tanh().square()) / 2  # the derivative of x_adv
            optimizer.step()
        x_adv = (w.tanh() + 1) / 2
        has_succeeded |= nearest.offer(x_adv, loss_at(model, x_adv, margin_per_image))
        return has_succeeded


class Nearest:
    """The best result so far, image by image: the nearest success, or the greatest margin."""

    def __init__(self, x: Tensor, margin: Tensor, confidence: float) -> None:
        self.x = x
        self.confidence = confidence
        self.x_adv = x.clone()
        self.margin = margin
        self.distance = torch.where(self._succeeds(margin), 0.0, torch.full_like(margin, math.inf))

    def offer(self, x_adv: Tensor, margin: Tensor) -> Tensor:
        """Keep the rows of x_adv that are better; return which of them succeed, bool [N]."""
        succeeds = self._succeeds(margin)
        distance = torch.linalg.vector_norm((x_adv - self.x).flatten(1), dim=1)
        is_nearer = succeeds & (distance < self.distance)
        is_closer_to_success = self.distance.isinf() & (margin > self.margin)
        is_better = is_nearer | is_closer_to_success
        self.x_adv = torch.where(per_image(is_better, x_adv), x_adv, self.x_adv)
        self.margin = torch.where(is_better, margin, self.margin)
        self.distance = torch.where(is_nearer, distance, self.distance)
        return succeeds

    def _succeeds(self, margin: Tensor) -> Tensor:
        return (margin > 0) & (margin >= self.confidence)


class Constants:
    """The search for each image's smallest constant that succeeds, [N]."""

    def __init__(self, first: Tensor) -> None:
        self.current = first
        self.lower = torch.zeros_like(first)
        self.upper = torch.full_like(first, math.inf)

    def update(self, has_succeeded: Tensor) -> None:
        """Go down after a success, up after a failure: bisection once both were seen."""
        self.upper = torch.where(has_succeeded, self.current, self.upper)
        self.lower = torch.where(has_succeeded, self.lower, self.current)
        middle = (self.lower + self.upper) / 2
        self.current = torch.where(self.upper.isinf(), self.current * 10, middle)
