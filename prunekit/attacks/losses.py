"""What an attack needs to know about a task: losses per image, whatever the model's outputs look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# Maps a model's outputs for N images to one value an image, [N]; the larger, the worse the model did.
LossPerImage = Callable[[Any], Tensor]


@dataclass(frozen=True)
class AttackLosses:
    """What attacks raise; `classification_losses` makes one for labels, prunekit.detection one for objects.

    Attributes:
        total: the training loss; FGSM and PGD raise it.
        margin: above 0 exactly for the images on which the attack has succeeded; C&W works with it.
        components: losses that fool the model in different ways; the strong attack raises each in turn.
        badness: says which of several results for an image is the worst. Not differentiated.
        smooth: a loss whose gradient holds nothing constant, to check gradients by; the total if not given.
        labels: a classifier's right classes, int64 [N], where outputs are logits [N, C]; AutoAttack needs them.
        overload: grows with the number of boxes that suppression has to look at; the attack on latency raises it.
    """

    total: LossPerImage
    margin: LossPerImage
    components: Mapping[str, LossPerImage]
    badness: LossPerImage
    smooth: LossPerImage | None = None
    labels: Tensor | None = None
    overload: LossPerImage | None = None


class Attack(Protocol):
    """A search, around each image, for one that the model handles worse. The model is left as it was."""

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return x_adv [N, ...] in [0, 1] for images x [N, ...] in [0, 1].

        Args:
            model: maps images to the outputs that the losses take.
            x: clean images.
            losses: what to raise.
            generator: source of everything random, on x's device.
        """
        ...


@runtime_checkable
class AttackInParts(Attack, Protocol):
    """An attack that is several, one after another."""

    def after_each_part(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Mapping[str, Tensor]:
        """Return, by part in order, x_adv [N, ...] after it; after the last it is the attack's own result."""
        ...
