"""Scores and contributions of convolution weights, over any number of batches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import effective
from prunekit.prune.deeplift.attribution import Comparison, Completeness, RuleName, attribute
from prunekit.prune.layers import prunable_layers


@dataclass(frozen=True)
class Contributions:
    """Signed contributions: layer name → [N, *the weight's shape], and the sums that they must give."""

    layers: dict[str, Tensor]
    completeness: Completeness


def deeplift_scores(
    model: nn.Module, comparisons: Iterable[Comparison], rule: RuleName = "rescale", tolerance: float | None = None
) -> dict[str, Tensor]:
    """Score every convolution weight by its mean absolute contribution over all images.

    The model may be in any mode: it runs in eval mode and is left as it was.

    Args:
        model: any module; its `nn.Conv2d` layers are scored.
        comparisons: the batches.
        rule: "rescale", or "reveal_cancel", which keeps rises and falls apart and takes two to five times as long.
        tolerance: largest error of completeness relative to `Completeness.size`; 1024 roundings of the
            images' dtype if None (1.2e-4 for float32).

    Returns:
        Layer name → scores >= 0 of the layer's weight's shape.

    Raises:
        CompletenessError: contributions do not add up to the target's change in some image.
        InputError: no images, or a model or target with a step that DeepLIFT has no rule for.
    """
    totals = {name: torch.zeros_like(effective(conv).detach()) for name, conv in prunable_layers(model).items()}

    def add(layer: str, image: int, contributions: Tensor) -> None:
        totals[layer] += contributions.abs()

    num_images = 0
    for comparison in comparisons:
        attribute(model, comparison, rule, tolerance, add)
        num_images += len(comparison.x)
    if num_images == 0:
        raise InputError("Expected at least one image to compute DeepLIFT scores from, got none.")
    return {name: total / num_images for name, total in totals.items()}


def deeplift_contributions(
    model: nn.Module, comparison: Comparison, rule: RuleName = "rescale", tolerance: float | None = None
) -> Contributions:
    """Return the signed contributions per image: N times the model's size in memory.

    Args:
        model: see `deeplift_scores`.
        comparison: the images.
        rule: see `deeplift_scores`.
        tolerance: see `deeplift_scores`.
    """
    layers = {
        name: weight.new_zeros(len(comparison.x), *weight.shape, requires_grad=False)
        for name, weight in ((name, effective(conv)) for name, conv in prunable_layers(model).items())
    }

    def keep(layer: str, image: int, contributions: Tensor) -> None:
        layers[layer][image] = contributions

    completeness = attribute(model, comparison, rule, tolerance, keep)
    return Contributions(layers, completeness)


def data_mean(batches: Iterable[Tensor]) -> Tensor:
    """Average images [N, C, H, W] over all batches: a reference [1, C, H, W] shared by all images."""
    total, count, dtype = None, 0, torch.float32
    for x in batches:
        batch_sum = x.sum(dim=0, keepdim=True, dtype=torch.float64)
        total = batch_sum if total is None else total + batch_sum
        count, dtype = count + len(x), x.dtype
    if total is None or count == 0:
        raise InputError("Expected at least one image to average, got none.")
    return (total / count).to(dtype)
