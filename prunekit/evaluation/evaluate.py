"""A model on a data set, clean and under attacks, and how good what it finds is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.attacks import PRESETS, Attack, AttackInParts, AttackLosses, AutoAttackConfig, OverloadConfig
from prunekit.config import BatchConfig
from prunekit.errors import InputError
from prunekit.evaluation.attacked_batches import AttackedBatches
from prunekit.evaluation.overload import suppressing, with_overload
from prunekit.progress import Progress
from prunekit.task import Data, Figures, Predictions, Task
from prunekit.training.data import device_of, load_batches

CLEAN = "none"
# Called with an image's id and the image as the network saw it.
ImageSeen = Callable[[int, Tensor], None]


class EvaluationConfig(BatchConfig):
    """How detections are made and timed."""

    workers: int = Field(0, ge=0, description="worker processes that load images (0: load in the main process)")
    score_threshold: float = Field(0.001, ge=0, lt=1, description="keep detections with a score above this")
    iou_threshold: float = Field(0.45, gt=0, le=1, description="IoU threshold of non-maximum suppression")
    max_detections: int = Field(100, ge=1, description="maximum detections per image; COCO's AP counts at most 100")
    max_candidates: int | None = Field(
        None,
        ge=1,
        description="maximum pairs of box and class that enter non-maximum suppression, per image, the best ones: a "
        "defense against overload (default: the detector's own limits)",
    )
    latency_runs: int = Field(30, ge=3, description="timed runs of each model")
    verify: float | None = Field(
        None,
        gt=0,
        le=1,
        description="also report a classifier's verified accuracy, proven by bounds, at this L-infinity radius "
        "(default: none, but in a run with an objective that trains on bounds its --train-eps)",
    )


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and how.

    Attributes:
        model: The model, in eval mode.
        task: What it is made for.
        dataset: Images with their targets.
        config: Batch size, workers, thresholds and seed.
        progress: Shown batch by batch.
    """

    model: nn.Module
    task: Task
    dataset: Data
    config: EvaluationConfig
    progress: Progress

    def batches(self, description: str) -> Iterator[Any]:
        """Yield the data set's batches on the model's device, under a bar."""
        device, config = device_of(self.model), self.config
        loaded = load_batches(self.dataset, config.batch_size, config.workers)
        total = math.ceil(len(self.dataset) / config.batch_size)
        return (batch.to(device) for batch in self.progress.track(loaded, description, total))


@dataclass(frozen=True)
class Spread:
    """The least, mean and greatest of some values."""

    smallest: float
    mean: float
    largest: float


@dataclass(frozen=True)
class Perturbation:
    """How far the attacked images are from the clean ones, for pixels in [0, 1].

    Attributes:
        linf: over images, the largest change of an image's pixels.
        l2: over images, the Euclidean length of an image's whole change.
        lowest: the lowest value of any attacked pixel.
        highest: the highest.
    """

    linf: Spread
    l2: Spread
    lowest: float
    highest: float


@dataclass(frozen=True)
class Evaluation:
    """What a model found in a data set, and how good that is.

    Attributes:
        predictions: By image id, as the task has them.
        figures: The task's metrics; nan where there is nothing to measure on.
        perturbation: What an attack did to the images; None for a clean evaluation.
        after_parts: The main figure after each part of an attack that has parts: accuracy_after_apgd_ce.
    """

    predictions: Predictions
    figures: Figures
    perturbation: Perturbation | None
    after_parts: Figures = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationCase:
    """One evaluation of a model: clean, under an attack of its own, or under one made on another model.

    Attributes:
        attack: a name in `prunekit.attacks.PRESETS`, or "none".
        transfer: whether the attack's gradients are another model's.
    """

    attack: str
    transfer: bool = False

    @property
    def name(self) -> str:
        """A name for files and columns: none, paper, paper_transfer."""
        return f"{self.attack}_transfer" if self.transfer else self.attack


@dataclass(frozen=True)
class CaseResult:
    """A finished case; `success` compares it with the clean one."""

    case: EvaluationCase
    evaluation: Evaluation
    success: Figures | None

    def figures(self) -> dict[str, float | None]:
        """Return all figures by name, for a table or a JSON file; None where there is nothing to measure on."""
        figures = {**self.evaluation.figures, **self.evaluation.after_parts, **(self.success or {})}
        if self.evaluation.perturbation is not None:
            moved = self.evaluation.perturbation
            figures |= {"mean_linf": moved.linf.mean, "mean_l2": moved.l2.mean}
        return {name: finite_or_none(value) for name, value in figures.items()}


def evaluate(
    subject: Subject,
    attack: Attack | None,
    description: str = "evaluating",
    image_seen: ImageSeen | None = None,
    source: nn.Module | None = None,
    kept: AttackedBatches | None = None,
) -> Evaluation:
    """Run a model over a data set, each batch attacked first when there is an attack.

    Args:
        subject: The model and the data set.
        attack: None for a clean evaluation.
        description: The bar's label.
        image_seen: Told of every image as the network sees it.
        source: The model whose gradients the attack follows: the subject's (white box) if not given, another
            one of the same task and outputs for a transferred attack.
        kept: Where batches of an attack in parts are kept, until whoever evaluates has done what depends on them.
    """
    model, task, dataset, config = subject.model, subject.task, subject.dataset, subject.config
    generator = torch.Generator(device_of(model)).manual_seed(config.seed)
    predictions: dict[int, Any] = {}
    by_part: dict[str, dict[int, Any]] = {}
    movements: list[Tensor] = []
    for index, batch in enumerate(subject.batches(description)):
        x = batch.images
        if attack is not None:
            losses = with_overload(task.attack_losses(batch.targets), task, config)
            x, after = _attacked(attack, source or model, x, losses, generator, kept, index)
            movements.append(_movement(x, batch.images))
            for part, x_adv in after.items():
                by_part.setdefault(part, {}).update(task.predict(model, x_adv, batch, config))
        predictions |= task.predict(model, x, batch, config)
        if image_seen is not None:
            for image_id, image in zip(batch.image_ids, x, strict=True):
                image_seen(image_id, image)
    figures, main = task.metrics(predictions, dataset), task.figures[0].column
    after_parts = {f"{main}_after_{part}": task.metrics(found, dataset)[main] for part, found in by_part.items()}
    return Evaluation(predictions, figures, _perturbation(movements) if movements else None, after_parts)


def _attacked(
    attack: Attack,
    model: nn.Module,
    x: Tensor,
    losses: AttackLosses,
    generator: torch.Generator,
    kept: AttackedBatches | None,
    index: int,
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return the attacked images, and those after each part of an attack that has parts."""
    if not isinstance(attack, AttackInParts):
        return attack(model, x, losses, generator), {}
    make = partial(attack.after_each_part, model, x, losses, generator)
    after = make() if kept is None else kept.attacked(index, generator, make)
    return [*after.values()][-1], after


def require_attackable(attacks: Sequence[str], task: Task, dataset: Data) -> None:
    """Raise InputError, before any work, when a named attack cannot be made on a task's models."""
    for name in attacks:
        if isinstance(PRESETS.get(name), AutoAttackConfig):
            targets = dataset.collate([dataset[0]]).targets
            if task.attack_losses(targets).labels is None:
                raise InputError(f"--attack: expected a classifier for {name}, got the model {task.spec.name}.")
        if isinstance(PRESETS.get(name), OverloadConfig):
            suppressing(task)


def evaluation_cases(attacks: Sequence[str], transfer: bool = False) -> list[EvaluationCase]:
    """List what to evaluate: clean first, then each named attack, with `transfer` also made on another model."""
    unknown = [name for name in attacks if name not in PRESETS and name != CLEAN]
    if unknown:
        raise InputError(f"Expected attacks among {', '.join([CLEAN, *PRESETS])}, got {unknown[0]!r}")
    cases = [EvaluationCase(CLEAN)]
    for name in dict.fromkeys(name for name in attacks if name != CLEAN):
        cases.append(EvaluationCase(name))
        if transfer:
            cases.append(EvaluationCase(name, transfer=True))
    return cases


def evaluate_case(
    case: EvaluationCase,
    subject: Subject,
    clean: Predictions,
    source: nn.Module | None = None,
    kept: AttackedBatches | None = None,
    image_seen: ImageSeen | None = None,
) -> CaseResult:
    """Evaluate a model in one case.

    Args:
        case: Clean, attacked, or under another model's attack.
        subject: The model and the data set.
        clean: What was found in the clean images; the clean case does not look at it.
        source: The model that a transferred attack is made on; other cases do not look at it.
        kept: Where batches of an attack in parts are kept.
        image_seen: Told of every image as the network sees it.
    """
    attack = PRESETS.get(case.attack)
    made_on = source if case.transfer else None
    evaluation = evaluate(subject, attack, case.name, image_seen, made_on, kept)
    success = None if attack is None else subject.task.success(clean, evaluation.predictions, subject.dataset)
    return CaseResult(case, evaluation, success)


def evaluate_cases(subject: Subject, attacks: Sequence[str], source: nn.Module | None = None) -> Iterator[CaseResult]:
    """Evaluate a model clean and under each attack; each result is yielded, and can be kept, when it is there.

    Args:
        subject: The model and the data set.
        attacks: Names in `prunekit.attacks.PRESETS`.
        source: With another model, such as the unpruned one, each attack is also made on it and transferred.
    """
    clean: Predictions = {}
    for case in evaluation_cases(attacks, transfer=source is not None):
        result = evaluate_case(case, subject, clean, source)
        if case.attack == CLEAN:
            clean = result.evaluation.predictions
        yield result


def finite_or_none(value: float | None) -> float | None:
    """Turn nan, which JSON does not have, into None."""
    return value if value is not None and math.isfinite(value) else None


def _movement(x_adv: Tensor, x: Tensor) -> Tensor:
    """Return each image's largest change, length of change, lowest and highest value, [N, 4]."""
    delta, pixels = (x_adv - x).flatten(1), x_adv.flatten(1)
    length = torch.linalg.vector_norm(delta, dim=1)
    return torch.stack([delta.abs().amax(dim=1), length, pixels.amin(dim=1), pixels.amax(dim=1)], dim=1).cpu()


def _perturbation(movements: list[Tensor]) -> Perturbation:
    linf, l2, lowest, highest = torch.cat(movements).double().unbind(dim=1)
    return Perturbation(_spread(linf), _spread(l2), float(lowest.min()), float(highest.max()))


def _spread(values: Tensor) -> Spread:
    return Spread(float(values.min()), float(values.mean()), float(values.max()))
