"""What is done for one variant at one ratio, from the pre-trained detector to a row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.attacks import PRESETS
from prunekit.compaction import CompactionResult, compact, save
from prunekit.detection import (
    AveragePrecision,
    Batch,
    CocoDataset,
    Detector,
    write_detections_csv,
    write_detections_json,
)
from prunekit.detection.rates import attack_success
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import Evaluation, evaluate, finite_or_none, nms_options
from prunekit.evaluation.latency import Latency, accelerate_and_time
from prunekit.nn import AccelerationReport, native_status
from prunekit.pipeline.checkpoint import Artefact, Bench, Training
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.examples import save_example
from prunekit.pipeline.results import RatioResult, compaction_columns, latency_columns, size_columns
from prunekit.pipeline.run_folder import RunFolder
from prunekit.pipeline.steps import finetune, optimise_scores, prune_one_shot, prune_optimised, score
from prunekit.pipeline.training_plan import finetuning, score_choices, score_optimisation
from prunekit.pipeline.variants import AS_GIVEN, Unit
from prunekit.processor import processor
from prunekit.progress import Progress
from prunekit.prune import (
    ChannelGroups,
    MaskRule,
    churn_between,
    count_costs,
    initial_scores,
    save_masks,
    sparsity,
)


@dataclass(frozen=True)
class Job:
    """What all units share.

    Attributes:
        config: What was asked.
        dataset: The evaluation data.
        given: The detector as it was given.
        start: The unpruned detector, pre-trained if that was asked.
        training: What to learn from, where something is to be learnt.
        bench: The stages' store, and who is told how far they are.
        groups: Which channels go together, where filters are cut or layers left out.
        example_ids: Images kept for the report.
    """

    config: RunConfig
    dataset: CocoDataset
    given: Artefact
    start: Artefact
    training: Training | None
    bench: Bench
    groups: ChannelGroups | None
    example_ids: set[int]


def do_unit(job: Job, folder: RunFolder, unit: Unit) -> tuple[RatioResult, list[Path]]:
    """Do one unit's work; return its row and the files that it wrote."""
    artefact, churn = _prune_and_finetune(job, unit)
    assert artefact.masks is not None
    save_masks(folder.masks(unit), artefact.masks)
    model = artefact.model.to(job.config.device)
    evaluations = {attack: _evaluate(job, folder, model, unit, attack) for attack in _attacks(job.config)}
    transfer = _transfer(job, model, unit) if job.config.transfer and len(evaluations) > 1 else None
    files = [folder.masks(unit)]
    for attack, evaluation in evaluations.items():
        files += _write_detections(job, folder, unit, evaluation, attacked=attack != "none")

    model = model.cpu()
    compaction = _compact(job, folder, artefact, unit)
    files += [folder.compacted(unit)] if compaction is not None else []
    latency, acceleration = _accelerate_and_time(job, model, unit, compaction)
    folder.write_json(f"acceleration/{unit.stem}.json", acceleration.to_json())
    x = torch.zeros(1, 3, job.config.image_size, job.config.image_size)
    costs = count_costs(model, x, artefact.masks, job.groups)
    row = RatioResult(
        ratio=unit.ratio,
        **asdict(unit.variant),
        **_accuracy_columns(job, evaluations, transfer),
        churn=churn,
        **size_columns(model, costs, sparsity(artefact.masks)),
        **latency_columns(latency),
        **compaction_columns(latency, compaction),
        sparse_layers=sum(layer.implementation != "dense" for layer in acceleration.rows),
        layers=len(acceleration.rows),
        images=len(job.dataset),
        image_size=job.config.image_size,
        attack=job.config.attack,
        threads=torch.get_num_threads(),
        instruction_set=native_status().instruction_set,
        processor=processor().name,
    )
    return row, files


def _prune_and_finetune(job: Job, unit: Unit) -> tuple[Artefact, float | None]:
    """Prune by the variant's rule, and fine-tune where there is data and something was dropped."""
    config, variant, training = job.config, unit.variant, job.training
    if unit.ratio == 0:
        whole = job.given if variant == AS_GIVEN else job.start
        scores, scores_sha256 = score(job.bench, whole, score_choices(config, "magnitude"), None)
        return prune_one_shot(job.bench, whole, scores, scores_sha256, MaskRule(0)), None
    excluded = (*job.groups.stems, *job.groups.heads) if config.keep_stem_and_heads and job.groups else ()
    rule = MaskRule(unit.ratio, variant.structure, config.scope, groups=job.groups, excluded=tuple(excluded))
    scores, scores_sha256 = score(job.bench, job.start, score_choices(config, variant.scores), training)
    churn = None
    if variant.pruning == "one-shot" or training is None:
        pruned = prune_one_shot(job.bench, job.start, scores, scores_sha256, rule)
    elif config.share_scores_at is not None:
        pruned, churn = _prune_by_shared_scores(job, scores, scores_sha256, rule, training, config.share_scores_at)
    else:
        pruned, churn = prune_optimised(
            job.bench, job.start, scores, scores_sha256, rule, training, score_optimisation(config)
        )
    if training is not None and config.finetune_epochs > 0:
        pruned = finetune(job.bench, pruned, training, finetuning(config), job.groups if rule.cuts_filters else None)
    return pruned, churn


def _prune_by_shared_scores(
    job: Job, scores: Mapping[str, Tensor], scores_sha256: str, rule: MaskRule, training: Training, ratio: float
) -> tuple[Artefact, float]:
    """Prune by scores that were optimised once, by the masks of `ratio`; return the churn at the rule's own too."""
    shared = replace(rule, ratio_percent=ratio)
    knobs = score_optimisation(job.config)
    start, optimised, sha = optimise_scores(job.bench, job.start, scores, scores_sha256, shared, training, knobs)
    pruned = prune_one_shot(job.bench, start, optimised, sha, rule)
    assert pruned.masks is not None
    scored = {layer: mask for layer, mask in pruned.masks.items() if layer not in rule.excluded}
    return pruned, churn_between(rule(initial_scores(start.model, scores)), scored).total


def _attacks(config: RunConfig) -> list[str]:
    return ["none"] if config.attack == "none" else ["none", config.attack]


def _evaluate(job: Job, folder: RunFolder, model: Detector, unit: Unit, attack: str) -> Evaluation:
    def keep_example(image_id: int, batch: Batch, row: int, x: torch.Tensor) -> None:
        if attack != "none" and image_id in job.example_ids:
            save_example(folder.example(image_id, unit.stem), x.cpu(), batch.letterboxes[row])

    description = f"{unit.label}: {'clean' if attack == 'none' else f'under attack ({attack})'}"
    return evaluate(model, job.dataset, job.config, PRESETS.get(attack), job.bench.progress, description, keep_example)


def _transfer(job: Job, model: Detector, unit: Unit) -> Evaluation:
    source = job.start.model.to(job.config.device)
    description = f"{unit.label}: under the unpruned model's attack"
    attack = PRESETS[job.config.attack]
    return evaluate(model, job.dataset, job.config, attack, job.bench.progress, description, source=source)


def _compact(job: Job, folder: RunFolder, artefact: Artefact, unit: Unit) -> CompactionResult | None:
    """Remove the dropped filters of a unit, and write the smaller model down."""
    for _ in job.bench.progress.track(range(1), f"{unit.label}: compacting", 1):
        result = compacted(artefact, job.dataset[0].image[None], job.bench.progress)
    if result is not None:
        save(result, folder.compacted(unit))
    return result


def _accelerate_and_time(
    job: Job, model: Detector, unit: Unit, compaction: CompactionResult | None
) -> tuple[Latency, AccelerationReport]:
    x = job.dataset[0].image[None]
    for _ in job.bench.progress.track(range(1), f"{unit.label}: accelerating and timing", 1):
        timed = accelerate_and_time(model, x, job.config.latency_runs, nms_options(job.config), compaction)
    return timed


def _write_detections(job: Job, folder: RunFolder, unit: Unit, evaluation: Evaluation, attacked: bool) -> list[Path]:
    csv_path, json_path = (folder.detections(unit.stem, attacked, suffix) for suffix in ("csv", "json"))
    write_detections_csv(csv_path, evaluation.detections, job.dataset.categories)
    write_detections_json(json_path, evaluation.detections, job.dataset.categories)
    return [csv_path, json_path]


def _accuracy_columns(job: Job, evaluations: dict[str, Evaluation], transfer: Evaluation | None) -> dict[str, Any]:
    clean, attacked = evaluations["none"], evaluations.get(job.config.attack) if job.config.attack != "none" else None
    success = attack_success(job.dataset, clean.detections, attacked.detections) if attacked else None
    return {
        **_precision_columns("", clean.average_precision),
        **_precision_columns("attacked_", attacked.average_precision if attacked else None),
        "transfer_ap": transfer.average_precision.ap if transfer else None,
        "confident_ap": clean.average_precision_confident.ap,
        "confident_ap50": clean.average_precision_confident.ap50,
        "attacked_confident_ap": attacked.average_precision_confident.ap if attacked else None,
        "attacked_confident_ap50": attacked.average_precision_confident.ap50 if attacked else None,
        "false_positives_per_image": clean.false_positives.per_image,
        "false_positive_share": finite_or_none(clean.false_positives.share),
        "attack_success_rate": finite_or_none(success.rate) if success else None,
    }


def _precision_columns(prefix: str, precision: AveragePrecision | None) -> dict[str, Any]:
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    values = [finite_or_none(getattr(precision, name)) if precision else None for name in names]
    return {prefix + name: value for name, value in zip(names, values, strict=True)}


def compacted(artefact: Artefact, x: Tensor, progress: Progress) -> CompactionResult | None:
    """Compact a detector whose masks drop filters; None for another one, and for one that cannot be compacted.

    Args:
        artefact: The pruned detector; its masks are in its weights.
        x: An image, [1, 3, H, W].
        progress: Told why a detector cannot be compacted: one that lost all filters of a layer, say.
    """
    if not artefact.drops_filters:
        return None
    try:
        return compact(artefact.model.cpu(), x)
    except InputError as error:
        progress.message(f"not compacted: {error}")
        return None
