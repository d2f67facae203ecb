"""Scores of every weight, from the weights alone or from images that are learnt from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import PgdConfig, pgd
from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.prune import score_model, score_named, taylor_scores
from prunekit.prune.deeplift import Comparison, data_mean, deeplift_scores
from prunekit.task import Task
from prunekit.training.data import TrainingData

REFERENCES = ("zeros", "mean", "clean")
Batches = Iterator[tuple[Tensor, Any]]


@dataclass(frozen=True)
class ScoreChoices:
    """How scores that look at images do it.

    Attributes:
        name: A key of `SCORES`.
        images: How many images, the first of a seeded shuffle.
        batch_size: Images at once.
        reference: DeepLIFT's: "zeros", the data's "mean", or "clean", the clean image of an attacked one.
        rule: DeepLIFT's: "rescale" or "reveal_cancel".
        seed: Of the choice of images and of random scores.
    """

    name: str
    images: int = 256
    batch_size: int = 8
    reference: str = "zeros"
    rule: str = "rescale"
    seed: int = 0


def make_scores(
    model: nn.Module,
    task: Task,
    choices: ScoreChoices,
    data: TrainingData | None,
    attack: PgdConfig | None,
    progress: Progress,
) -> dict[str, Tensor]:
    """Score every weight of a model's convolutions.

    Args:
        model: The model, in eval mode.
        task: What it is made for.
        choices: Which scores, and how.
        data: The images, for scores that look at some.
        attack: What attacks them, for DeepLIFT with the reference "clean".
        progress: Shown batch by batch.

    Returns:
        Layer name → scores of its weight's shape, [K, C, R, S].

    Raises:
        CompletenessError: When DeepLIFT's contributions do not add up.
        InputError: For scores or a reference that are not known; the sentence lists those that are.
    """
    score = score_named(choices.name)
    if not score.needs_batches:
        return score_model(model, choices.name, choices.seed)
    if choices.name not in IMAGE_SCORES and score.of_images is None:
        raise InputError(f"Expected scores from images to be one of {', '.join(IMAGE_SCORES)}, got {choices.name!r}.")
    if choices.reference not in REFERENCES:
        raise InputError(f"Expected the reference to be one of {', '.join(REFERENCES)}, got {choices.reference!r}.")
    assert data is not None  # the stage has made sure
    batches = _batches(choices, data, progress)
    if score.of_images is not None:
        return score.of_images(model, _with_losses(task, batches))
    return IMAGE_SCORES[choices.name](model, task, batches, choices, attack)


def _with_losses(task: Task, batches: Batches) -> Iterator[tuple[Tensor, Callable[[Any], Tensor]]]:
    return ((x, task.attack_losses(targets).total) for x, targets in batches)


def _taylor(
    model: nn.Module, task: Task, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None
) -> dict[str, Tensor]:
    return taylor_scores(model, _with_losses(task, batches))


def _deeplift(
    model: nn.Module, task: Task, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None
) -> dict[str, Tensor]:
    comparisons = _comparisons(model, task, batches, choices, attack)
    return deeplift_scores(model, comparisons, rule=choices.rule)  # type: ignore[arg-type]


ImageScore = Callable[[nn.Module, Task, Batches, ScoreChoices, PgdConfig | None], dict[str, Tensor]]
#: Scores that look at images → what makes them. One that neither is here nor makes itself (`of_images`) is an error.
IMAGE_SCORES: dict[str, ImageScore] = {
    "taylor": _taylor,
    "deeplift": _deeplift,
}


def _batches(choices: ScoreChoices, data: TrainingData, progress: Progress) -> Batches:
    """Yield images, float [N, 3, S, S] in [0, 1], with their targets."""
    generator = torch.Generator().manual_seed(choices.seed)
    order = torch.randperm(len(data), generator=generator)[: choices.images].tolist()
    total = -(-len(order) // choices.batch_size)
    loaded = data.batches(order, choices.batch_size, workers=0)
    for x, targets in progress.track(loaded, f"{choices.name} scores", total):
        yield (x.float() / 255 if x.dtype == torch.uint8 else x), targets


def _comparisons(
    model: nn.Module, task: Task, batches: Batches, choices: ScoreChoices, attack: PgdConfig | None
) -> Iterator[Comparison]:
    mean: Tensor | None = None
    if choices.reference == "mean":
        listed = list(batches)
        mean = data_mean(x for x, _ in listed)
        batches = iter(listed)
    for x, targets in batches:
        target = partial(task.attribution, targets=targets)
        if choices.reference == "clean":
            loss = task.attack_losses(targets).total
            yield Comparison(_attacked(model, x, loss, attack, choices.seed), x, target)
        else:
            yield Comparison(x, torch.zeros_like(x[:1]) if mean is None else mean, target)


def _attacked(
    model: nn.Module, x: Tensor, loss: Callable[[Any], Tensor], attack: PgdConfig | None, seed: int
) -> Tensor:
    assert attack is not None  # images to learn from come with one
    return pgd(model, x, loss, attack, torch.Generator().manual_seed(seed))
