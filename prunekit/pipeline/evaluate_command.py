"""One model's figures, clean and under attacks, from files to files: what `prunekit evaluate` does.

Each attack is a piece of work of its own in the folder, as are the checks and the timing: what is finished stays, and
more attacks can be asked for later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.attacks import PRESETS, attack_identity
from prunekit.attacks.presets import STANDARD
from prunekit.evaluation.attacked_batches import AttackedBatches
from prunekit.evaluation.evaluate import CLEAN, EvaluationCase, evaluate_case, evaluation_cases, require_attackable
from prunekit.evaluation.latency import accelerate_and_time
from prunekit.evaluation.sanity_checks import check_evaluation
from prunekit.evaluation.sanity_rules import Check, CheckReport
from prunekit.evaluation.smoothing import SmoothingConfig, certified_figures, certify_all
from prunekit.evaluation.verification import labels_images, verified_accuracy, verify
from prunekit.files import write_text
from prunekit.pipeline.checkpoint import Checkpoint, Workspace, open_checkpoint, spec_of
from prunekit.pipeline.command_config import EvaluateStage
from prunekit.pipeline.commands import keep_config, opened, prepared, read_groups, task_for
from prunekit.pipeline.results import (
    compaction_columns,
    data_digest,
    latency_columns,
    open_data,
    postprocessing_columns,
    size_columns,
)
from prunekit.pipeline.store import StageFolder, command_store
from prunekit.pipeline.unit import compacted
from prunekit.processor import processor
from prunekit.progress import Progress, SilentProgress
from prunekit.prune import count_costs, prunable_layers, sparsity
from prunekit.task import Data, Figure, task_of

EVALUATION, PREDICTIONS, MARGINS, RADII = "evaluation.json", "detections", "margins.csv", "radii.csv"


@dataclass(frozen=True)
class EvaluationOutcome:
    """A model's figures.

    Attributes:
        file: Where they all are, as JSON.
        cases: Case (none, paper, paper_transfer) → figure → value, None where there is nothing to measure on.
        checks: The checks of the evaluation, if they were asked for; `require` raises if one failed.
        timing: Sizes and latencies, if they were asked for.
        verified: Verified accuracy, if it was asked for.
        certified: Certified accuracies and the mean certified radius, if they were asked for.
        shown: The figures that a table shows.
        was_finished: Whether all of it was there already.
    """

    file: Path
    cases: dict[str, dict[str, float | None]]
    checks: CheckReport | None
    timing: dict[str, Any] | None
    verified: dict[str, Any] | None
    certified: dict[str, Any] | None
    was_finished: bool
    shown: Sequence[Figure]


@dataclass(frozen=True)
class _Work(Workspace):
    """An evaluation's workspace; its parts' results depend on `identity` and `inputs`."""

    config: EvaluateStage
    artifact: Checkpoint
    source: Checkpoint | None
    dataset: Data
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def model(self) -> nn.Module:
        return self.artifact.model


def evaluate_stage(config: EvaluateStage, progress: Progress | None = None) -> EvaluationOutcome:
    """Evaluate a model clean, under each attack, and as far as asked check and time it."""
    progress = progress or SilentProgress()
    with prepared(config, "evaluate"):
        task = task_for(config, config.weights)
        if config.verify is not None:
            labels_images(task, "--verify")
        if config.certify:
            labels_images(task, "--certify")
        dataset = open_data(config, task, config.data, progress, keep=True)
        artifact = opened(config.weights, task, dataset)
        require_attackable(config.attack, artifact.task, dataset)
        source = _source(config, artifact, dataset)
        for detector in (artifact, *([source] if source else [])):
            detector.model.to(config.device)
        names = ("score_threshold", "iou_threshold", "max_detections", "batch_size", "seed")
        identity = {name: getattr(config, name) for name in names}
        inputs = {"model": artifact.sha256, "data": data_digest(dataset, progress)}
        with command_store(config.out, "evaluate") as store:
            keep_config(config)
            store.open("evaluate", identity, inputs)  # claims the folder for this detector and this data
            return _evaluate(_Work(store, progress, config, artifact, source, dataset, identity, inputs))


def _evaluate(work: _Work) -> EvaluationOutcome:
    parts: list[tuple[Any, bool]] = []
    cases = {}
    for case in evaluation_cases(work.config.attack, transfer=work.source is not None):
        parts.append(_case(work, case))
        cases[case.name] = parts[-1][0]
    checks = timing = verified = certified = None
    if work.config.certify:
        parts.append(_certify(work))
        certified = parts[-1][0]
    if work.config.verify is not None:
        parts.append(_verify(work, work.config.verify))
        verified = parts[-1][0]
    if work.config.check:
        parts.append(_check(work))
        checks = CheckReport([Check(**row) for row in parts[-1][0]["checks"]])
    if work.config.latency:
        parts.append(_time(work))
        timing = parts[-1][0]
    _write_summary(work, cases, checks, timing, {"verified": verified, "certified": certified})
    was_finished = all(finished for _, finished in parts)
    shown = work.artifact.task.figures
    return EvaluationOutcome(
        work.config.out / EVALUATION, cases, checks, timing, verified, certified, was_finished, shown
    )


def _case(work: _Work, case: EvaluationCase) -> tuple[dict[str, Any], bool]:
    """Return one case's figures, and whether they were there already."""
    identity, inputs = {**work.identity, "attack": attack_identity(PRESETS.get(case.attack))}, dict(work.inputs)
    if case.transfer and work.source is not None:
        inputs["source"] = work.source.sha256
    folder = work.store.open(case.name, identity, inputs)
    if (done := _earlier(work, folder, case.name)) is not None:
        return done, True
    # From the file, so that figures do not depend on which process evaluated the clean images.
    task, is_clean = work.artifact.task, case.attack == CLEAN
    clean = {} if is_clean else task.load_predictions(work.config.out / CLEAN / PREDICTIONS, work.dataset)
    source = work.source.model if work.source else None
    kept = AttackedBatches(folder.path)
    result = evaluate_case(case, work.model, task, work.dataset, work.config, work.progress, clean, source, kept)
    files = task.save_predictions(folder.file(PREDICTIONS), result.evaluation.predictions, work.dataset)
    figures = result.figures()
    folder.finish(figures, *(file.name for file in files))
    return figures, False


def _verify(work: _Work, eps: float) -> tuple[dict[str, Any], bool]:
    folder = work.store.open("verify", {**work.identity, "eps": eps}, work.inputs)
    if (done := _earlier(work, folder, "verify")) is not None:
        return done, True
    margins = verify(work.model, work.artifact.task, work.dataset, eps, work.config, work.progress)
    rows = [f"{key},{margin:.9g},{int(margin > 0)}" for key, margin in margins.items()]
    write_text(folder.file(MARGINS), "\n".join(["image_id,margin,verified", *rows, ""]))
    figures = {"eps": eps, "verified_accuracy": verified_accuracy(margins)}
    folder.finish(figures, MARGINS)
    return figures, False


def _certify(work: _Work) -> tuple[dict[str, Any], bool]:
    config, dataset = work.config, work.dataset
    smoothing = SmoothingConfig(
        config.sigma, config.certify_n0, config.certify_n, config.certify_alpha, config.batch_size, config.seed
    )
    identity = {**work.identity, **asdict(smoothing), "radii": list(config.certify_radii)}
    folder = work.store.open("certify", identity, work.inputs)
    if (done := _earlier(work, folder, "certify")) is not None:
        return done, True
    labels = {dataset[index].image_id: int(dataset[index].target) for index in range(len(dataset))}
    found = certify_all(work.model, dataset, smoothing, work.progress)
    rows = [f"{key},{labels[key]},{one.label},{one.radius:.9g}" for key, one in found.items()]
    write_text(folder.file(RADII), "\n".join(["image_id,label,predicted,radius", *rows, ""]))
    figures = {"sigma": config.sigma, **certified_figures(found, labels, config.certify_radii)}
    folder.finish(figures, RADII)
    return figures, False


def _check(work: _Work) -> tuple[dict[str, Any], bool]:
    inputs = dict(work.inputs) | ({"source": work.source.sha256} if work.source else {})
    folder = work.store.open("check", {**work.identity, "attack": attack_identity(STANDARD)}, inputs)
    if (done := _earlier(work, folder, "checks")) is not None:
        return done, True
    source = work.source.model if work.source else None
    report = check_evaluation(work.model, work.artifact.task, work.dataset, work.config, work.progress, source=source)
    checks = {"checks": [asdict(row) for row in report.rows]}
    folder.finish(checks)
    return checks, False


def _time(work: _Work) -> tuple[dict[str, Any], bool]:
    """Accelerate and time the model on the CPU."""
    machine = {"threads": torch.get_num_threads(), "processor": processor().name}
    identity = {**work.identity, "latency_runs": work.config.latency_runs, **machine}
    folder = work.store.open("latency", identity, work.inputs)
    if (done := _earlier(work, folder, "latency")) is not None:
        return done, True
    model, task = work.model.cpu(), work.artifact.task
    x = work.dataset[0].image[None]
    for _ in work.progress.track(range(1), "accelerating and timing", 1):
        compaction = compacted(work.artifact, x, work.progress)
        latency, report = accelerate_and_time(model, task, x, work.config.latency_runs, work.config, compaction)
    write_text(folder.file("acceleration.json"), json.dumps(report.to_json(), indent=2) + "\n")
    timing = {
        **_sizes(work, model, x),
        **latency_columns(latency),
        **postprocessing_columns(latency),
        **compaction_columns(latency, compaction),
        **machine,
    }
    folder.finish(timing, "acceleration.json")
    return timing, False


def _sizes(work: _Work, model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    artifact = work.artifact
    kept = artifact.masks or {name: torch.ones_like(c.weight.bool()) for name, c in prunable_layers(model).items()}
    groups = read_groups(work.config, artifact) if artifact.drops_filters else None
    return size_columns(model, count_costs(model, x, kept, groups), sparsity(kept))


def _earlier(work: _Work, folder: StageFolder, name: str) -> dict[str, Any] | None:
    done = folder.result()
    if done is not None:
        work.progress.message(f"{name}: finished earlier")
    return done


def _write_summary(
    work: _Work,
    cases: Mapping[str, Any],
    checks: CheckReport | None,
    timing: Mapping[str, Any] | None,
    proven: Mapping[str, Any],
) -> None:
    content: dict[str, Any] = {
        "model": work.artifact.task.spec.name,
        **dict(sorted(work.artifact.task.spec.arguments.items())),
        **{f"{name}_sha256": digest for name, digest in work.inputs.items()},
        "images": len(work.dataset),
        "image_size": work.dataset.image_size,
        **work.identity,
        "cases": cases,
    }
    content |= {name: figures for name, figures in proven.items() if figures}
    content |= {"checks": [asdict(row) for row in checks.rows]} if checks else {}
    content |= {"latency": timing} if timing else {}
    write_text(work.config.out / EVALUATION, json.dumps(content, indent=2) + "\n")


def _source(config: EvaluateStage, artifact: Checkpoint, dataset: Data) -> Checkpoint | None:
    """Open the model that attacks are transferred from; a file that does not say which holds one like the evaluated."""
    if config.transfer_from is None:
        return None
    spec = spec_of(config.transfer_from, artifact.task.spec.name) or artifact.task.spec
    return open_checkpoint(config.transfer_from, task_of(spec).for_data(dataset))
