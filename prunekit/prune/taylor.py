"""First-order Taylor scores: how much the loss would change, to first order, if a weight were zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import held_weights
from prunekit.nn.held_still import held_still
from prunekit.nn.random_state import RandomStream
from prunekit.prune.layers import prunable_layers

Batch = tuple[Tensor, Callable[[Any], Tensor]]


def taylor_scores(model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return |w · dL/dw| of every prunable weight, averaged over the batches.

    The model runs in eval mode and is left as it was: modes, `requires_grad`, gradients and buffers; torch's random
    state is, too. Of a weight that is computed (torch's pruning, weight_norm, any parametrization) the effective one
    is scored: the one that the convolution uses.

    Args:
        model: Any module; its `nn.Conv2d` layers are scored.
        batches: Pairs of the model's input and a callable that turns the model's outputs into the loss, a
            scalar or one value per image (of which the mean counts).

    Returns:
        Layer name → scores of the layer's weight's shape; zeros for a layer that the loss does not depend on.

    Raises:
        InputError: When there is no batch, the loss is not finite, or a weight is neither stored nor computed by
            torch's own means.
    """
    stream, num_batches = RandomStream(), 0
    with held_still(model), held_weights(prunable_layers(model)) as weights:
        scores = {layer: torch.zeros_like(weight, requires_grad=False) for layer, weight in weights.items()}
        for weight in weights.values():
            weight.requires_grad_(True)
        for x, loss in batches:
            num_batches += 1
            with stream():
                gradients = _gradients(model, weights, x, loss)
            for layer, gradient in gradients.items():
                scores[layer] += (weights[layer].detach() * gradient).abs()
    if num_batches == 0:
        raise InputError("Taylor scores need at least one batch of images, got none.")
    return {layer: score / num_batches for layer, score in scores.items()}


def _gradients(
    model: nn.Module, weights: Mapping[str, Tensor], x: Tensor, loss: Callable[[Any], Tensor]
) -> dict[str, Tensor]:
    with torch.enable_grad():
        value = loss(model(x.clone())).mean()  # a forward pass may write into its input
        if not value.isfinite():
            raise InputError(f"Taylor scores need a finite loss, got {value.item()}.")
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    return {layer: g for layer, g in zip(weights, gradients, strict=True) if g is not None}
