"""Blocks of weights, found weight by weight: what `prunekit.prune.blocks` is compared with."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

BLOCK_STRUCTURES = ("block1x4", "block4x1", "block16x1")


def block_numbers(shape: tuple[int, ...], structure: str, groups: int = 1) -> Tensor:
    """Return the number of each weight's block, int64 of the weight's shape; blocks are counted in memory order."""
    size = re.fullmatch(r"block(\d+)x(\d+)", structure)
    num_filters, num_channels = (int(size[1]), int(size[2])) if size else (1, 1)
    keys = []
    for k, c, r, s in torch.ones(shape).nonzero().tolist():
        group, filter_ = divmod(k, shape[0] // groups)
        tap = (0, 0) if structure == "kernel2d" else (r, s)
        keys.append((group, filter_ // num_filters, c // num_channels, *tap))
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return torch.tensor([numbers[key] for key in keys]).view(shape)


def means_of(x: Tensor, numbers: Tensor) -> Tensor:
    """Return the mean of each block, [blocks]; differentiable."""
    sizes = numbers.flatten().bincount()
    return x.new_zeros(len(sizes)).index_add(0, numbers.flatten(), x.flatten()) / sizes


def goes_as_a_whole(mask: Tensor, structure: str, groups: int = 1) -> bool:
    """Return whether each block is kept or dropped, never a part of one."""
    return bool(means_of(mask.double(), block_numbers(tuple(mask.shape), structure, groups)).frac().eq(0).all())


def slow_masks(
    scores: Mapping[str, Tensor], structure: str, ratio: float, scope: str, groups: Mapping[str, int]
) -> dict[str, Tensor]:
    """Drop the lowest int(n · ratio / 100) of n blocks, by a stable sort of their means."""
    numbers = {layer: block_numbers(tuple(score.shape), structure, groups[layer]) for layer, score in scores.items()}
    blocks = [
        (mean, layer, number)
        for layer, score in scores.items()
        for number, mean in enumerate(means_of(score.detach().abs(), numbers[layer]).tolist())
    ]
    masks = {layer: torch.ones_like(score, dtype=torch.bool) for layer, score in scores.items()}
    for layers in [[*scores]] if scope == "global" else [[layer] for layer in scores]:
        competing = sorted((block for block in blocks if block[1] in layers), key=lambda block: block[0])
        for _, layer, number in competing[: int(len(competing) * ratio / 100)]:
            masks[layer][numbers[layer] == number] = False
    return masks
