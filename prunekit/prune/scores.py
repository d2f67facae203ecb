"""One signed score per weight: the larger its magnitude, the longer the weight stays.

Scores compare weights inside one layer only; masks are cut layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.prune.masks import prunable_layers


def scaled_scores(weight: Tensor) -> Tensor:
    """HYDRA's scaled initialisation: s0 = sqrt(6 / fan_in) · W / max|W|.

    The factor is one positive number a layer, so |s0| orders the layer's weights as |W| does
    (rounding can merge two neighbours, never swap them). It matters to the optimisation of scores,
    which starts from s0: every layer's scores then have the range of a Kaiming-uniform initialisation.

    Args:
        weight: A convolution's filter, [K, C, R, S].

    Returns:
        The scores, of the weight's shape and dtype; zeros for a layer of zeros.

    Reference: Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020.
    """
    weight = weight.detach()
    fan_in = weight[0].numel()
    largest = weight.abs().max()
    if largest == 0:
        return weight.clone()
    return weight * (math.sqrt(6 / fan_in) / largest)


def magnitude_scores(weight: Tensor) -> Tensor:
    """The weight itself, [K, C, R, S]: plain magnitude pruning, since masks rank by |score|."""
    return weight.detach().clone()


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": scaled_scores,
    "magnitude": magnitude_scores,
}


def score_model(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Score every prunable weight of `model`.

    Args:
        model: Any module; its `nn.Conv2d` layers are scored.
        name: A key of `SCORES`.

    Returns:
        Layer name → scores of the layer's weight's shape.

    Raises:
        InputError: For a name that is no key of `SCORES`.
    """
    if name not in SCORES:
        raise InputError(f"Expected scores to be one of {', '.join(SCORES)}, got {name!r}.")
    return {layer: SCORES[name](conv.weight) for layer, conv in prunable_layers(model).items()}
