"""Training on what can be proven: the loss at the worst logits that bounds allow in a ball around the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.task import LabelsImages
from prunekit.training.objective import Objective, TrainBatch
from prunekit.verification import Bounded, bounded, margin_bounds


class _Verified(Objective):
    """Base: losses of bounded outputs."""

    def labels(self, batch: TrainBatch) -> Tensor:
        """Return the right classes, int64 [N]."""
        assert isinstance(self.task, LabelsImages)  # make_objective has made sure
        return self.task.labels(batch.targets)

    def worst_loss(self, logits: Bounded, labels: Tensor, crown: float) -> Tensor:
        """Return the mean cross-entropy at the worst margins.

        Args:
            logits: What the model returned for images with balls around them.
            labels: The right classes.
            crown: Weight of CROWN's bounds; the rest is that of intervals.
        """
        intervals = margin_bounds(logits, labels, relax=False) if crown < 1 else 0.0
        lines = margin_bounds(logits, labels, relax=True) if crown > 0 else 0.0
        return self.loss_of(labels)(-(crown * lines + (1 - crown) * intervals)).mean()


class CrownIbp(_Verified):
    """κ · L(x) + (1 - κ) · L(worst logits), the margins bounded by CROWN and by intervals (Zhang et al. 2020).

    Both bounds take intervals inside the network. Their mix begins with CROWN's alone, which is tighter on untrained
    networks, and κ begins with 1; both move to their ends while the ball grows. Batch normalization is that of the
    images themselves, of which this is the only pass.
    """

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mix of the clean and the worst loss."""
        config = self.config.verified
        growth = config.growth(batch.progress)
        if growth == 0:
            return self.mean_loss(model, batch.x, batch.targets)
        kappa, crown = (1 - growth * (1 - end) for end in (config.kappa, config.crown_weight))
        logits = model(bounded(batch.x, growth * config.train_eps))
        clean = self.loss_of(batch.targets)(logits.value).mean()
        return kappa * clean + (1 - kappa) * self.worst_loss(logits, self.labels(batch), crown)


class MixTrain(_Verified):
    """(1 - α) · L(x) + α · L(worst logits of a few of the images): MixTrain (Wang et al. 2018).

    The few, drawn anew in each step, are the stochastic robust approximation: bounding them all costs far more. They
    are bounded by CROWN, in place of symbolic intervals, with the running statistics, as so few have none of their own.
    """

    def __call__(self, model: nn.Module, batch: TrainBatch, generator: torch.Generator) -> Tensor:
        """Return the mix of the clean loss and that of the chosen images."""
        config = self.config.verified
        growth = config.growth(batch.progress)
        clean = self.mean_loss(model, batch.x, batch.targets)
        if growth == 0:
            return clean
        order = torch.randperm(len(batch.x), generator=generator, device=batch.x.device)[: config.mixtrain_images]
        with frozen_batch_norm(model):
            logits = model(bounded(batch.x[order], growth * config.train_eps))
        worst = self.worst_loss(logits, self.labels(batch)[order], crown=1.0)
        return (1 - config.mixtrain_alpha) * clean + config.mixtrain_alpha * worst
