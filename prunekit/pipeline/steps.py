"""The steps as functions: pre-train, score, prune, fine-tune. Each finds its finished work in the store.

    stage       what trains                                       what is written
    start       nothing                                           the model, if it is in no file yet
    pretrain    every parameter                                   model, for darknet's detectors also as its weights
    score       nothing                                           scores
    permute     nothing                                           the model with its channels in another order
    prune       scores and normalization, or nothing (one-shot)   masks and model
    optimize    scores and normalization, shared by all ratios    scores and model, nothing dropped
    finetune    every parameter, dropped weights held at zero     model

Those that train share one loop, one state file and one log; this table is all that tells them apart.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.attacks import PgdConfig, attack_identity, attack_named
from prunekit.attacks.presets import PAPER
from prunekit.compaction import permute_channels
from prunekit.errors import InputError
from prunekit.pipeline.checkpoint import MODEL, Checkpoint, Training, Workspace, open_checkpoint, save_model
from prunekit.pipeline.choices import TrainingChoices
from prunekit.pipeline.results import data_digest
from prunekit.pipeline.scoring import ScoreConfig, make_scores
from prunekit.pipeline.store import STATE, StageFolder
from prunekit.progress import Progress
from prunekit.prune import (
    ChannelGroups,
    FrozenMasks,
    MaskRule,
    StraightThrough,
    apply_masks,
    initial_scores,
    load_scores,
    prunable_layers,
    save_scores,
    score_named,
)
from prunekit.prune.blocks import PERMUTABLE
from prunekit.task import Data, Task
from prunekit.task_data import HasHoldout
from prunekit.training.augment import AugmentConfig
from prunekit.training.config import ScoreTraining, TrainConfig, require_sizes
from prunekit.training.data import ImagesOnDisk, read_into_memory
from prunekit.training.freezing import backbone
from prunekit.training.log import TrainingLog
from prunekit.training.loop import AfterStep, Perturbed, optimize
from prunekit.training.objectives import VERIFIED, ObjectiveConfig, make_objective
from prunekit.training.pool import chance_column, is_pool, pool_identity, pool_names
from prunekit.training.selection import HoldoutLoss, held_out
from prunekit.training.state import TrainState, load_averages, load_best, load_checkpoint, save_checkpoint

SCORES_FILE, LOG = "scores.safetensors", "losses.csv"
CHURN_EVERY = 10  # steps; counting it costs about as much as a step on a small net
# Larger data sets are read from disk in every epoch.
MAX_BYTES_IN_MEMORY = 2**30


def make_training(
    objective: str,
    train_attack: str,
    dataset: Data,
    sha256: str,
    progress: Progress,
    choices: TrainingChoices | None = None,
) -> Training:
    """Bind training data, which are read into memory if they are few enough, to an objective and a PGD preset.

    Where a training selects weights by held-out images, also to those that the data set has for that.
    """
    num_bytes = len(dataset) * 3 * dataset.image_size**2
    data = read_into_memory(dataset, progress) if num_bytes <= MAX_BYTES_IN_MEMORY else ImagesOnDisk(dataset)
    names = pool_names(train_attack) if is_pool(train_attack) else ()
    attack = PAPER if names else attack_named(train_attack)
    assert isinstance(attack, PgdConfig)  # configurations have made sure
    knobs = (choices.knobs(attack) if choices else ObjectiveConfig(attack=attack)).updated(pool=names)
    holdout = dataset.holdout() if choices and choices.selects and isinstance(dataset, HasHoldout) else None
    if holdout is None:
        return Training(data, sha256, objective, knobs)
    sha256 = f"{sha256} {data_digest(holdout, progress)}"
    return Training(data, sha256, objective, knobs, ImagesOnDisk(holdout))


def keep(workspace: Workspace, start: Checkpoint) -> Checkpoint:
    """Write a model that is in no file, untrained as a whole or in its heads; return any other one as it is."""
    if start.path is not None:
        return start
    folder = workspace.store.open("start", {}, {"model": start.sha256})
    if folder.result() is None:
        save_model(folder.file(MODEL), start.model, start.task.spec)
        folder.finish({}, MODEL)
    return _reopen(folder, start)


def pretrain(workspace: Workspace, start: Checkpoint, training: Training, config: TrainConfig) -> Checkpoint:
    """Train every parameter on the objective."""
    return _train(workspace, "pretrain", start, training, config)


def finetune(
    workspace: Workspace,
    start: Checkpoint,
    training: Training,
    config: TrainConfig,
    groups: ChannelGroups | None = None,
) -> Checkpoint:
    """Train a pruned detector with its masks held; `groups` for masks that drop whole filters."""
    if start.masks is None:
        raise InputError("Fine-tuning holds the masks of a pruned detector, but this one has none: prune it first.")
    return _train(workspace, "finetune", start, training, config, groups)


def require_prunable(start: Checkpoint) -> None:
    """Raise InputError, before any work, when a model has nothing to prune."""
    if not prunable_layers(start.model):
        raise InputError(f"Expected convolutions to prune, got none in {start.task.spec.name}.")


def score(
    workspace: Workspace, start: Checkpoint, name: str, config: ScoreConfig, training: Training | None
) -> tuple[dict[str, Tensor], str]:
    """Score every weight; return the scores and their file's SHA-256."""
    needs_images = score_named(name).needs_batches
    if needs_images and training is None:
        raise InputError(f"Scores {name!r} look at training images, but none are given: add --train-data.")
    settings = tuple(ScoreConfig.model_fields) if needs_images else ("seed",)
    identity: dict[str, Any] = {"name": name, **{setting: getattr(config, setting) for setting in settings}}
    if config.reference == "clean" and needs_images and training:
        identity["attack"] = attack_identity(training.objective_config.attack)
    inputs = {"model": start.sha256} | ({"data": training.sha256} if needs_images and training else {})
    folder = workspace.store.open("score", identity, inputs)
    if folder.result() is None:
        data = training.data if training else None
        attack = training.objective_config.attack if training else None
        scores = make_scores(start.model, start.task, name, config, data, attack, workspace.progress)
        save_scores(folder.file(SCORES_FILE), scores)
        folder.finish({}, SCORES_FILE)
    return load_scores(folder.file(SCORES_FILE), start.model), folder.output(SCORES_FILE)


def unpruned(start: Checkpoint) -> Checkpoint:
    """Return a model at ratio 0: a copy whose masks keep every weight, in memory alone since no file differs."""
    masks = {
        name: torch.ones_like(conv.weight, dtype=torch.bool) for name, conv in prunable_layers(start.model).items()
    }
    return replace(start, model=copy.deepcopy(start.model), masks=masks)


def permute(workspace: Workspace, start: Checkpoint, structure: str, ratio: float | None, image: Tensor) -> Checkpoint:
    """Reorder the channels of a model that is pruned in blocks, where that was asked for at a ratio."""
    if ratio is None or structure not in PERMUTABLE:
        return start
    identity = {"structure": structure, "ratio_percent": ratio}
    folder = workspace.store.open("permute", identity, {"model": start.sha256})
    if folder.result() is None:
        found = permute_channels(start.model, image, structure, ratio)
        save_model(folder.file(MODEL), found.model, start.task.spec)
        folder.finish({"moved": found.moved, "kept_before": found.kept_before, "kept_after": found.kept_after}, MODEL)
    return _reopen(folder, start)


def prune_one_shot(
    workspace: Workspace, start: Checkpoint, scores: Mapping[str, Tensor], scores_sha256: str, rule: MaskRule
) -> Checkpoint:
    """Drop what scores lowest, at once."""
    folder = workspace.store.open("prune", rule_identity(rule), {"model": start.sha256, "scores": scores_sha256})
    if folder.result() is None:
        model, masks = copy.deepcopy(start.model), rule(scores)
        apply_masks(model, masks, rule.groups if rule.cuts_filters else None)
        save_model(folder.file(MODEL), model, start.task.spec, masks, rule.cuts_filters)
        folder.finish({"churn": 0.0}, MODEL)
    return _reopen(folder, start)


def prune_optimized(
    workspace: Workspace,
    start: Checkpoint,
    scores: Mapping[str, Tensor],
    scores_sha256: str,
    rule: MaskRule,
    training: Training,
    config: TrainConfig,
) -> tuple[Checkpoint, float]:
    """Optimize the scores on the objective with weights frozen, then drop what scores lowest.

    Returns:
        The pruned detector, and the churn: the fraction of kept weights that the first masks had dropped.
    """
    config = _suited(config, start.task)
    folder = workspace.store.open(
        "prune",
        rule_identity(rule) | {"optimize": _identity(training, config)},
        {"model": start.sha256, "scores": scores_sha256, "data": training.sha256},
    )
    if folder.result() is None:
        model = copy.deepcopy(start.model)
        with _optimized(folder, workspace, model, start.task, scores, rule, training, config) as pruning:
            churn, masks = pruning.churn(), pruning.finish()
        save_model(folder.file(MODEL), model, start.task.spec, masks, rule.cuts_filters)
        folder.finish({"churn": churn.total, "churn_by_layer": churn.layers}, MODEL, LOG)
    result = folder.result()
    assert result is not None
    return _reopen(folder, start), float(result["churn"])


def optimize_scores(
    workspace: Workspace,
    start: Checkpoint,
    scores: Mapping[str, Tensor],
    scores_sha256: str,
    rule: MaskRule,
    training: Training,
    config: TrainConfig,
) -> tuple[Checkpoint, dict[str, Tensor], str]:
    """Optimize the scores by the masks of one ratio, so that `prune_one_shot` can prune by them at any.

    Returns:
        The detector with its normalizations trained and nothing dropped, the optimized scores, their file's SHA-256.
    """
    config = _suited(config, start.task)
    folder = workspace.store.open(
        "optimize",
        rule_identity(rule) | _identity(training, config),
        {"model": start.sha256, "scores": scores_sha256, "data": training.sha256},
    )
    if folder.result() is None:
        model = copy.deepcopy(start.model)
        with _optimized(folder, workspace, model, start.task, scores, rule, training, config) as pruning:
            churn, optimized = pruning.churn(), pruning.scores()
        save_scores(folder.file(SCORES_FILE), optimized)
        save_model(folder.file(MODEL), model, start.task.spec)
        folder.finish({"churn": churn.total, "churn_by_layer": churn.layers}, MODEL, SCORES_FILE, LOG)
    trained = _reopen(folder, start)
    return trained, load_scores(folder.file(SCORES_FILE), trained.model), folder.output(SCORES_FILE)


def rule_identity(rule: MaskRule) -> dict[str, Any]:
    """Return what a mask rule's masks depend on, beside the model."""
    names = ("ratio_percent", "structure", "scope", "filter_ratio_percent", "excluded")
    ratios = {"ratios": dict(rule.ratios)} if rule.ratios else {}
    return {name: getattr(rule, name) for name in names} | ratios


@contextmanager
def _optimized(
    folder: StageFolder,
    workspace: Workspace,
    model: nn.Module,
    task: Task,
    scores: Mapping[str, Tensor],
    rule: MaskRule,
    training: Training,
    config: TrainConfig,
) -> Iterator[StraightThrough]:
    """Train scores; inside the block the model is masked by them, afterwards it has its weights again."""
    with StraightThrough(model, initial_scores(model, scores), rule) as pruning:
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

        def log_churn(step: int) -> dict[str, float]:
            return {"churn": pruning.churn().total} if step % CHURN_EVERY == 0 else {}

        radius = config.score_perturbation if isinstance(config, ScoreTraining) else 0.0
        perturbed = partial(pruning.perturbed, radius) if radius else None
        what = "optimizing scores"
        hooks = [log_churn]
        state = _run(folder, workspace, model, task, parameters, training, config, what, hooks, ["churn"], perturbed)
        if config.selection == "holdout":
            load_best(state, model)
        yield pruning


def _train(
    workspace: Workspace,
    stage: str,
    start: Checkpoint,
    training: Training,
    config: TrainConfig,
    groups: ChannelGroups | None = None,
) -> Checkpoint:
    config = _suited(config, start.task)
    folder = workspace.store.open(stage, _identity(training, config), {"model": start.sha256, "data": training.sha256})
    if folder.result() is None:
        model = copy.deepcopy(start.model)
        with ExitStack() as stack:
            hooks: list[AfterStep] = []
            if start.masks is not None:
                frozen = stack.enter_context(FrozenMasks(model, start.masks, groups))
                hooks.append(lambda step: frozen.zero_dropped())
            parameters = dict(model.named_parameters())
            what = f"{stage} ({training.objective})"
            state = _run(folder, workspace, model, start.task, parameters, training, config, what, hooks)
            (load_best if config.selection == "holdout" else load_averages)(state, model)
            if start.masks is not None:
                frozen.zero_dropped()
        save_model(folder.file(MODEL), model, start.task.spec, start.masks, start.drops_filters)
        files = [MODEL, LOG]
        if start.masks is None:
            files += start.task.export(model, folder.path, state.step * config.batch_size)
        folder.finish({"steps": state.step}, *files)
    return _reopen(folder, start)


def _run(
    folder: StageFolder,
    workspace: Workspace,
    model: nn.Module,
    task: Task,
    parameters: Mapping[str, nn.Parameter],
    training: Training,
    config: TrainConfig,
    description: str,
    after_step: Sequence[AfterStep],
    extra_columns: Sequence[str] = (),
    perturbed: Perturbed | None = None,
) -> TrainState:
    """Train from the state that the folder holds, or from the start."""
    path = folder.file(STATE)
    state = _saved_state(path, workspace, config) if path.is_file() else None
    objective = make_objective(training.objective, task, training.objective_config)
    data, judge = training.data, None
    extra_columns = [*extra_columns, *(chance_column(name) for name in objective.config.pool)]
    if config.selection == "holdout":
        data, holdout = (data, training.holdout) if training.holdout else held_out(data)
        judge = HoldoutLoss(holdout, objective, config)
        extra_columns = [*extra_columns, "holdout_loss"]
    with TrainingLog(folder.path, state.step if state else 0, extra_columns) as log:
        return optimize(
            model,
            parameters,
            data,
            objective,
            config,
            state=state,
            save=lambda state: save_checkpoint(path, state, config),
            log=log,
            progress=workspace.progress,
            after_step=after_step,
            description=description,
            frozen=backbone(model, task.spec) if config.freeze else (),
            perturbed=perturbed,
            judge=judge,
        )


def _saved_state(path: Path, workspace: Workspace, config: TrainConfig) -> TrainState | None:
    """Return where an interrupted process stopped; nothing of a state that the disk spoilt is trusted."""
    try:
        return load_checkpoint(path, config)
    except InputError as error:
        workspace.progress.message(f"{error}: starting this stage over")
        return None


def _identity(training: Training, config: TrainConfig) -> dict[str, Any]:
    knobs: dict[str, Any] = {name: repr(value) for name, value in vars(training.objective_config).items()}
    if training.objective not in VERIFIED:
        del knobs["verified"]  # it has no part in the others
    knobs["attack"] = attack_identity(training.objective_config.attack)
    del knobs["pool"]
    if training.objective_config.pool:
        knobs["pool"] = pool_identity(training.objective_config.pool)
    return {"objective": training.objective, "knobs": knobs, "training": config.identity()}


def _suited(config: TrainConfig, task: Task) -> TrainConfig:
    """Return settings that say how images vary: as suits the task where they leave it open."""
    require_sizes(config, task.input_multiple)
    return config if config.augmentation else config.updated(augmentation=AugmentConfig(**task.augmentation))


def _reopen(folder: StageFolder, start: Checkpoint) -> Checkpoint:
    return open_checkpoint(folder.file(MODEL), start.task)
