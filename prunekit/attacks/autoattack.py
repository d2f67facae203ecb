"""AutoAttack, standard version (Croce and Hein 2020): four attacks that fail for different reasons, one after another.

    apgd_ce   APGD on the cross-entropy
    apgd_t    APGD on the targeted difference of logits ratio, for each of an image's likeliest wrong classes
    fab_t     FAB towards each of these
    square    Square, which sees no gradient

Each gets only the images that are still classified correctly. Those that none fools come back as the point of the
greatest margin that was seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.attacks.apgd import apgd
from prunekit.attacks.batch_norm import frozen_batch_norm
from prunekit.attacks.classification import (
    cross_entropy_per_image,
    margin_per_image,
    targeted_dlr_per_image,
)
from prunekit.attacks.fab import fab
from prunekit.attacks.gradient import loss_at
from prunekit.attacks.losses import AttackLosses
from prunekit.attacks.square import square
from prunekit.attacks.steps import check_ball, check_pixels, per_image
from prunekit.errors import InputError

PARTS = ("apgd_ce", "apgd_t", "fab_t", "square")


@dataclass(frozen=True)
class AutoAttackConfig:
    """The knobs of AutoAttack in L∞, for classifiers; called like any `Attack`. Defaults are the published standard.

    Attributes:
        eps: radius of the ball around the clean image, for pixels in [0, 1].
        steps: gradient steps of APGD and FAB, for each target.
        targets: likeliest wrong classes that the targeted attacks try; all of them where there are fewer.
        queries: of Square.
        parts: the attacks, in order.
    """

    eps: float
    steps: int = 100
    targets: int = 9
    queries: int = 5000
    parts: tuple[str, ...] = PARTS

    def __post_init__(self) -> None:
        check_ball("linf", self.eps)
        if min(self.steps, self.targets, self.queries) < 1:
            raise InputError(
                f"Expected steps, targets and queries of at least 1, got {self.steps}, {self.targets}, {self.queries}"
            )
        if not self.parts or not set(self.parts) <= set(PARTS):
            raise InputError(f"Expected parts among {', '.join(PARTS)}, got {', '.join(self.parts) or 'none'}")

    def __call__(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the images after the last part."""
        return self.after_each_part(model, x, losses, generator)[self.parts[-1]]

    def after_each_part(
        self, model: nn.Module, x: Tensor, losses: AttackLosses, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return, by part, the images [N, ...] after it; each changes those alone that are still classified correctly.

        Raises:
            InputError: The losses are not a classifier's.
        """
        check_pixels(x)
        if losses.labels is None:
            raise InputError("Expected a classifier, whose outputs are logits, for AutoAttack, got another model")
        with frozen_batch_norm(model):
            images = Remaining(model, x.detach(), losses.labels)
            return {part: self._after(part, model, images, generator) for part in self.parts}

    def _after(self, part: str, model: nn.Module, images: Remaining, generator: torch.Generator | None) -> Tensor:
        eps, steps = self.eps, self.steps

        def targeted_apgd(x: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
            return apgd(model, x, labels, targeted_dlr_per_image(labels, targets), eps, steps, generator=generator)

        if part == "apgd_ce":
            images.attack(lambda x, y: apgd(model, x, y, cross_entropy_per_image(y), eps, steps, generator=generator))
        elif part == "square":
            images.attack(lambda x, y: square(model, x, y, eps, self.queries, generator))
        elif part == "apgd_t":
            images.attack_towards(targeted_apgd, self.targets)
        else:
            images.attack_towards(lambda x, y, targets: fab(model, x, y, targets, eps, steps), self.targets)
        return images.x_adv.clone()

    def with_eps(self, eps: float) -> AutoAttackConfig:
        """Return the same attack in a ball of another radius."""
        return dataclasses.replace(self, eps=eps)


class Remaining:
    """Images [N, ...], which of them no attack has fooled yet, bool [N], and the worst that was found of each."""

    def __init__(self, model: nn.Module, x: Tensor, labels: Tensor) -> None:
        self._model, self._x, self._labels = model, x, labels
        logits = loss_at(model, x, lambda logits: logits)
        self.x_adv = x.clone()
        self._margin = margin_per_image(labels)(logits)
        self.is_right = logits.argmax(dim=1) == labels
        # Likeliest first; the label itself comes last.
        self._wrong_classes = logits.scatter(1, labels[:, None], -torch.inf).argsort(dim=1, descending=True)[:, :-1]

    def attack(self, search: Callable[..., Tensor], *classes: Tensor) -> None:
        """Hand those that are still right, with their labels and other classes, to a search, and keep what is worse."""
        rows = self.is_right.nonzero()[:, 0]
        if len(rows):
            self._offer(rows, search(*(values[rows] for values in (self._x, self._labels, *classes))))

    def attack_towards(self, search: Callable[[Tensor, Tensor, Tensor], Tensor], targets: int) -> None:
        """Do the same with a target class for each image, [N], once for each target."""
        for classes in self._wrong_classes.unbind(dim=1)[:targets]:
            self.attack(search, classes)

    def _offer(self, rows: Tensor, x_adv: Tensor) -> None:
        logits, labels = loss_at(self._model, x_adv, lambda logits: logits), self._labels[rows]
        margin, is_right = margin_per_image(labels)(logits), logits.argmax(dim=1) == labels
        is_worse = (margin > self._margin[rows]) | ~is_right
        self.x_adv[rows] = torch.where(per_image(is_worse, x_adv), x_adv, self.x_adv[rows])
        self._margin[rows] = torch.where(is_worse, margin, self._margin[rows])
        self.is_right[rows] = is_right
