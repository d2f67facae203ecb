"""The main job: pre-train, then for each variant and ratio prune, fine-tune, evaluate, make fast, time, write down."""

from __future__ import annotations

from pathlib import Path

import torch

from prunekit.environment import describe_environment, thread_count
from prunekit.evaluation.evaluate import Subject, require_attackable
from prunekit.pipeline.checkpoint import (
    Checkpoint,
    Training,
    Workspace,
    open_checkpoint,
    requested_spec,
    require_same_spec,
    spec_of,
    starting_model,
)
from prunekit.pipeline.conditions import require_conditions
from prunekit.pipeline.config import RunConfig
from prunekit.pipeline.examples import save_clean_examples
from prunekit.pipeline.proofs import require_bounds, require_provable
from prunekit.pipeline.results import Inputs, data_digest, open_data, require_same_classes
from prunekit.pipeline.run_folder import OpenRun, RunFolder, check_out, open_run
from prunekit.pipeline.steps import keep, make_training, pretrain, require_prunable
from prunekit.pipeline.store import WorkStore
from prunekit.pipeline.unit import Job, do_unit
from prunekit.pipeline.variants import Unit
from prunekit.progress import Progress, SilentProgress
from prunekit.prune import ChannelGroups, channel_groups
from prunekit.prune.mask_rule import STRUCTURES_OF_FILTERS
from prunekit.task import Data, task_of
from prunekit.training.config import require_device, require_sizes


def run(config: RunConfig, progress: Progress | None = None, stages: Path | None = None) -> RunFolder:
    """Do the main job, or what is left of it, and return its folder.

    What is finished is not done again; whatever ended the process, only the unit in flight goes on from its last saved
    state.

    Args:
        config: What to do.
        progress: Told how far the job has come.
        stages: Where trainings and scores are kept, for several runs to share; None keeps them in the run's folder.

    Raises:
        InputError: When something that the user gave is wrong; found out before the long work begins.
    """
    progress = progress or SilentProgress()
    check_out(config)
    require_device(config.device)
    with thread_count(config.threads):
        dataset, train_dataset, given = _open_inputs(config, progress)
        if any(unit.is_pruned for unit in config.units):
            require_prunable(given)
        require_bounds(Subject(given.model, given.task, dataset, config, progress), config.verified_eps(given.task))
        inputs = Inputs(
            given.sha256,
            data_digest(dataset, progress),
            data_digest(train_dataset, progress) if train_dataset is not None else "",
        )
        with open_run(config, inputs) as folder:
            folder.write_json("environment.json", describe_environment())
            folder.log(f"{len(config.units)} units: {', '.join(variant.name for variant in config.variants)}")
            training = None
            if train_dataset is not None:
                digest = inputs.train_data_sha256
                training = make_training(config.objective, config.train_attack, train_dataset, digest, progress, config)
            store = WorkStore(folder.root / "stages") if stages is None else WorkStore(stages, is_shared=True)
            job = _prepare(config, dataset, given, training, folder, Workspace(store, progress))
            for unit in config.units:
                _finish_unit(job, folder, unit)
            if config.transfer:
                _forget_attacks(job, job.start)
            folder.write_results()
    return folder


def _prepare(
    config: RunConfig,
    dataset: Data,
    given: Checkpoint,
    training: Training | None,
    folder: OpenRun,
    workspace: Workspace,
) -> Job:
    """Do what all units share: pre-training, and reading the channel groups."""
    given = start = keep(workspace, given)
    if config.pretrain.epochs > 0 and training is not None:
        start = pretrain(workspace, given, training, config.pretrain)
    groups: ChannelGroups | None = None
    if config.keep_stem_and_heads or {*STRUCTURES_OF_FILTERS} & {*config.structure}:
        groups = channel_groups(start.model, torch.zeros(1, 3, dataset.image_size, dataset.image_size))
    examples = save_clean_examples(folder, dataset, start.task)
    sha256 = folder.inputs.data_sha256
    return Job(workspace.store, workspace.progress, config, dataset, sha256, given, start, training, groups, examples)


def _finish_unit(job: Job, folder: OpenRun, unit: Unit) -> None:
    progress = job.progress
    if folder.finished(unit):
        progress.message(f"{unit.label}: finished earlier")
        return
    row, files, artifact = do_unit(job, folder, unit)
    assert artifact.path is not None  # a stage has written it, or it was given
    folder.finish(unit, row, files, artifact.path, artifact.task.spec)
    if not job.config.transfer or artifact.sha256 != job.start.sha256:  # whose attacks are transferred to all units
        _forget_attacks(job, artifact)
    shown = job.start.task.figures[0]
    columns = row.columns
    clean, attacked = columns.get(shown.column), columns.get(f"attacked_{shown.column}")
    summary = f"{unit.label}: {shown.name} {_show(clean)}, attacked {_show(attacked)}, {columns['latency_ms']:.1f} ms"
    folder.log(summary)
    progress.message(summary)


def _forget_attacks(job: Job, artifact: Checkpoint) -> None:
    """Remove attacked images that no unit needs any more."""
    if (kept := job.attacked_batches(artifact)) is not None:
        kept.forget()


def _open_inputs(config: RunConfig, progress: Progress) -> tuple[Data, Data | None, Checkpoint]:
    """Open the data and load the weights, cheapest check first."""
    found = None if config.weights is None else spec_of(config.weights, config.model)
    task = task_of(requested_spec(config.model, config.width, found, config.arguments))
    require_provable(config, task)
    dataset = open_data(config, task, config.data, progress, keep=True)
    task = task.for_data(dataset)
    require_attackable([config.attack], task, dataset)
    require_conditions(config, task, dataset)
    train_dataset = None
    if config.train_data is not None:
        train_dataset = open_data(config, task, config.train_data, progress, learn=True)
        require_same_spec(task, train_dataset)
        require_same_classes(dataset, train_dataset)
        for training in (config.pretrain, config.optimize, config.finetune):
            require_sizes(training, task.input_multiple)
    if config.pretrain.epochs == 0 and config.weights is not None:
        return dataset, train_dataset, open_checkpoint(config.weights, task)
    return dataset, train_dataset, starting_model(config.weights, task, config.seed, progress)


def _show(precision: float | None) -> str:
    return "–" if precision is None else f"{precision:.3f}"
