"""A model on a data set, clean and under attacks, and how good what it finds is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prunekit.attacks import PRESETS, Attack
from prunekit.detection import (
    AveragePrecision,
    Batch,
    CocoDataset,
    Detections,
    Detector,
    decode,
    evaluate_detections,
    nms,
)
from prunekit.detection.attack_losses import attack_losses
from prunekit.detection.rates import AttackSuccess, FalsePositives, attack_success, confident, false_positives
from prunekit.errors import InputError
from prunekit.progress import Progress
from prunekit.training.data import device_of, load_batches, on_device

# Called with an image's id and its row of the batch as the network saw it.
ImageSeen = Callable[[int, Batch, int, Tensor], None]


class EvaluationChoices(Protocol):
    """The fields of a configuration that evaluation reads; see `RunConfig`."""

    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def score_threshold(self) -> float: ...  # noqa: D102
    @property
    def iou_threshold(self) -> float: ...  # noqa: D102
    @property
    def max_detections(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def workers(self) -> int: ...  # noqa: D102


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
        detections: by image id; boxes xyxy in pixels of the original images.
        average_precision: of all of them.
        average_precision_confident: of those with a score of at least 0.5.
        false_positives: among those with a score of at least 0.5.
        perturbation: what an attack did to the images; None for a clean evaluation.
    """

    detections: dict[int, Detections]
    average_precision: AveragePrecision
    average_precision_confident: AveragePrecision
    false_positives: FalsePositives
    perturbation: Perturbation | None


def evaluate(
    model: Detector,
    dataset: CocoDataset,
    config: EvaluationChoices,
    attack: Attack | None,
    progress: Progress,
    description: str = "evaluating",
    image_seen: ImageSeen | None = None,
    source: Detector | None = None,
) -> Evaluation:
    """Run `model` over `dataset`, each batch attacked first when there is an attack.

    Args:
        model: The detector, in eval mode.
        dataset: Letterboxed images with their objects.
        config: Batch size, workers, thresholds and seed.
        attack: None for a clean evaluation.
        progress: Shown batch by batch.
        description: The bar's label.
        image_seen: Told of every image as the network sees it.
        source: The model whose gradients the attack follows: `model` itself (white box) if not given, another
            detector of the same classes for a transferred attack.
    """
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(config.seed)
    detections: dict[int, Detections] = {}
    movements: list[Tensor] = []
    num_batches = math.ceil(len(dataset) / config.batch_size)
    loaded = load_batches(dataset, config.batch_size, config.workers)
    for batch in progress.track(loaded, description, num_batches):
        batch = on_device(batch, device)
        x = batch.images
        if attack is not None:
            x = perturb(source or model, batch, attack, generator)
            movements.append(_movement(x, batch.images))
        for row, found in enumerate(detect(model, x, config)):
            image_id = batch.image_ids[row]
            boxes = batch.letterboxes[row].to_image(found.boxes)
            detections[image_id] = Detections(boxes.cpu(), found.scores.cpu(), found.classes.cpu())
            if image_seen is not None:
                image_seen(image_id, batch, row, x[row])
    return Evaluation(
        detections,
        evaluate_detections(dataset, detections),
        evaluate_detections(dataset, confident(detections)),
        false_positives(dataset, detections),
        _perturbation(movements) if movements else None,
    )


def perturb(model: Detector, batch: Batch, attack: Attack, generator: torch.Generator) -> Tensor:
    """Return the batch's images, [N, 3, H, W] in [0, 1], attacked through the gradients of `model`."""
    losses = attack_losses(batch.targets, model.anchors, model.strides, model.num_classes)
    return attack(model, batch.images, losses, generator)


@torch.inference_mode()
def detect(model: Detector, x: Tensor, config: EvaluationChoices) -> list[Detections]:
    """Return each image's detections for x, [N, 3, H, W]; boxes xyxy in its pixels."""
    boxes, scores = decode(model(x), model.anchors, model.strides, model.num_classes)
    return nms(boxes, scores, **nms_options(config))


def nms_options(config: EvaluationChoices) -> dict[str, Any]:
    """Return the configuration's choices for `prunekit.detection.nms`."""
    return {
        "score_threshold": config.score_threshold,
        "iou_threshold": config.iou_threshold,
        "max_detections": config.max_detections,
    }


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


CLEAN = "none"


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
    success: AttackSuccess | None

    def figures(self) -> dict[str, float | None]:
        """Return all figures by name, for a table or a JSON file; None where there is nothing to measure on."""
        evaluation = self.evaluation
        false = evaluation.false_positives
        figures = asdict(evaluation.average_precision)
        figures |= {f"confident_{name}": ap for name, ap in asdict(evaluation.average_precision_confident).items()}
        figures |= {"false_positives_per_image": false.per_image, "false_positive_share": false.share}
        if self.success is not None:
            success = self.success
            figures |= {"attack_success": success.rate, "lost": success.lost, "mislabelled": success.mislabelled}
        if evaluation.perturbation is not None:
            moved = evaluation.perturbation
            figures |= {"mean_linf": moved.linf.mean, "mean_l2": moved.l2.mean}
        return {name: finite_or_none(value) for name, value in figures.items()}


def evaluation_cases(attacks: Sequence[str], transfer: bool = False) -> list[EvaluationCase]:
    """List what to evaluate: clean first, then each named attack, with `transfer` also made on another model."""
    unknown = [name for name in attacks if name not in PRESETS and name != CLEAN]
    if unknown:
        raise InputError(f"expected attacks among {', '.join([CLEAN, *PRESETS])}, but got {unknown[0]!r}")
    cases = [EvaluationCase(CLEAN)]
    for name in dict.fromkeys(name for name in attacks if name != CLEAN):
        cases.append(EvaluationCase(name))
        if transfer:
            cases.append(EvaluationCase(name, transfer=True))
    return cases


def evaluate_case(
    case: EvaluationCase,
    model: Detector,
    dataset: CocoDataset,
    config: EvaluationChoices,
    progress: Progress,
    clean: Mapping[int, Detections],
    source: Detector | None = None,
) -> CaseResult:
    """Evaluate `model` in one case.

    Args:
        case: Clean, attacked, or under another model's attack.
        model: The detector, in eval mode.
        dataset: Letterboxed images with their objects.
        config: Batch size, workers, thresholds and seed.
        progress: Shown batch by batch.
        clean: What was found in the clean images, by image id; the clean case does not look at it.
        source: The model that a transferred attack is made on; other cases do not look at it.
    """
    attack = PRESETS.get(case.attack)
    made_on = source if case.transfer else None
    evaluation = evaluate(model, dataset, config, attack, progress, case.name, source=made_on)
    success = None if attack is None else attack_success(dataset, clean, evaluation.detections)
    return CaseResult(case, evaluation, success)


def evaluate_cases(
    model: Detector,
    dataset: CocoDataset,
    config: EvaluationChoices,
    attacks: Sequence[str],
    progress: Progress,
    source: Detector | None = None,
) -> Iterator[CaseResult]:
    """Evaluate `model` clean and under each attack; each result is yielded, and can be kept, when it is there.

    Args:
        model: The detector, in eval mode.
        dataset: Letterboxed images with their objects.
        config: Batch size, workers, thresholds and seed.
        attacks: Names in `prunekit.attacks.PRESETS`.
        progress: Shown batch by batch.
        source: With another detector, such as the unpruned one, each attack is also made on it and transferred.
    """
    clean: dict[int, Detections] = {}
    for case in evaluation_cases(attacks, transfer=source is not None):
        result = evaluate_case(case, model, dataset, config, progress, clean, source)
        if case.attack == CLEAN:
            clean = result.evaluation.detections
        yield result


def finite_or_none(value: float) -> float | None:
    """Turn nan, which JSON does not have, into None."""
    return value if math.isfinite(value) else None
