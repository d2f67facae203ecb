"""One signed score per weight: the larger its magnitude, the longer the weight stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.nn.computed_weights import effective
from prunekit.prune.layers import prunable_layers
from prunekit.prune.tensor_files import check_tensors, load_tensors, save_tensors
from prunekit.registry import look_up, register


def scaled_scores(weight: Tensor) -> Tensor:
    """HYDRA's scaled initialization: s0 = sqrt(6 / fan_in) · W / max|W|.

    The factor is one positive number a layer, so |s0| orders the layer's weights as |W| does
    (rounding can merge two neighbors, never swap them). It matters to the optimization of scores,
    which starts from s0: every layer's scores then have the range of a Kaiming-uniform initialization.

    Args:
        weight: A convolution's filter, [K, C, R, S].

    Returns:
        The scores, of the weight's shape and dtype; zeros for a layer of zeros.

    Reference: Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020.
    """
    return _scale(weight.detach())


def _scale(score: Tensor) -> Tensor:
    fan_in = score[0].numel()
    largest = score.abs().max()
    return score * (math.sqrt(6 / fan_in) / largest) if largest > 0 else score.clone()


def magnitude_scores(weight: Tensor) -> Tensor:
    """The weight itself, [K, C, R, S]: plain magnitude pruning, since masks rank by |score|."""
    return weight.detach().clone()


def random_scores(weight: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in [0, 1), [K, C, R, S], drawn on the CPU: the baseline that any score must beat."""
    return torch.rand(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)


#: Images, and the map from outputs for them to losses [N].
LossBatches = Iterable[tuple[Tensor, Callable[[Any], Tensor]]]


@dataclass(frozen=True)
class Score:
    """One way to rank weights.

    Attributes:
        summary: What it is, in a few words.
        of_weight: The function of one layer's weight, or None where images and a loss are needed as well.
        of_images: The function of a model in eval mode and batches, as `taylor_scores` is one: each batch is images
            [N, 3, H, W] and the map from outputs to losses [N].
    """

    summary: str
    of_weight: Callable[[Tensor, Generator], Tensor] | None = None
    of_images: Callable[[nn.Module, LossBatches], dict[str, Tensor]] | None = None

    @property
    def needs_batches(self) -> bool:
        """Whether the score looks at images."""
        return self.of_weight is None


SCORES: dict[str, Score] = {
    "scaled": Score("the weight over its layer's largest, in HYDRA's scale", lambda w, _: scaled_scores(w)),
    "magnitude": Score("the weight", lambda w, _: magnitude_scores(w)),
    "random": Score("a random number", random_scores),
    "taylor": Score("weight times gradient of the loss: prunekit.prune.taylor_scores"),
    "deeplift": Score("contribution to the target against a reference: prunekit.prune.deeplift_scores"),
}


def register_score(name: str, score: Score) -> None:
    """Add a score of one's own; InputError when the name is taken."""
    register(SCORES, "scores", name, score)


def score_named(name: str) -> Score:
    """Return the score of this name; InputError, which lists the names, if there is none."""
    return look_up(SCORES, "scores", name)


def score_model(model: nn.Module, name: str, seed: int = 0) -> dict[str, Tensor]:
    """Score every prunable weight of `model` by a score that needs nothing but the weights.

    Args:
        model: Any module; its `nn.Conv2d` layers are scored, by their effective weights where those are computed.
        name: A key of `SCORES`.
        seed: What random scores start from.

    Returns:
        Layer name → scores of the layer's weight's shape.

    Raises:
        InputError: For a name that is no key of `SCORES`, or a score that needs batches.
    """
    score = score_named(name)
    of_weight = score.of_weight
    if of_weight is None:
        raise InputError(f"Scores {name!r} need batches of images, not only the weights ({score.summary}).")
    generator = Generator().manual_seed(seed)
    return {layer: of_weight(effective(conv), generator) for layer, conv in prunable_layers(model).items()}


def initial_scores(model: nn.Module, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring scores from elsewhere to HYDRA's scale: s0 = sqrt(6 / fan_in) · |score| / max|score| · sign(W).

    Within a layer they rank as before; an optimization of scores can start from them.

    Args:
        model: The scored model.
        scores: Layer name → scores of the layer's weight's shape, from DeepLIFT, say.
    """
    check_scores(model, scores)
    weights = {layer: effective(conv).detach() for layer, conv in prunable_layers(model).items()}
    return {layer: _scale(scores[layer].detach().abs().to(w)) * w.sign() for layer, w in weights.items()}


def check_scores(model: nn.Module, scores: Mapping[str, Tensor], source: str = "scores") -> None:
    """Raise InputError unless `scores` has one float tensor of the right shape for each prunable layer."""
    check_tensors(model, scores, source, "float tensor", lambda tensor: tensor.is_floating_point())


def save_scores(path: str | Path, scores: Mapping[str, Tensor]) -> None:
    """Write scores as a safetensors file, atomically: one float tensor a layer."""
    save_tensors(path, scores)


def load_scores(path: str | Path, model: nn.Module) -> dict[str, Tensor]:
    """Read scores that `save_scores` wrote and check them against `model`; InputError if they do not fit."""
    scores = load_tensors(path, "scores")
    check_scores(model, scores, source=str(path))
    return scores
