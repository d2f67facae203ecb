"""What objectives of training are made of: a batch, the knobs of all of them, and their base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import PgdConfig
from prunekit.attacks.presets import PAPER
from prunekit.errors import InputError
from prunekit.task import Losses


@dataclass(frozen=True)
class TrainBatch:
    """One batch as an objective sees it.

    Attributes:
        x: Images [N, ...] in [0, 1].
        targets: What the task's losses understand.
        delta: For an objective that carries one from step to step: the perturbation [N, ...], whose gradient the
            training step's own backward pass collects.
        progress: Share of the training's steps that are done, for what changes on the way; at 1 all of it has.
    """

    x: Tensor
    targets: Any
    delta: Tensor | None = None
    progress: float = 1.0


@dataclass(frozen=True)
class VerifiedConfig:
    """The knobs of training on bounds, after CROWN-IBP's published code and, for mixtrain, HYDRA's.

    First the clean loss alone is trained; then the ball around the images grows linearly.

    Attributes:
        eps: The ball's radius in L∞ at the end.
        warmup: Share of the training before the ball grows.
        ramp: Share of the training in which it grows.
        kappa: Weight of the clean loss in crown-ibp at the end; it falls from 1 while the ball grows.
        crown: Weight of CROWN's bound against intervals' in crown-ibp at the end; likewise.
        images: How many images of a batch mixtrain bounds, drawn at random.
        alpha: Weight of their loss in mixtrain.
    """

    eps: float = 2 / 255
    warmup: float = 0.1
    ramp: float = 0.5
    kappa: float = 0.5
    crown: float = 0.0
    images: int = 1
    alpha: float = 0.8

    def growth(self, progress: float) -> float:
        """Return the share of `eps` that the ball has after a share of the training."""
        if progress >= self.warmup + self.ramp:
            return 1.0
        return max(0.0, progress - self.warmup) / self.ramp if self.ramp else 0.0


@dataclass(frozen=True)
class ObjectiveConfig:
    """The knobs of all objectives; each uses its own.

    Attributes:
        attack: pgd-at and trades attack with it; n-fgsm and free take its eps.
        beta: Weight of TRADES' divergence.
        replays: Consecutive steps that free adversarial training takes on each batch.
        sigma: Standard deviation of smoothing's noise, for pixels in [0, 1].
        verified: What mixtrain and crown-ibp train by.
    """

    attack: PgdConfig = PAPER
    beta: float = 6.0
    replays: int = 4
    sigma: float = 0.1
    verified: VerifiedConfig = VerifiedConfig()

    def __post_init__(self) -> None:
        if not (self.beta >= 0 and self.sigma >= 0 and self.replays >= 1):
            raise InputError(
                f"Expected beta and sigma of at least 0 and replays of at least 1, "
                f"got {self.beta}, {self.sigma} and {self.replays}"
            )


@dataclass(frozen=True)
class Objective:
    """Base of the objectives: a task and the knobs.

    An objective that carries a perturbation from step to step overrides `carries_delta` and `next_delta`.
    """

    task: Losses
    config: ObjectiveConfig = ObjectiveConfig()

    @property
    def replays(self) -> int:
        """Consecutive steps on each batch."""
        return 1

    @property
    def carries_delta(self) -> bool:
        """Whether batches come with a `delta`."""
        return False

    def next_delta(self, delta: Tensor) -> Tensor | None:
        """Return the perturbation to carry on, after the backward pass."""
        return None

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the scalar to minimize; everything random comes from `generator`, on the images' device."""
        raise NotImplementedError

    def mean_loss(self, model: nn.Module, x: Tensor, targets: Any) -> Tensor:
        """Return the task's loss at images x, averaged over them."""
        return self.task.loss(model, x, targets).mean()

    def loss_of(self, targets: Any) -> Callable[[Any], Tensor]:
        """Return what an attack raises: a map from outputs to losses [N]."""
        return self.task.attack_losses(targets).total
