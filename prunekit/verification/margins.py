"""Lower bounds on margins: where an image's are all positive, no image of its ball is misclassified."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.errors import InputError
from prunekit.verification.bounded import Bounded, bounded
from prunekit.verification.nodes import lower_bound

_ROWS = 64  # classes that are bounded at a time; each takes as much memory as the features of a batch


def margin_bounds(logits: Bounded, labels: Tensor, relax: bool) -> Tensor:
    """Return lower bounds of logit[label] - logit[j], [N, classes]; 0 at the label itself.

    Args:
        logits: What the model returned for images with balls around them, [N, classes].
        labels: The right classes, int64 [N].
        relax: By CROWN's backward bounds with intervals inside the network (CROWN-IBP, Zhang et al. 2020); else by
            intervals, with the last linear layer and the margin in one (Gowal et al. 2018).
    """
    num_classes = logits.shape[1]
    right = functional.one_hot(labels, num_classes).to(logits.lower)  # [N, C]
    coefficients = right - torch.eye(num_classes).to(logits.lower)[:, None]  # [C, N, C]
    return torch.cat([lower_bound(logits.node, rows, relax) for rows in torch.split(coefficients, _ROWS)]).T


@torch.no_grad()
def verified_margins(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return each image's least margin over its ball, bounded from below, [N].

    The better of both bounds for each wrong class. An image with a positive one is classified as its label says
    wherever in the ball it is, in exact arithmetic; take model and images in float64 to be close to that.

    Args:
        model: A classifier of images in [0, 1], in eval mode.
        x: Images [N, 3, H, W].
        labels: The right classes, int64 [N].
        eps: The ball's radius in L∞.

    Raises:
        InputError: The model calls something that cannot be bounded, or does not return logits.
    """
    logits = model(bounded(x, eps))
    if not isinstance(logits, Bounded) or logits.dim() != 2:
        raise InputError(f"Expected a model that returns logits [N, classes], got {type(logits).__name__}.")
    bounds = torch.maximum(margin_bounds(logits, labels, relax=False), margin_bounds(logits, labels, relax=True))
    return bounds.scatter(1, labels[:, None], float("inf")).amin(dim=1)
