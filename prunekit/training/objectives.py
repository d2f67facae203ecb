"""What training minimizes: the clean loss, or one of seven that prepare a model for attacks.

An objective maps a batch to a scalar loss, attacking the images first if that is its way. It knows the task only
through losses per image, so that detectors and classifiers share every line. Attacks run with batch normalization in
eval mode; the forward passes that are trained on run as the training loop has set the model up.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from prunekit.attacks import attack_named, fgsm, pgd
from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.errors import InputError
from prunekit.task import LabelsImages, Losses
from prunekit.training.objective import Objective, ObjectiveConfig, TrainBatch, VerifiedConfig
from prunekit.training.pool import drawn, noted
from prunekit.training.verified import CrownIbp, MixTrain

__all__ = [
    "OBJECTIVES",
    "UNATTACKED",
    "VERIFIED",
    "Objective",
    "ObjectiveConfig",
    "TrainBatch",
    "VerifiedConfig",
    "make_objective",
]


class Clean(Objective):
    """L(x)."""

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mean loss."""
        return self.mean_loss(model, batch.x, batch.targets)


class PgdAdversarialTraining(Objective):
    """L(x) + L(x_adv): Madry et al. (2018) with the clean loss beside it, as the report on pruning YOLOv3 trains."""

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the sum of both mean losses."""
        if batch.pool is not None:
            return self._with_pool(model, batch, batch.pool, generator)
        x_adv = pgd(model, batch.x, self.loss_of(batch.targets), self.config.attack, generator)
        return self.mean_loss(model, batch.x, batch.targets) + self.mean_loss(model, x_adv, batch.targets)

    def _with_pool(self, model: nn.Module, batch: TrainBatch, pool: Tensor, generator: torch.Generator) -> Tensor:
        number = drawn(pool, generator)
        attack = attack_named(self.config.pool[number])
        x_adv = attack(model, batch.x, self.task.attack_losses(batch.targets), generator)
        clean = self.mean_loss(model, batch.x, batch.targets)
        attacked = self.mean_loss(model, x_adv, batch.targets)
        noted(pool, number, float(attacked.detach()))
        return clean + attacked


class Trades(Objective):
    """L(x) + β · D(x_adv, x), where x_adv maximizes the divergence D of the answers (Zhang et al. 2019).

    The attack starts at random whatever its config says: at x itself D has its minimum and no gradient to follow.
    """

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mean loss plus β times the mean divergence."""
        with torch.no_grad(), frozen_batch_norm(model):
            reference = model(batch.x)
        attack = dataclasses.replace(self.config.attack, random_start=True)
        diverge = self.task.divergence
        x_adv = pgd(model, batch.x, lambda outputs: diverge(outputs, reference), attack, generator)
        clean = model(batch.x)
        divergence = diverge(model(x_adv), clean).mean()
        # Of the outputs that the divergence compares with: another pass would move running statistics once more.
        return self.loss_of(batch.targets)(clean).mean() + self.config.beta * divergence


class FreeAdversarialTraining(Objective):
    """L(x + δ), each batch several times in a row, with δ following its gradient (Shafahi et al. 2019).

    The backward pass that trains the weights also yields the gradient for δ: attacks cost nothing. δ goes on from batch
    to batch, in the L∞ ball. Batch normalization is the training forward's: there is no other pass.
    """

    @property
    def replays(self) -> int:
        """Consecutive steps on each batch."""
        return self.config.replays

    @property
    def carries_delta(self) -> bool:
        """Whether batches come with a `delta`."""
        return True

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mean loss at the perturbed images."""
        assert batch.delta is not None
        return self.mean_loss(model, (batch.x + batch.delta).clamp(0, 1), batch.targets)

    def next_delta(self, delta: Tensor) -> Tensor:
        """Return δ after one signed step of length eps up the loss."""
        assert delta.grad is not None
        eps = self.config.attack.eps
        return (delta.detach() + eps * delta.grad.sign()).clamp(-eps, eps)


class NoisyFgsm(Objective):
    """L(x_adv) with x_adv one step of eps away from x + U(-2·eps, 2·eps): N-FGSM (de Jorge et al. 2022).

    The point where the step ends is not taken back into the ball around x: that, and the noise twice as large as the
    ball, keep single-step training from failing against PGD after a while (catastrophic overfitting).
    """

    NOISE = 2.0  # times eps

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mean loss at the attacked images."""
        eps = self.config.attack.eps
        noise = torch.empty_like(batch.x).uniform_(-self.NOISE * eps, self.NOISE * eps, generator=generator)
        # The ball of this step is the one around the noisy image.
        noisy = (batch.x + noise).clamp(0, 1)
        x_adv = pgd(model, noisy, self.loss_of(batch.targets), fgsm(eps), generator)
        return self.mean_loss(model, x_adv, batch.targets)


class Smoothing(Objective):
    """L(x + Gaussian noise), for models that are to be smoothed by such noise (Cohen et al. 2019).

    Pixels may leave [0, 1]: the certificate is about noise that nothing clips.
    """

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mean loss at the noisy images."""
        noise = torch.empty_like(batch.x).normal_(generator=generator)
        return self.mean_loss(model, batch.x + self.config.sigma * noise, batch.targets)


OBJECTIVES: dict[str, type[Objective]] = {
    "clean": Clean,
    "pgd-at": PgdAdversarialTraining,
    "trades": Trades,
    "free": FreeAdversarialTraining,
    "n-fgsm": NoisyFgsm,
    "smoothing": Smoothing,
    "mixtrain": MixTrain,
    "crown-ibp": CrownIbp,
}
#: Those that train on bounds.
VERIFIED = ("mixtrain", "crown-ibp")
#: Those that know no attack.
UNATTACKED = (Clean, Smoothing)
_LINF_ONLY = (FreeAdversarialTraining, NoisyFgsm)


def make_objective(name: str, task: Losses, config: ObjectiveConfig | None = None) -> Objective:
    """Build one of `OBJECTIVES`.

    Raises:
        InputError: For an unknown name, or a norm or a task that the objective is not made for.
    """
    if name not in OBJECTIVES:
        raise InputError(f"Expected the objective to be one of {', '.join(OBJECTIVES)}, got {name!r}")
    objective = OBJECTIVES[name](task, config or ObjectiveConfig())
    if isinstance(objective, _LINF_ONLY) and objective.config.attack.norm != "linf":
        raise InputError(f"Expected the norm linf for the objective {name}, got {objective.config.attack.norm}")
    if objective.config.pool and name != "pgd-at":
        raise InputError(f"--train-attack: expected one attack for the objective {name}, got a pool.")
    if name in VERIFIED and not isinstance(task, LabelsImages):
        raise InputError(f"Expected a classifier for the objective {name}, got {type(task).__name__}")
    return objective
