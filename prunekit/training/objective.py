"""What objectives of training are made of: a batch, the knobs of all of them, and their base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from prunekit.attacks import PgdConfig
from prunekit.attacks.presets import PAPER
from prunekit.config import Config
from prunekit.task import Losses

Self = TypeVar("Self", bound="VerifiedConfig")


@dataclass(frozen=True)
class TrainBatch:
    """One batch as an objective sees it.

    Attributes:
        x: Images [N, ...] in [0, 1].
        targets: What the task's losses understand.
        delta: For an objective that carries one from step to step: the perturbation [N, ...], whose gradient the
            training step's own backward pass collects.
        pool: For an objective with a pool of attacks: the moving average of the loss that each causes, float64 [K] on
            the CPU, nan for one that was not met yet. The objective updates it in place.
        progress: Share of the training's steps that are done, for what changes on the way; at 1 all of it has.
    """

    x: Tensor
    targets: Any
    delta: Tensor | None = None
    progress: float = 1.0
    pool: Tensor | None = None


class NoiseConfig(Config):
    """The noise of randomized smoothing, in training and where it is certified."""

    sigma: float = Field(
        0.1, gt=0, description="standard deviation of randomized smoothing's noise, for pixels in [0, 1]"
    )


class VerifiedConfig(Config):
    """What `crown-ibp` and `mixtrain` train by, after CROWN-IBP's published code and, for mixtrain, HYDRA's.

    First the clean loss alone is trained; then the ball around the images grows linearly.
    """

    train_eps: float = Field(
        2 / 255, gt=0, le=1, description="L-infinity radius in which crown-ibp and mixtrain bound the loss"
    )
    eps_warmup: float = Field(
        0.1, ge=0, le=1, description="share of a training on bounds that minimizes the clean loss first"
    )
    eps_ramp: float = Field(0.5, ge=0, le=1, description="share of it in which the radius then grows to --train-eps")
    kappa: float = Field(0.5, ge=0, le=1, description="final weight of crown-ibp's clean loss; 1 at first")
    crown_weight: float = Field(
        0.0, ge=0, le=1, description="final weight of CROWN's bounds against intervals' in crown-ibp"
    )
    mixtrain_images: int = Field(1, ge=1, description="images of a batch that mixtrain bounds")
    mixtrain_alpha: float = Field(0.8, ge=0, le=1, description="weight of mixtrain's bounded loss")

    @model_validator(mode="after")
    def _schedule_ends(self: Self) -> Self:
        if self.eps_warmup + self.eps_ramp > 1:
            raise ValueError(
                f"--eps-ramp: expected at most 1 together with --eps-warmup, got {self.eps_warmup + self.eps_ramp:g}"
            )
        return self

    def growth(self, progress: float) -> float:
        """Return the share of `train_eps` that the ball has after a share of the training."""
        if progress >= self.eps_warmup + self.eps_ramp:
            return 1.0
        return max(0.0, progress - self.eps_warmup) / self.eps_ramp if self.eps_ramp else 0.0


class ObjectiveConfig(Config):
    """The knobs of all objectives; each uses its own."""

    attack: PgdConfig = Field(PAPER, description="pgd-at and trades attack with it; n-fgsm and free take its eps")
    pool: tuple[str, ...] = Field(
        (),
        description="attacks of which pgd-at draws one for each batch in place of `attack`",
    )
    beta: float = Field(6.0, ge=0, description="weight of TRADES' divergence")
    replays: int = Field(4, ge=1, description="consecutive steps that free adversarial training takes on each batch")
    sigma: float = Field(0.1, ge=0, description="standard deviation of smoothing's noise, for pixels in [0, 1]")
    verified: VerifiedConfig = Field(VerifiedConfig(), description="what mixtrain and crown-ibp train by")


@dataclass(frozen=True)
class Objective:
    """Base of the objectives: a task and the knobs.

    An objective that carries a perturbation from step to step overrides `carries_delta` and `next_delta`.
    """

    task: Losses
    config: ObjectiveConfig = field(default_factory=ObjectiveConfig)

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
