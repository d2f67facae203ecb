"""The Square attack (Andriushchenko et al. 2020): random search in L∞ that asks a classifier for logits alone.

It starts at vertical stripes of ±eps. Each query then moves one random square of an image, in each channel all the way
to one side of the ball, and the move stays if the margin has risen. No gradient is needed, so none can be masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prunekit.attacks.classification import margin_per_image
from prunekit.attacks.gradient import loss_at
from prunekit.attacks.steps import LinfStep, per_image

FIRST_SHARE = 0.8  # of an image's pixels, in the first squares
# Of 10 000 queries; other numbers in proportion. The squares' area is halved at each.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)


def square(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    queries: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search the L∞ ball around x; batch normalization must be in eval mode.

    Args:
        model: A classifier: maps images to logits [N, C].
        x: Clean images [N, channels, height, width] in [0, 1].
        labels: Their classes, int64 [N].
        eps: Radius of the ball.
        queries: Squares that are tried per image; an image that is misclassified gets no more.
        generator: Source of everything random, on x's device.

    Returns:
        Per image the point of the greatest margin, [N, channels, height, width].
    """
    ball, (count, channels, _, width) = LinfStep(eps, 0.0), x.shape
    best = ball.project(x + eps * _signs((count, channels, 1, width), x, generator), x)
    margin, is_right = _judge(model, best, labels)
    for query in range(queries):
        rows = is_right.nonzero()[:, 0]
        if not len(rows):
            break
        clean, current = x[rows], best[rows]
        side = square_side(query, queries, *x.shape[-2:])
        x_new = ball.project(current + 2 * eps * _squares(clean, side, generator), clean)
        new_margin, still_right = _judge(model, x_new, labels[rows])
        is_better = (new_margin > margin[rows]) | ~still_right
        best[rows] = torch.where(per_image(is_better, clean), x_new, current)
        margin[rows] = torch.where(is_better, new_margin, margin[rows])
        is_right[rows] = still_right
    return best


def square_side(query: int, queries: int, height: int, width: int) -> int:
    """Return the side of a query's square, in pixels as the image's height and width."""
    halvings = sum(query * 10_000 // queries > start for start in HALVINGS)
    share = FIRST_SHARE / 2**halvings
    return max(min(round(math.sqrt(share * height * width)), height, width), 1)


def _squares(x: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Return a square of -1 or 1 for each channel at a random place of each image, 0 elsewhere, [N, C, H, W]."""
    count, channels, height, width = x.shape
    rows = _covered(count, height, side, x, generator).view(count, 1, height, 1)
    columns = _covered(count, width, side, x, generator).view(count, 1, 1, width)
    return _signs((count, channels, 1, 1), x, generator) * rows * columns


def _covered(count: int, length: int, side: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return which of `length` pixels lie in an interval of `side` at a random place, bool [count, length]."""
    first = torch.randint(length - side + 1, (count, 1), generator=generator, device=x.device)
    pixels = torch.arange(length, device=x.device)
    return (pixels >= first) & (pixels < first + side)


def _signs(shape: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randint(2, shape, generator=generator, device=x.device).to(x.dtype) * 2 - 1


def _judge(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return margins [N] and which images are classified correctly, bool [N]."""
    logits = loss_at(model, x, lambda logits: logits)
    return margin_per_image(labels)(logits), logits.argmax(dim=1) == labels
