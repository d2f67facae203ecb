"""One model's figures, clean, under attacks and under corruptions, from files to files: what `prunekit evaluate` does.

Each attack is a piece of work of its own in the folder, as are each corruption at each severity, the checks and the
timing: what is finished stays, and more can be asked for later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.attacks import PRESETS, attack_identity
from prunekit.attacks.presets import STANDARD
from prunekit.evaluation.attacked_batches import AttackedBatches
from prunekit.evaluation.corruptions.catalog import Cell
from prunekit.evaluation.corruptions.summary import CorruptionSummary, require_corruptible
from prunekit.evaluation.evaluate import (
    CLEAN,
    EvaluationCase,
    Subject,
    evaluate_case,
    evaluation_cases,
    require_attackable,
)
from prunekit.evaluation.latency import accelerate_and_time
from prunekit.evaluation.overload import suppressing
from prunekit.evaluation.patch import PATCH, goal_label, halves
from prunekit.evaluation.sanity_checks import check_evaluation
from prunekit.evaluation.sanity_rules import Check, CheckReport
from prunekit.evaluation.verification import labels_images
from prunekit.pipeline.checkpoint import Checkpoint, Workspace, open_checkpoint, spec_of
from prunekit.pipeline.command_config import EvaluateStage
from prunekit.pipeline.commands import keep_config, opened, prepared, read_groups, task_for
from prunekit.pipeline.corruptions import (
    CELLS,
    CLEAN_EXAMPLE,
    Baseline,
    keep_decoded,
    read_baseline,
    summarized,
    write_cell,
    write_clean_example,
    write_table,
)
from prunekit.pipeline.deployed import DeployedModel
from prunekit.pipeline.deployed_config import DEPLOYED
from prunekit.pipeline.deployed_evaluation import (
    DeployedWork,
    comparison,
    made_in_int8,
    open_all,
    require_on_cpu,
)
from prunekit.pipeline.overload import IMAGES, case_folder, counter, is_overload, measure_overload, write_images
from prunekit.pipeline.patch import patch_identity, write_patch
from prunekit.pipeline.proofs import radii_identity, require_bounds, require_provable, write_margins, write_radii
from prunekit.pipeline.results import (
    compaction_columns,
    data_digest,
    latency_columns,
    open_data,
    postprocessing_columns,
    size_columns,
)
from prunekit.pipeline.store import StageFolder, command_store, write_json
from prunekit.pipeline.unit import compacted
from prunekit.processor import processor
from prunekit.progress import Progress, SilentProgress
from prunekit.prune import count_costs, prunable_layers, sparsity
from prunekit.task import Data, Figure, Figures, LabelsImages, task_of

EVALUATION, PREDICTIONS = "evaluation.json", "detections"
_TITLES = {"check": "checks"}  # what messages call a part, where it is not its folder's name
#: A part's result, and whether it was there already.
Part = tuple[dict[str, Any], bool]
#: Does a part's work in its folder; returns the result and the names of its files.
Make = Callable[[StageFolder], tuple[dict[str, Any], list[str]]]


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
        corruptions: What the figures under corruptions amount to, if they were asked for.
        overload: Milliseconds under each attack on latency that was asked for, by its name.
        patch: Figures clean, under a random and under a trained patch, if they were asked for.
        deployed: The figures of the checkpoint and of each deployed model, if any was asked for: name, heading, value.
        shown: The figures that a table shows.
        was_finished: Whether all of it was there already.
    """

    file: Path
    cases: dict[str, dict[str, float | None]]
    checks: CheckReport | None
    timing: dict[str, Any] | None
    verified: dict[str, Any] | None
    certified: dict[str, Any] | None
    corruptions: CorruptionSummary | None
    overload: dict[str, dict[str, Any]]
    patch: dict[str, Any] | None
    deployed: dict[str, dict[str, float | None]]
    was_finished: bool
    shown: Sequence[Figure]


@dataclass(frozen=True)
class _Work(Workspace):
    """An evaluation's workspace; its parts' results depend on `identity` and `inputs`."""

    config: EvaluateStage
    artifact: Checkpoint
    source: Checkpoint | None
    dataset: Data
    baseline: Baseline | None
    deployed: Mapping[str, DeployedModel]
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def subject(self) -> Subject:
        return Subject(self.artifact.model, self.artifact.task, self.dataset, self.config, self.progress)

    @property
    def source_model(self) -> nn.Module | None:
        return self.source.model if self.source else None

    def part(
        self, name: str, identity: Mapping[str, Any], make: Make, from_source: bool = False, is_told: bool = True
    ) -> Part:
        """Return what a part makes in its folder, or has made there, and whether it was there already; tell so."""
        inputs = {**self.inputs, **({"source": self.source.sha256} if from_source and self.source else {})}
        folder = self.store.open(name, {**self.identity, **identity}, inputs)
        if (done := folder.result()) is not None:
            if is_told:
                self.progress.message(f"{_TITLES.get(name, name)}: finished earlier")
            return done, True
        result, files = make(folder)
        folder.finish(result, *files)
        return result, False


def evaluate_stage(config: EvaluateStage, progress: Progress | None = None) -> EvaluationOutcome:
    """Evaluate a model clean, under each attack, and as far as asked check and time it."""
    progress = progress or SilentProgress()
    with prepared(config, "evaluate"):
        task = task_for(config, config.weights)
        require_provable(config, task)
        if config.corruption_baseline is not None:
            labels_images(task, "--corruption-baseline")
        dataset = open_data(config, task, config.data, progress, keep=True)
        if config.cells:
            keep_decoded(dataset)
        artifact = opened(config.weights, task, dataset)
        require_attackable(config.attacks, artifact.task, dataset)
        _require_patchable(config, artifact, dataset)
        require_bounds(Subject(artifact.model, artifact.task, dataset, config, progress), config.verify)
        source = _source(config, artifact, dataset)
        if config.deployed or config.deploys_int8:
            require_on_cpu(config.device)
        deployed = open_all(config.deployed, Subject(artifact.model, artifact.task, dataset, config, progress))
        for detector in (artifact, *([source] if source else [])):
            detector.model.to(config.device)
        names = ("score_threshold", "iou_threshold", "max_detections", "max_candidates", "batch_size", "seed")
        identity = {name: getattr(config, name) for name in names}
        inputs = {"model": artifact.sha256, "data": data_digest(dataset, progress)}
        baseline = _baseline(config, inputs["data"])
        with command_store(config.out, "evaluate") as store:
            keep_config(config)
            store.open("evaluate", identity, inputs)  # claims the folder for this detector and this data
            work = _Work(store, progress, config, artifact, source, dataset, baseline, deployed, identity, inputs)
            return _evaluate(work)


def _evaluate(work: _Work) -> EvaluationOutcome:
    config = work.config
    cases = {case.name: _case(work, case) for case in evaluation_cases(config.attacks, work.source is not None)}
    asked = {
        "certified": (_certify, bool(config.certify)),
        "verified": (_verify, config.verify is not None),
        "checks": (_check, config.check),
        PATCH: (_patch, PATCH in config.attack),
        "latency": (_time, config.latency),
    }
    figures = {name: case for name, (case, _) in cases.items()}
    corruptions, finished_before = _corrupt(work, figures[CLEAN])  # first, as timing leaves the model on the CPU
    parts = {name: do(work) for name, (do, is_asked) in asked.items() if is_asked}
    overload = {name: _time_overload(work, name, figures[CLEAN]) for name in config.attacks if is_overload(name)}
    deployed = _deployed(work)
    done = (*cases.values(), *parts.values(), *overload.values(), *deployed.values())
    was_finished = finished_before and all(finished for _, finished in done)
    found: dict[str, Any] = {name: result for name, (result, _) in parts.items()}
    found |= {"checks": found["checks"]["checks"]} if "checks" in found else {}
    found |= {"corruptions": corruptions.figures()} if corruptions is not None else {}
    found |= {"overload": {name: result for name, (result, _) in overload.items()}} if overload else {}
    found |= {DEPLOYED: {name: result for name, (result, _) in deployed.items()}} if deployed else {}
    _write_summary(work, figures, found)
    shown = work.artifact.task.figures
    return EvaluationOutcome(
        config.out / EVALUATION,
        figures,
        checks=CheckReport([Check(**row) for row in found["checks"]]) if "checks" in found else None,
        timing=found.get("latency"),
        verified=found.get("verified"),
        certified=found.get("certified"),
        corruptions=corruptions,
        overload=found.get("overload", {}),
        patch=found.get(PATCH),
        deployed=comparison({"cases": figures, **found}, shown[0]) if deployed else {},
        was_finished=was_finished,
        shown=shown,
    )


def _case(work: _Work, case: EvaluationCase) -> Part:
    """Return one case's figures."""
    task = work.artifact.task

    def make(folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
        # From the file, so that figures do not depend on which process evaluated the clean images.
        is_clean = case.attack == CLEAN
        clean = {} if is_clean else task.load_predictions(work.config.out / CLEAN / PREDICTIONS, work.dataset)
        kept = AttackedBatches(folder.path)
        seen = counter(work.subject) if is_overload(case.attack) else None
        result = evaluate_case(case, work.subject, clean, work.source_model, kept, seen)
        files = task.save_predictions(folder.file(PREDICTIONS), result.evaluation.predictions, work.dataset)
        kept.forget()
        found, more = write_images(folder, work.subject, seen) if seen is not None else ({}, [])
        return result.figures() | found, [*(file.name for file in files), *more]

    return work.part(case_folder(case.name), _attack_of(case.attack), make, case.transfer)


def _attack_of(name: str) -> dict[str, Any]:
    return {"attack": attack_identity(PRESETS.get(name))}


def _corrupt(work: _Work, clean: Figures) -> tuple[CorruptionSummary | None, bool]:
    """Return what the figures under corruptions amount to, and whether all of them were there already."""
    cells, subject = work.config.cells, work.subject
    if not cells:
        return None, True
    make = partial(write_clean_example, subject=subject)
    work.part(f"{CELLS}/{CLEAN_EXAMPLE}", {}, make, is_told=False)
    found: dict[Cell, Part] = {}
    for cell in work.progress.track(cells, "corruptions", len(cells)):
        make = partial(write_cell, subject=subject, cell=cell)
        found[cell] = work.part(f"{CELLS}/{cell.name}", cell.identity, make, is_told=False)
    if earlier := sum(finished for _, finished in found.values()):
        work.progress.message(f"corruptions: {earlier} of {len(cells)} cells finished earlier")
    figures = {cell: result for cell, (result, _) in found.items()}
    write_table(work.config.out, clean, figures, _about(work))
    is_classifier = isinstance(work.artifact.task, LabelsImages)
    return summarized(subject, clean, figures, is_classifier, work.baseline), earlier == len(cells)


def _deployed(work: _Work) -> dict[str, Part]:
    """Return the figures of each deployed model by its name."""
    config, models = work.config, {**work.deployed}
    if config.deploys_int8:
        models |= made_in_int8(work.artifact, work.subject, config, work.part, _machine())
    patch = config.patch_options if PATCH in config.attack else None
    asked = (config.attacks, config.cells, work.baseline, patch)
    return {
        name: DeployedWork(name, model, work.subject, *asked, _about(work), config.out, work.part).evaluate(
            config.latency
        )
        for name, model in models.items()
    }


def _patch(work: _Work) -> Part:
    options = work.config.patch_options
    return work.part(PATCH, patch_identity(options), lambda folder: write_patch(folder, work.subject, options))


def _require_patchable(config: EvaluateStage, artifact: Checkpoint, dataset: Data) -> None:
    """Raise InputError, before any work, where a patch was asked for that cannot be made."""
    if PATCH in config.attack:
        halves(dataset)
        require_corruptible(dataset)
        goal_label(config.patch_goal, dataset)
        suppressing(artifact.task)


def _verify(work: _Work) -> Part:
    eps = work.config.verify
    assert eps is not None
    return work.part("verify", {"eps": eps}, lambda folder: write_margins(folder, work.subject, eps))


def _certify(work: _Work) -> Part:
    config = work.config
    return work.part("certify", radii_identity(config), lambda folder: write_radii(folder, work.subject, config))


def _check(work: _Work) -> Part:
    def make(folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
        report = check_evaluation(work.subject, source=work.source_model)
        return {"checks": [asdict(row) for row in report.rows]}, []

    return work.part("check", {"attack": attack_identity(STANDARD)}, make, from_source=True)


def _time(work: _Work) -> Part:
    """Accelerate and time the model on the CPU."""
    machine = _machine()

    def make(folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
        model, task = work.artifact.model.cpu(), work.artifact.task
        x = work.dataset[0].image[None]
        for _ in work.progress.track(range(1), "accelerating and timing", 1):
            compaction = compacted(work.artifact, x, work.progress)
            deployed = accelerate_and_time(model, task, x, work.config.latency_runs, work.config, compaction)
        write_json(folder.file("acceleration.json"), deployed.report.to_json())
        latency = deployed.latency
        columns = latency_columns(latency) | postprocessing_columns(latency) | compaction_columns(latency, compaction)
        return {**_sizes(work, model, x), **columns, **machine}, ["acceleration.json"]

    return work.part("latency", {"latency_runs": work.config.latency_runs, **machine}, make)


def _time_overload(work: _Work, attack: str, clean: Figures) -> Part:
    """Time the accelerated model and what follows it on images under an attack on latency."""
    machine = _machine()

    def make(folder: StageFolder) -> tuple[dict[str, Any], list[str]]:
        images = work.config.out / case_folder(attack) / IMAGES
        return measure_overload(images, work.subject, clean) | machine, []

    identity = {"latency_runs": work.config.latency_runs, **machine, **_attack_of(attack)}
    return work.part(f"{case_folder(attack)}/timing", identity, make)


def _machine() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "processor": processor().name}


def _sizes(work: _Work, model: nn.Module, x: torch.Tensor) -> dict[str, Any]:
    artifact = work.artifact
    kept = artifact.masks or {name: torch.ones_like(c.weight.bool()) for name, c in prunable_layers(model).items()}
    groups = read_groups(work.config, artifact) if artifact.drops_filters else None
    return size_columns(model, count_costs(model, x, kept, groups), sparsity(kept))


def _about(work: _Work) -> dict[str, Any]:
    """Return what figures are of: the model, the data, and how both are looked at."""
    return {
        "model": work.artifact.task.spec.name,
        **dict(sorted(work.artifact.task.spec.arguments.items())),
        **{f"{name}_sha256": digest for name, digest in work.inputs.items()},
        "images": len(work.dataset),
        "image_size": work.dataset.image_size,
        **work.identity,
    }


def _write_summary(work: _Work, cases: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    names = ("verified", "certified", "corruptions", PATCH, "checks", "latency", "overload", DEPLOYED)
    content = {**_about(work), "cases": cases, **{name: found[name] for name in names if name in found}}
    write_json(work.config.out / EVALUATION, content)


def _baseline(config: EvaluateStage, data_sha256: str) -> Baseline | None:
    path = config.corruption_baseline
    return None if path is None else read_baseline(path, config.cells, data_sha256)


def _source(config: EvaluateStage, artifact: Checkpoint, dataset: Data) -> Checkpoint | None:
    """Open the model that attacks are transferred from; a file that does not say which holds one like the evaluated."""
    if config.transfer_from is None:
        return None
    spec = spec_of(config.transfer_from, artifact.task.spec.name) or artifact.task.spec
    return open_checkpoint(config.transfer_from, task_of(spec).for_data(dataset))
