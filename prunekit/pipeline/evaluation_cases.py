"""A model under several attacks, its own and transferred ones, one finished case after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

from prunekit.attacks import PRESETS
from prunekit.detection import CocoDataset, Detections, Detector
from prunekit.errors import InputError
from prunekit.pipeline.detection_rates import AttackSuccess, attack_success
from prunekit.pipeline.evaluate import Evaluation, EvaluationChoices, evaluate
from prunekit.pipeline.progress import Progress
from prunekit.pipeline.results import finite_or_none

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
