"""Attacks on latency: as many candidate boxes as possible, all of which suppression has to sort and compare.

The idea is that of Phantom Sponges (Shapira et al. 2023, "Phantom Sponges: Exploiting Non-Maximum Suppression to Attack
Deep Object Detectors") and Overload (Chen et al. 2024, "Overload: Latency Attacks on Object Detection for Edge
Devices"); the loss is a smooth count of what enters suppression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.attacks.losses import AttackLosses
from prunekit.attacks.pgd import PgdConfig, pgd
from prunekit.errors import InputError

_LEAST_THRESHOLD = 1e-6  # at 0 every pair is a candidate, and there would be nothing to raise


@dataclass(frozen=True)
class OverloadConfig:
    """The knobs of the attack on latency, PGD in L∞ on `AttackLosses.overload`; called like any `Attack`.

    Attributes:
        eps: radius of the ball around the clean image, for pixels in [0, 1].
        step_size: length of one step.
        steps: number of gradient steps.
    """

    eps: float
    step_size: float
    steps: int

    def __post_init__(self) -> None:
        _ = self.pgd  # which checks the numbers

    @property
    def pgd(self) -> PgdConfig:
        """The search itself."""
        return PgdConfig(self.eps, self.step_size, self.steps)

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return images with many candidates; InputError where the losses do not say what a candidate is."""
        if losses.overload is None:
            raise InputError("Expected losses of a task that suppresses boxes for an attack on latency, got others.")
        return pgd(model, x, losses.overload, self.pgd, generator)

    def with_eps(self, eps: float) -> OverloadConfig:
        """Return the same attack in a ball of another radius, its steps in proportion."""
        scaled = self.pgd.with_eps(eps)
        return dataclasses.replace(self, eps=scaled.eps, step_size=scaled.step_size)


def soft_count(scores: Sequence[Tensor], threshold: float) -> Tensor:
    """Return, per image, a smooth count of the scores above a threshold: Σ s / (s + threshold), [N].

    A score far above counts 1, one at the threshold a half. The gradient is largest for scores near the threshold. A
    hinge on log s pushes all scores alike instead, also those that no step will lift: at a threshold of 0.25 it left
    yolov3-tiny with no candidate on photos where this count found some three hundred.

    Args:
        scores: Each image's, in [0, 1], of any shape.
        threshold: What makes a candidate.
    """
    least = max(threshold, _LEAST_THRESHOLD)
    return torch.stack([(image / (image + least)).sum() for image in scores])
