"""Losses per image for classifiers: outputs are logits [N, C], labels int64 [N]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from prunekit.attacks.losses import AttackLosses
from prunekit.errors import InputError

LogitLoss = Callable[[Tensor], Tensor]


def cross_entropy_per_image(labels: Tensor) -> LogitLoss:
    """Return the map from logits [N, C] to cross-entropies [N]."""
    return lambda logits: cross_entropy(logits, labels, reduction="none")


def margin_per_image(labels: Tensor) -> LogitLoss:
    """Return the map from logits [N, C] to margins [N]: the best wrong logit less the right one.

    It is positive exactly for images that are misclassified, and unlike the cross-entropy its gradient does not vanish
    where the model is sure.
    """

    def margin(logits: Tensor) -> Tensor:
        if logits.shape[1] < 2:
            raise InputError("Expected logits of at least 2 classes for a margin, got 1: no answer can be wrong")
        right = logits.gather(1, labels[:, None])
        wrong = logits.scatter(1, labels[:, None], float("-inf"))
        return wrong.amax(dim=1) - right[:, 0]

    return margin


def targeted_margin_per_image(labels: Tensor, targets: Tensor) -> LogitLoss:
    """Return the map from logits [N, C] to the target class's less the right one's, [N]."""
    return lambda logits: (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None]))[:, 0]


def targeted_dlr_per_image(labels: Tensor, targets: Tensor) -> LogitLoss:
    """Return the map from logits [N, C] to targeted differences of logits ratios [N] (Croce and Hein 2020, eq. 7).

    (z_target - z_label) / (z_1 - (z_3 + z_4) / 2), with logits in descending order below the line, does not change when
    all logits are shifted or scaled. With fewer than four classes it is the difference alone.
    """
    margin = targeted_margin_per_image(labels, targets)

    def ratio(logits: Tensor) -> Tensor:
        if logits.shape[1] < 4:
            return margin(logits)
        first, _, third, fourth = logits.topk(4, dim=1).values.unbind(dim=1)
        return margin(logits) / (first - (third + fourth) / 2 + 1e-12)

    return ratio


def classification_losses(labels: Tensor) -> AttackLosses:
    """Return what attacks on a classifier raise; the worst result is the one with the greatest margin."""
    total, margin = cross_entropy_per_image(labels), margin_per_image(labels)
    components = {"cross_entropy": total, "margin": margin}
    return AttackLosses(total, margin, components, badness=margin, labels=labels)


def softmax_divergence(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return KL(softmax(clean) ‖ softmax(attacked)) of logits [N, C], as [N]."""
    divergence = kl_div(log_softmax(attacked, dim=1), log_softmax(clean, dim=1), reduction="none", log_target=True)
    return divergence.sum(dim=1)
