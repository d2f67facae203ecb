"""Anchors for a data set: the sizes of its boxes in k clusters (Redmon and Farhadi 2017, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.errors import InputError

_ROUNDS = 300  # of assigning and averaging; hardly ever more than fifty are needed


def fit_anchors(sizes: Tensor, counts: Sequence[int], seed: int = 0) -> list[list[list[float]]]:
    """Cluster boxes by overlap and share the clusters among heads, the largest to the first.

    k-means with the distance 1 - IoU of boxes that share a corner, started by k-means++ with the same distance; a
    cluster is the mean of its members' widths and heights.

    Args:
        sizes: Widths and heights in pixels of the network's input, [N, 2].
        counts: Anchors of each head, coarsest head first.
        seed: Of the start.

    Returns:
        Each head's [width, height] pairs in pixels, smallest first.

    Raises:
        InputError: There are fewer different sizes than anchors.
    """
    number = sum(counts)
    different = len(set(map(tuple, sizes.tolist())))
    if different < number:
        raise InputError(f"--fit-anchors: expected boxes of at least {number} different sizes, got {different}.")
    centers = _start(sizes, number, torch.Generator().manual_seed(seed))
    for _ in range(_ROUNDS):
        members = iou_of_sizes(sizes, centers).argmax(1)
        moved = torch.stack([_mean(sizes[members == i], centers[i]) for i in range(number)])
        if torch.equal(moved, centers):
            break
        centers = moved
    ordered = centers[centers.prod(1).argsort(descending=True)]
    heads = torch.split(ordered, list(counts))
    return [[[round(w, 1), round(h, 1)] for w, h in head.flip(0).tolist()] for head in heads]


def iou_of_sizes(sizes: Tensor, others: Tensor) -> Tensor:
    """Return the overlap of boxes [N, 2] with others [M, 2] at the same place, [N, M]."""
    shared = torch.minimum(sizes[:, None], others).prod(2)
    return shared / (sizes.prod(1)[:, None] + others.prod(1) - shared)


def _start(sizes: Tensor, number: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(sizes), (1,), generator=generator))]
    while len(chosen) < number:
        distance = (1 - iou_of_sizes(sizes, sizes[chosen]).amax(1)).clamp(min=0).square()
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return sizes[chosen]


def _mean(members: Tensor, center: Tensor) -> Tensor:
    return members.mean(0) if len(members) else center
