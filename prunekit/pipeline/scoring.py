"""Scores of every weight, from the weights alone or from images that are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.attacks import PgdConfig, pgd
from prunekit.config import BatchConfig
from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.prune import score_model, score_named, taylor_scores
from prunekit.prune.deeplift import RULES, Comparison, data_mean, deeplift_scores
from prunekit.task import Task
from prunekit.training.data import TrainingData

REFERENCES = ("zeros", "mean", "clean")
Batches = Iterator[tuple[Tensor, Any]]


class ScoreConfig(BatchConfig):
    """How scores that look at images do it: at the first of a seeded shuffle.

    DeepLIFT's reference is zeros, the data's mean, or clean: the clean image of an attacked one.
    """

    score_images: int = Field(256, ge=1, description="number of training images for taylor and deeplift scores")
    reference: str = Field("zeros", description=f"reference input for DeepLIFT: {', '.join(REFERENCES)}")
    rule: str = Field("rescale", description=f"DeepLIFT rule for activations: {', '.join(RULES)}")


def make_scores(
    model: nn.Module,
    task: Task,
    name: str,
    config: ScoreConfig,
    data: TrainingData | None,
    attack: PgdConfig | None,
    progress: Progress,
) -> dict[str, Tensor]:
    """Score every weight of a model's convolutions.

    Args:
        model: The model, in eval mode.
        task: What it is made for.
        name: A key of `SCORES`.
        config: How scores that look at images do it; the seed of random ones.
        data: The images, for scores that look at some.
        attack: What attacks them, for DeepLIFT with the reference "clean".
        progress: Shown batch by batch.

    Returns:
        Layer name → scores of its weight's shape, [K, C, R, S].

    Raises:
        CompletenessError: When DeepLIFT's contributions do not add up.
        InputError: For scores or a reference that are not known; the sentence lists those that are.
    """
    score = score_named(name)
    if not score.needs_batches:
        return score_model(model, name, config.seed)
    if name not in IMAGE_SCORES and score.of_images is None:
        raise InputError(f"Expected scores from images to be one of {', '.join(IMAGE_SCORES)}, got {name!r}.")
    if config.reference not in REFERENCES:
        raise InputError(f"Expected the reference to be one of {', '.join(REFERENCES)}, got {config.reference!r}.")
    assert data is not None  # the stage has made sure
    batches = _batches(name, config, data, progress)
    if score.of_images is not None:
        return score.of_images(model, _with_losses(task, batches))
    return IMAGE_SCORES[name](model, task, batches, config, attack)


def _with_losses(task: Task, batches: Batches) -> Iterator[tuple[Tensor, Callable[[Any], Tensor]]]:
    return ((x, task.attack_losses(targets).total) for x, targets in batches)


def _taylor(
    model: nn.Module, task: Task, batches: Batches, config: ScoreConfig, attack: PgdConfig | None
) -> dict[str, Tensor]:
    return taylor_scores(model, _with_losses(task, batches))


def _deeplift(
    model: nn.Module, task: Task, batches: Batches, config: ScoreConfig, attack: PgdConfig | None
) -> dict[str, Tensor]:
    comparisons = _comparisons(model, task, batches, config, attack)
    return deeplift_scores(model, comparisons, rule=config.rule)  # type: ignore[arg-type]


ImageScore = Callable[[nn.Module, Task, Batches, ScoreConfig, PgdConfig | None], dict[str, Tensor]]
#: Scores that look at images → what makes them. One that neither is here nor makes itself (`of_images`) is an error.
IMAGE_SCORES: dict[str, ImageScore] = {
    "taylor": _taylor,
    "deeplift": _deeplift,
}


def _batches(name: str, config: ScoreConfig, data: TrainingData, progress: Progress) -> Batches:
    """Yield images, float [N, 3, S, S] in [0, 1], with their targets."""
    generator = torch.Generator().manual_seed(config.seed)
    order = torch.randperm(len(data), generator=generator)[: config.score_images].tolist()
    total = -(-len(order) // config.batch_size)
    loaded = data.batches(order, config.batch_size, workers=0)
    for x, targets in progress.track(loaded, f"{name} scores", total):
        yield (x.float() / 255 if x.dtype == torch.uint8 else x), targets


def _comparisons(
    model: nn.Module, task: Task, batches: Batches, config: ScoreConfig, attack: PgdConfig | None
) -> Iterator[Comparison]:
    mean: Tensor | None = None
    if config.reference == "mean":
        listed = list(batches)
        mean = data_mean(x for x, _ in listed)
        batches = iter(listed)
    for x, targets in batches:
        target = partial(task.attribution, targets=targets)
        if config.reference == "clean":
            loss = task.attack_losses(targets).total
            yield Comparison(_attacked(model, x, loss, attack, config.seed), x, target)
        else:
            yield Comparison(x, torch.zeros_like(x[:1]) if mean is None else mean, target)


def _attacked(
    model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor], attack: PgdConfig | None, seed: int
) -> Tensor:
    assert attack is not None  # images to learn from come with one
    return pgd(model, x, loss, attack, torch.Generator().manual_seed(seed))
