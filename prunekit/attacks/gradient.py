"""The one question that every white-box attack asks a model: which way does the loss rise?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prunekit.attacks.losses import LossPerImage


class GradientError(ArithmeticError):
    """An attack met a gradient that says nothing, so that its result would mean nothing."""


class Slope(NamedTuple):
    """A model's outputs at some images, their losses [N], and the gradient of the summed losses [N, ...]."""

    outputs: Any
    loss: Tensor
    grad: Tensor


def slope_at(model: Callable[[Tensor], Any], x: Tensor, loss_per_image: LossPerImage) -> Slope:
    """Differentiate each image's loss with respect to its pixels; parameters' gradients stay untouched.

    Raises:
        GradientError: the loss does not depend on the pixels, or its gradient is not finite.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        outputs = model(x.clone())  # a forward pass may write into its input
        loss = loss_per_image(outputs)
        grad = torch.autograd.grad(loss.sum(), x, allow_unused=True)[0] if loss.requires_grad else None
    if grad is None:
        raise GradientError(
            "the loss does not depend on the image: the model or the loss detaches it, so gradients cannot attack it"
        )
    if not grad.isfinite().all():
        raise GradientError("the attack met a gradient that is not finite: its result would mean nothing")
    return Slope(outputs, loss.detach(), grad)


@torch.no_grad()
def loss_at(model: nn.Module, x: Tensor, loss_per_image: LossPerImage) -> Tensor:
    """Return each image's loss, [N]."""
    return loss_per_image(model(x.clone())).clone()
