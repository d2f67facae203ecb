"""What is done for one variant at one ratio, from the pre-trained detector to a row of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import PRESETS, AttackInParts, attack_identity
from prunekit.compaction import CompactionResult, compact, save
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.attacked_batches import AttackedBatches
from prunekit.evaluation.evaluate import Evaluation, Subject, evaluate, finite_or_none
from prunekit.evaluation.latency import Deployed, accelerate_and_time
from prunekit.nn import native_status
from prunekit.pipeline.allocation import Sharing, allocate_step, known_sensitivities, layer_rows
from prunekit.pipeline.checkpoint import Checkpoint, Training, Workspace
from prunekit.pipeline.conditions import Conditions
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.examples import save_example
from prunekit.pipeline.int8 import INT8, ModelInInt8, calibration_images, int8_columns, read_int8, write_int8
from prunekit.pipeline.proofs import Proof, radii_identity, write_margins, write_radii
from prunekit.pipeline.results import (
    RatioResult,
    compaction_columns,
    latency_columns,
    postprocessing_columns,
    size_columns,
)
from prunekit.pipeline.run_folder import RunFolder
from prunekit.pipeline.steps import finetune, optimize_scores, permute, prune_one_shot, prune_optimized, score, unpruned
from prunekit.pipeline.store import StageFolder
from prunekit.pipeline.variants import AS_GIVEN, Unit
from prunekit.processor import processor
from prunekit.progress import Progress, alone
from prunekit.prune import (
    ChannelGroups,
    MaskRule,
    churn_between,
    conv_groups,
    count_costs,
    initial_scores,
    save_masks,
    sparsity,
)
from prunekit.task import Data
from prunekit.timing import Timing


@dataclass(frozen=True)
class Job(Workspace):
    """A run's workspace: what all of its units share.

    Attributes:
        config: What was asked.
        dataset: The evaluation data.
        data_sha256: Of the evaluation data.
        given: The model as it was given.
        start: The unpruned model, pre-trained if that was asked.
        training: What to learn from, where something is to be learnt.
        groups: Which channels go together, where filters are cut or layers left out.
        examples: Images kept for the report, id → index.
    """

    config: RunConfig
    dataset: Data
    data_sha256: str
    given: Checkpoint
    start: Checkpoint
    training: Training | None
    groups: ChannelGroups | None
    examples: dict[int, int]

    def subject(self, model: nn.Module) -> Subject:
        """Return a unit's model as it is evaluated."""
        return Subject(model, self.start.task, self.dataset, self.config, self.progress)

    def attacked_batches(self, artifact: Checkpoint) -> AttackedBatches | None:
        """Return where images that an attack in parts makes on a model are kept; None for another attack."""
        attack = PRESETS.get(self.config.attack)
        if not isinstance(attack, AttackInParts):
            return None
        identity = {"attack": attack_identity(attack), "batch_size": self.config.batch_size, "seed": self.config.seed}
        inputs = {"model": artifact.sha256, "data": self.data_sha256}
        return AttackedBatches(self.store.open("attack", identity, inputs).path)


def do_unit(job: Job, folder: RunFolder, unit: Unit) -> tuple[RatioResult, list[Path], Checkpoint]:
    """Do one unit's work; return its row, the files that it wrote, and its model."""
    artifact, churn = _prune_and_finetune(job, unit)
    assert artifact.masks is not None
    save_masks(folder.masks(unit), artifact.masks)
    model = artifact.model.to(job.config.device)
    evaluations = {attack: _evaluate(job, folder, artifact, unit, attack) for attack in _attacks(job.config)}
    transfer = _transfer(job, model, unit) if job.config.transfer and len(evaluations) > 1 else None
    proven = _proven(job, artifact)
    conditions = Conditions(job, artifact, job.subject(model), job.data_sha256, job.config)
    under_conditions = conditions.columns()
    files = [folder.masks(unit)]
    for attack, evaluation in evaluations.items():
        stem = folder.predictions(unit.stem, attacked=attack != "none")
        files += job.start.task.save_predictions(stem, evaluation.predictions, job.dataset)

    model = model.cpu()
    compaction = _compact(job, folder, artifact, unit)
    files += [folder.compacted(unit)] if compaction is not None else []
    in_int8 = _in_int8(job, artifact, compaction)
    deployed = _accelerate_and_time(job, model, unit, compaction, in_int8)
    latency, acceleration = deployed.latency, deployed.report
    folder.write_json(f"acceleration/{unit.stem}.json", acceleration.to_json())
    x = torch.zeros(1, 3, job.dataset.image_size, job.dataset.image_size)
    costs = count_costs(model, x, artifact.masks, job.groups)
    ms = {layer.name: layer.ms for layer in acceleration.rows}
    layers = layer_rows(costs, artifact.masks, _sensitivities(job, unit), ms)
    folder.write_json(str(folder.layers(unit).relative_to(folder.root)), layers)
    variant = unit.variant
    columns = {
        "ratio": 100 * sparsity(artifact.masks) if unit.budget else unit.ratio,
        "structure": variant.structure,
        "scores": variant.scores,
        "pruning": variant.pruning,
        **_accuracy(job, evaluations, transfer),
        **proven,
        "churn": churn,
        **size_columns(model, costs, sparsity(artifact.masks)),
        **latency_columns(latency),
        **compaction_columns(latency, compaction),
        **postprocessing_columns(latency),
        **under_conditions,
        **_milliseconds(job, conditions),
        "sparse_layers": sum(layer.implementation != "dense" for layer in acceleration.rows),
        "layers": len(acceleration.rows),
        "images": len(job.dataset),
        "image_size": job.dataset.image_size,
        "attack": job.config.attack,
        "threads": job.config.latency_threads or torch.get_num_threads(),
        "instruction_set": native_status().instruction_set,
        "processor": processor().name,
        "allocation": variant.allocation,
        "budget": unit.budget,
        **(_int8(job, folder, unit, in_int8, latency.int8, conditions) if in_int8 is not None else {}),
    }
    return RatioResult(columns), files, artifact


def _prune_and_finetune(job: Job, unit: Unit) -> tuple[Checkpoint, float | None]:
    """Prune by the variant's rule, and fine-tune where there is data and something was dropped."""
    config, variant, training = job.config, unit.variant, job.training
    if not unit.is_pruned:
        return unpruned(job.given if variant == AS_GIVEN else job.start), None
    image = job.dataset[0].image[None]
    start = permute(job, job.start, variant.structure, config.permute_channels_at, image)
    excluded = (*job.groups.stems, *job.groups.heads) if config.keep_stem_and_heads and job.groups else ()
    rule = MaskRule(
        unit.ratio, variant.structure, config.scope, groups=job.groups, excluded=tuple(excluded),
        conv_groups=conv_groups(job.start.model),
    )  # fmt: skip
    scores, scores_sha256 = score(job, start, variant.scores, config, training)
    if unit.shared:
        rule = allocate_step(job, start, scores, scores_sha256, rule, _sharing(job, unit), training, image)
    churn = None
    if variant.pruning == "one-shot" or training is None:
        pruned = prune_one_shot(job, start, scores, scores_sha256, rule)
    elif config.share_scores_at is not None:
        pruned, churn = _prune_by_shared_scores(
            job, start, scores, scores_sha256, rule, training, config.share_scores_at
        )
    else:
        pruned, churn = prune_optimized(job, start, scores, scores_sha256, rule, training, config.optimize)
    if training is not None and config.finetune.epochs > 0:
        pruned = finetune(job, pruned, training, config.finetune, job.groups if rule.cuts_filters else None)
    return pruned, churn


def _prune_by_shared_scores(
    job: Job,
    given: Checkpoint,
    scores: Mapping[str, Tensor],
    scores_sha256: str,
    rule: MaskRule,
    training: Training,
    ratio: float,
) -> tuple[Checkpoint, float]:
    """Prune by scores that were optimized once, by the masks of `ratio`; return the churn at the rule's own too."""
    shared = replace(rule, ratio_percent=ratio, ratios={})
    start, optimized, sha = optimize_scores(job, given, scores, scores_sha256, shared, training, job.config.optimize)
    pruned = prune_one_shot(job, start, optimized, sha, rule)
    assert pruned.masks is not None
    scored = {layer: mask for layer, mask in pruned.masks.items() if layer not in rule.excluded}
    return pruned, churn_between(rule(initial_scores(start.model, scores)), scored).total


def _sharing(job: Job, unit: Unit) -> Sharing:
    config = job.config
    return Sharing(unit.variant.allocation, unit.shared, config.sensitivity, config.seed, config.sensitivities)


def _sensitivities(job: Job, unit: Unit) -> dict[str, float]:
    return known_sensitivities(job, job.start, _sharing(job, unit), job.training) if unit.is_pruned else {}


def _attacks(config: RunConfig) -> list[str]:
    return ["none"] if config.attack == "none" else ["none", config.attack]


def _evaluate(job: Job, folder: RunFolder, artifact: Checkpoint, unit: Unit, attack: str) -> Evaluation:
    def keep_example(image_id: int, image: Tensor) -> None:
        if attack != "none" and (index := job.examples.get(image_id)) is not None:
            save_example(folder.example(image_id, unit.stem), job.dataset.visible(index, image.cpu()))

    description = f"{unit.label}: {'clean' if attack == 'none' else f'under attack ({attack})'}"
    kept = None if attack == "none" else job.attacked_batches(artifact)
    return evaluate(job.subject(artifact.model), PRESETS.get(attack), description, keep_example, kept=kept)


def _transfer(job: Job, model: nn.Module, unit: Unit) -> Evaluation:
    source = job.start.model.to(job.config.device)
    description = f"{unit.label}: under the unpruned model's attack"
    kept = job.attacked_batches(job.start)
    return evaluate(job.subject(model), PRESETS[job.config.attack], description, source=source, kept=kept)


def _proven(job: Job, artifact: Checkpoint) -> dict[str, float | None]:
    """Return the columns on what is proven of a model, as far as it was asked for."""
    config, subject, columns = job.config, job.subject(artifact.model), dict[str, float | None]()
    if (eps := config.verified_eps(job.start.task)) is not None:
        make = partial(write_margins, subject=subject, eps=eps)
        columns |= _proof(job, artifact, "verify", {"eps": eps, "batch_size": config.batch_size}, make)
        columns["verified_eps"] = columns.pop("eps")
    if config.certifies(job.start.task):
        make = partial(write_radii, subject=subject, config=config)
        columns |= _proof(job, artifact, "certify", radii_identity(config), make)
        columns["certified_sigma"] = columns.pop("sigma")
    return columns


def _proof(
    job: Job, artifact: Checkpoint, stage: str, identity: Mapping[str, Any], make: Callable[[StageFolder], Proof]
) -> dict[str, Any]:
    """Return a proof's figures; a stage of its own keeps what other work on the unit may not lose."""
    folder = job.store.open(stage, identity, {"model": artifact.sha256, "data": job.data_sha256})
    if (figures := folder.result()) is None:
        figures, files = make(folder)
        folder.finish(figures, *files)
    return figures


def _compact(job: Job, folder: RunFolder, artifact: Checkpoint, unit: Unit) -> CompactionResult | None:
    """Remove the dropped filters of a unit, and write the smaller model down."""
    with alone(job.progress):  # which widths are fastest is timed
        for _ in job.progress.track(range(1), f"{unit.label}: compacting", 1):
            result = compacted(artifact, job.dataset[0].image[None], job.progress)
    if result is not None:
        save(result, folder.compacted(unit))
    return result


def _in_int8(job: Job, artifact: Checkpoint, compaction: CompactionResult | None) -> ModelInInt8 | None:
    """Return a unit's model in int8, compacted where filters went; None where none was asked for.

    It is a stage of its own: which layers are in int8 is timed, and what is found of them must be of one model.
    """
    config, training = job.config, job.training
    if not config.deploys_int8 or training is None:
        return None
    with thread_count(config.latency_threads):
        machine = {"threads": torch.get_num_threads(), "processor": processor().name}
        identity = {"calibration_images": config.calibration_images, **machine}
        stage = job.store.open(INT8, identity, {"model": artifact.sha256, "data": training.sha256})
        if (chosen := stage.result()) is None:
            images = calibration_images(training.data, config.calibration_images, config.workers)
            model = artifact.model.cpu() if compaction is None else compaction.model
            chosen, files = write_int8(stage, model, job.dataset[0].image[None], images, job.progress)
            stage.finish(chosen, *files)
        return read_int8(stage, chosen)


def _accelerate_and_time(
    job: Job, model: nn.Module, unit: Unit, compaction: CompactionResult | None, in_int8: ModelInInt8 | None
) -> Deployed:
    x, config, int8 = job.dataset[0].image[None], job.config, None if in_int8 is None else in_int8.model
    with alone(job.progress), thread_count(config.latency_threads):
        for _ in job.progress.track(range(1), f"{unit.label}: accelerating and timing", 1):
            deployed = accelerate_and_time(model, job.start.task, x, config.latency_runs, config, compaction, int8)
    return deployed


def _milliseconds(job: Job, conditions: Conditions) -> dict[str, float]:
    with thread_count(job.config.latency_threads):
        return conditions.milliseconds()


def _int8(
    job: Job, folder: RunFolder, unit: Unit, in_int8: ModelInInt8, timing: Timing | None, conditions: Conditions
) -> dict[str, Any]:
    """Return the columns on the model in int8, which sees the images that the float32 model was attacked by."""
    folder.write_json(f"acceleration/{unit.stem}-int8.json", in_int8.report)
    if in_int8.model is None:
        return int8_columns(in_int8.chosen, None, {})
    figures = _accuracy_in_int8(job, unit, in_int8.model, conditions.subject.model)
    deployed = conditions.of_deployed(in_int8.model, in_int8.sha256)
    return int8_columns(in_int8.chosen, timing, figures | deployed.columns() | _milliseconds(job, deployed))


def _accuracy_in_int8(job: Job, unit: Unit, model: nn.Module, source: nn.Module) -> dict[str, float | None]:
    subject, attack, attacked = job.subject(model), job.config.attack, None
    clean = evaluate(subject, None, f"{unit.label}: clean in int8")
    if attack != "none":
        attacked = evaluate(subject, PRESETS[attack], f"{unit.label}: under attack in int8", source=source)
    columns = job.start.task.columns(clean.figures, attacked.figures if attacked else None, None, None)
    return {name: finite_or_none(value) for name, value in columns.items() if value is not None}


def _accuracy(job: Job, evaluations: dict[str, Evaluation], transfer: Evaluation | None) -> dict[str, float | None]:
    task, clean = job.start.task, evaluations["none"]
    attacked = evaluations.get(job.config.attack) if job.config.attack != "none" else None
    success = task.success(clean.predictions, attacked.predictions, job.dataset) if attacked else None
    columns = task.columns(
        clean.figures, attacked.figures if attacked else None, transfer.figures if transfer else None, success
    )
    after_parts = {f"attacked_{name}": value for name, value in attacked.after_parts.items()} if attacked else {}
    return {name: finite_or_none(value) for name, value in {**columns, **after_parts}.items()}


def compacted(artifact: Checkpoint, x: Tensor, progress: Progress) -> CompactionResult | None:
    """Compact a model whose masks drop filters; None for another one, and for one that cannot be compacted.

    Args:
        artifact: The pruned model; its masks are in its weights.
        x: An image, [1, 3, H, W].
        progress: Told why a model cannot be compacted: one that lost all filters of a layer, say.
    """
    if not artifact.drops_filters:
        return None
    try:
        return compact(artifact.model.cpu(), x)
    except InputError as error:
        progress.message(f"not compacted: {error}")
        return None
