"""The geometry of an attack: {project, step, random start} in one norm, after MadryLab's robustness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit.errors import InputError

Norm = Literal["linf", "l2"]


@dataclass(frozen=True)
class _Step:
    """How far an attack moves an image.

    Attributes:
        eps: radius of the ball around the clean image, for pixels in [0, 1].
        step_size: length of one step, or one for each image as [N, 1, ...].
    """

    eps: float
    step_size: float | Tensor


class LinfStep(_Step):
    """Every pixel moves by at most eps."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the nearest images to x_adv in the ball around x and in [0, 1]; all [N, ...]."""
        return x_adv.clamp(x - self.eps, x + self.eps).clamp(0, 1)

    def step(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """Move x_adv [N, ...] along the sign of its loss gradient."""
        return x_adv + self.step_size * grad.sign()

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw images uniformly from the ball around x [N, ...]."""
        noise = torch.empty_like(x).uniform_(-self.eps, self.eps, generator=generator)
        return self.project(x + noise, x)


class L2Step(_Step):
    """Every image moves by at most eps in Euclidean distance over all its pixels."""

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return images in the ball around x and in [0, 1]; all [N, ...]."""
        delta = x_adv - x
        # Clamping after the ball only shortens delta, because x itself lies in [0, 1].
        return (x + delta * (self.eps / _length(delta)).clamp(max=1)).clamp(0, 1)

    def step(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """Move x_adv [N, ...] along its loss gradient, scaled to the step size image by image."""
        return x_adv + self.step_size * grad / _length(grad)

    def random_start(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw images uniformly from the ball around x [N, ...]."""
        direction = torch.empty_like(x).normal_(generator=generator)
        dimensions = x[0].numel()
        uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        radius = self.eps * per_image(uniform.pow(1 / dimensions), x)
        return self.project(x + radius * direction / _length(direction), x)


STEPS: dict[str, type[LinfStep] | type[L2Step]] = {"linf": LinfStep, "l2": L2Step}


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Shape values [N] so that they broadcast over images x [N, ...]."""
    return values.view(-1, *[1] * (x.ndim - 1))


def check_ball(norm: str, eps: float) -> None:
    """Raise an InputError unless `norm` is known and `eps` a radius for pixels in [0, 1]."""
    if norm not in STEPS:
        raise InputError(f"Expected the norm to be one of {', '.join(STEPS)}, got {norm!r}")
    largest_eps = 1.0 if norm == "linf" else math.inf
    if not (0 <= eps <= largest_eps and math.isfinite(eps)):
        raise InputError(f"Expected eps for pixels in [0, 1], such as 8/255, got {eps}")


def check_pixels(x: Tensor) -> None:
    """Raise an InputError unless all pixels lie in [0, 1]."""
    if x.numel() and not (x.min() >= 0 and x.max() <= 1):
        raise InputError(f"Expected pixels in [0, 1], got {x.min().item():g} to {x.max().item():g}")


def _length(delta: Tensor) -> Tensor:
    """Return the Euclidean length of each image's delta, [N, 1, ...], never zero."""
    length: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
    return per_image(length, delta)
