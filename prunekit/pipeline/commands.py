"""One stage at a time, from files to files: what `prunekit train`, `score`, `prune` and `finetune` do.

The stages are those of a run, with the same settings and so the same results; only the folder is another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunekit.compaction import save
from prunekit.config import CONFIG, write_settings
from prunekit.environment import thread_count
from prunekit.errors import InputError
from prunekit.evaluation.sensitivity import SensitivityConfig
from prunekit.pipeline.allocation import Sharing, allocate_step, sensitivity_step
from prunekit.pipeline.budget_config import SENSITIVITIES
from prunekit.pipeline.checkpoint import (
    MODEL,
    Checkpoint,
    Training,
    Workspace,
    example_image,
    open_checkpoint,
    requested_spec,
    save_model,
    spec_of,
    starting_model,
)
from prunekit.pipeline.choices import TrainingChoices, wrong_image_size
from prunekit.pipeline.command_config import (
    DetectorChoices,
    FinetuneStage,
    MrpfStage,
    PruneStage,
    ScoreStage,
    SensitivityStage,
    TrainStage,
)
from prunekit.pipeline.mrpf import prune_in_rounds
from prunekit.pipeline.results import data_digest, open_data
from prunekit.pipeline.steps import (
    LOG,
    SCORES_FILE,
    finetune,
    make_training,
    permute,
    pretrain,
    prune_one_shot,
    prune_optimized,
    require_prunable,
    score,
)
from prunekit.pipeline.store import (
    DONE,
    StageFolder,
    WorkStore,
    check_command_folder,
    command_store,
    sha256,
    write_json,
)
from prunekit.pipeline.unit import compacted
from prunekit.progress import Progress, SilentProgress
from prunekit.prune import ChannelGroups, MaskRule, channel_groups, conv_groups, load_scores, score_named, sparsity
from prunekit.prune.mask_rule import STRUCTURES_OF_FILTERS
from prunekit.task import Data, Task, task_of
from prunekit.training.config import require_device


@dataclass(frozen=True)
class StageOutcome:
    """What a stage's command made.

    Attributes:
        files: The results, the first one being what the next stage takes.
        was_finished: Whether all was there already, whole and from the same work.
        summary: A few figures in words.
    """

    files: tuple[Path, ...]
    was_finished: bool
    summary: str = ""


def train_stage(config: TrainStage, progress: Progress | None = None) -> StageOutcome:
    """Train a model from given weights or from scratch."""
    progress = progress or SilentProgress()
    with prepared(config, "pretrain"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True)
        task = task.for_data(dataset)
        if config.fit_anchors:
            task = task.fitted(dataset, config.seed)
        start = starting_model(config.weights, task, config.seed, progress)
        if config.fit_anchors:  # the same numbers mean other boxes
            start = replace(start, sha256=hashlib.sha256(f"{start.sha256} {task.spec}".encode()).hexdigest())
        if start.masks is not None:
            raise InputError(f"--weights: {config.weights} is pruned, and training would undo that: use finetune.")
        data_sha256 = data_digest(dataset, progress)
        with _workspace(config, "pretrain", progress) as workspace:
            before = _stamp(config.out)
            training = _training(config, dataset, data_sha256, progress)
            pretrain(workspace, start, training, config.pretrain)
            return _outcome(config.out, before, MODEL, *_exports(config.out))


def finetune_stage(config: FinetuneStage, progress: Progress | None = None) -> StageOutcome:
    """Train a pruned model with its masks held."""
    progress = progress or SilentProgress()
    with prepared(config, "finetune"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True)
        start = opened(config.weights, task, dataset)
        if start.masks is None:
            raise InputError(f"--weights: expected a pruned model, but {config.weights} has no masks: prune it.")
        groups = read_groups(config, start) if start.drops_filters else None
        data_sha256 = data_digest(dataset, progress)
        with _workspace(config, "finetune", progress) as workspace:
            before = _stamp(config.out)
            training = _training(config, dataset, data_sha256, progress)
            tuned = finetune(workspace, start, training, config.finetune, groups)
            return _outcome(config.out, before, MODEL, summary=_density(tuned))


def score_stage(config: ScoreStage, progress: Progress | None = None) -> StageOutcome:
    """Score every weight of a model."""
    progress = progress or SilentProgress()
    with prepared(config, "score"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True) if config.data is not None else None
        start = opened(config.weights, task, dataset)
        require_prunable(start)
        training = _scoring_images(config.scores, config.train_attack, dataset, progress)
        with _workspace(config, "score", progress) as workspace:
            before = _stamp(config.out)
            score(workspace, start, config.scores, config, training)
            return _outcome(config.out, before, SCORES_FILE)


def prune_stage(config: PruneStage, progress: Progress | None = None) -> StageOutcome:
    """Prune a model, by scores that are made, read, or made or read and then optimized."""
    progress = progress or SilentProgress()
    with prepared(config, "prune"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True) if config.data is not None else None
        start = opened(config.weights, task, dataset)
        given = None
        if config.scores_file is not None:
            given = load_scores(config.scores_file, start.model), sha256(config.scores_file)
        name = config.scores or "scaled"
        training = None
        if config.optimize_scores:
            assert dataset is not None  # the configuration has made sure
            training = _training(config, dataset, data_digest(dataset, progress), progress)
        elif config.allocation == "mrs" and config.sensitivities is None and dataset is not None:
            training = make_training("clean", config.train_attack, dataset, data_digest(dataset, progress), progress)
        elif given is None:
            training = _scoring_images(name, config.train_attack, dataset, progress)
        rule = _rule(config, start)
        with _workspace(config, "prune", progress) as workspace:
            before = _stamp(config.out)
            start = permute(workspace, start, config.structure, config.permute_channels_at, _image(config, start))
            scores, scores_sha256 = given or score(workspace, start, name, config, training)
            if config.shared:
                sharing = Sharing(
                    config.allocation, config.shared, config.sensitivity, config.seed, config.sensitivities
                )
                rule = allocate_step(
                    workspace, start, scores, scores_sha256, rule, sharing, training, _image(config, start)
                )
            if config.optimize_scores and training is not None:
                pruned, churn = prune_optimized(
                    workspace, start, scores, scores_sha256, rule, training, config.optimize
                )
                return _outcome(config.out, before, MODEL, summary=f"{_density(pruned)}, churn {churn:.1%}")
            pruned = prune_one_shot(workspace, start, scores, scores_sha256, rule)
            return _outcome(config.out, before, MODEL, summary=_density(pruned))


def sensitivity_stage(config: SensitivityStage, progress: Progress | None = None) -> StageOutcome:
    """Measure how sensitive each module of a model is."""
    progress = progress or SilentProgress()
    with prepared(config, "sensitivity"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True)
        start = opened(config.weights, task, dataset)
        training = make_training("clean", "paper", dataset, data_digest(dataset, progress), progress)
        with _workspace(config, "sensitivity", progress) as workspace:
            before = _stamp(config.out)
            settings = SensitivityConfig(**{name: getattr(config, name) for name in SensitivityConfig.model_fields})
            sensitivity_step(workspace, start, training, settings, config.seed)
            return _outcome(config.out, before, SENSITIVITIES)


def mrpf_stage(config: MrpfStage, progress: Progress | None = None) -> StageOutcome:
    """Prune a model in rounds; what an interrupted command finished is not done again."""
    progress = progress or SilentProgress()
    with prepared(config, "mrpf"):
        task = task_for(config, config.weights)
        dataset = open_data(config, task, config.data, progress, learn=True)
        start = starting_model(config.weights, task.for_data(dataset), config.seed, progress)
        if start.masks is not None:
            raise InputError(f"--weights: expected a model that is not pruned, but {config.weights} has masks.")
        data_sha256, image = data_digest(dataset, progress), example_image(dataset.image_size)
        rule = _rule(config, start)
        with _workspace(config, "mrpf", progress) as workspace:
            before = _stamp(config.out)
            inputs = {"model": start.sha256, "data": data_sha256}
            folder = workspace.store.open("mrpf", config.model_dump(mode="json", exclude=_PLACES), inputs)
            if folder.result() is None:
                training = _training(config, dataset, data_sha256, progress)
                rounds = Workspace(WorkStore(config.out / "stages"), progress)
                pruned, done = prune_in_rounds(rounds, config, start, training, rule, image)
                folder.finish({}, *_write_pruned(folder, pruned, done, image, progress))
            names = [name for name in (MODEL, COMPACTED, ROUNDS) if folder.file(name).is_file()]
            return _outcome(config.out, before, *names)


# Of a configuration, what has no part in the result.
_PLACES = {"weights", "data", "out", "workers", "device", "threads", "plugin", "recipe", "task"}
COMPACTED, ROUNDS = "model.prunekit", "rounds.json"


def _write_pruned(
    folder: StageFolder, pruned: Checkpoint, rounds: list[dict[str, Any]], image: torch.Tensor, progress: Progress
) -> list[str]:
    """Write a pruned model, without its dropped filters too if it lost any, and how it came about; return the names."""
    save_model(folder.file(MODEL), pruned.model, pruned.task.spec, pruned.masks, pruned.drops_filters)
    write_json(folder.file(ROUNDS), rounds)
    small = compacted(pruned, image, progress)
    if small is not None:
        save(small, folder.file(COMPACTED))
    return [MODEL, ROUNDS, *([COMPACTED] if small is not None else [])]


@contextmanager
def prepared(config: DetectorChoices, stage: str) -> Iterator[None]:
    """Check what can be checked before anything is read; use the configuration's threads inside the block."""
    check_command_folder(config.out, stage)
    require_device(config.device)
    with thread_count(config.threads):
        yield


def task_for(config: DetectorChoices, weights: Path | None) -> Task:
    """Return the task of the model that the weights' file, or else the options say.

    Raises:
        InputError: When they do not say it, or the model does not take such images.
    """
    found = spec_of(weights, config.model) if weights is not None else None
    name = config.model or (found.name if found else None)
    if name is None and weights is None:
        raise InputError("--model: training from scratch needs to know which model: add --model, or --weights.")
    if name is None:
        raise InputError(f"--model: {weights} does not say which model it holds: add --model.")
    task = task_of(requested_spec(name, config.width, found, config.arguments))
    if wrong := wrong_image_size(config.image_size, task):
        raise InputError(f"{wrong}.")
    return task


def opened(weights: Path, task: Task, dataset: Data | None) -> Checkpoint:
    """Open a model of the architecture that its file, or else the options and the data, say.

    Raises:
        InputError: When they contradict each other, or do not say enough.
    """
    if dataset is not None:
        return open_checkpoint(weights, task.for_data(dataset))
    says_itself = spec_of(weights, task.spec.name) is not None
    return open_checkpoint(weights, task if says_itself else task.for_weights(weights))


def read_groups(config: DetectorChoices, start: Checkpoint) -> ChannelGroups:
    """Read which channels of a model go together."""
    return channel_groups(start.model, _image(config, start))


def _image(config: DetectorChoices, start: Checkpoint) -> torch.Tensor:
    """Return an image to trace, count and measure on, [1, 3, H, W]."""
    return example_image(config.image_size or start.task.image_size)


def _exports(out: Path) -> list[str]:
    """Return the names of the weights that finished training wrote for other programs."""
    files: dict[str, str] = json.loads((out / DONE).read_text())["files"]
    return [name for name in files if name not in (MODEL, LOG)]


@contextmanager
def _workspace(config: DetectorChoices, stage: str, progress: Progress) -> Iterator[Workspace]:
    with command_store(config.out, stage) as store:
        keep_config(config)
        yield Workspace(store, progress)


def keep_config(config: DetectorChoices) -> None:
    """Write down what a folder was made with; it stays what it was first."""
    if not (config.out / CONFIG).is_file():
        write_settings(config.out / CONFIG, config)


def _training(config: TrainingChoices, dataset: Data, sha256: str, progress: Progress) -> Training:
    return make_training(config.objective, config.train_attack, dataset, sha256, progress, config)


def _scoring_images(name: str, train_attack: str, dataset: Data | None, progress: Progress) -> Training | None:
    """Return the images that scores look at, if they do, with the attack of DeepLIFT's reference "clean"."""
    if not score_named(name).needs_batches:
        return None
    if dataset is None:
        raise InputError(f"--data: scores {name!r} look at images: add --data.")
    return make_training("clean", train_attack, dataset, data_digest(dataset, progress), progress)


def _rule(config: PruneStage | MrpfStage, start: Checkpoint) -> MaskRule:
    require_prunable(start)
    cuts_filters = config.structure in STRUCTURES_OF_FILTERS
    groups = read_groups(config, start) if cuts_filters or config.keep_stem_and_heads else None
    excluded = (*groups.stems, *groups.heads) if config.keep_stem_and_heads and groups else ()
    ratio, scope = (config.ratio or 0, config.scope) if isinstance(config, PruneStage) else (0, "layer")
    return MaskRule(
        ratio, config.structure, scope, groups=groups, excluded=tuple(excluded), conv_groups=conv_groups(start.model)
    )


def _stamp(out: Path) -> int | None:
    """Return when the work in a folder was finished."""
    return (out / DONE).stat().st_mtime_ns if (out / DONE).is_file() else None


def _outcome(out: Path, before: int | None, *names: str, summary: str = "") -> StageOutcome:
    return StageOutcome(tuple(out / name for name in names), before == _stamp(out), summary)


def _density(pruned: Checkpoint) -> str:
    assert pruned.masks is not None
    return f"{sparsity(pruned.masks):.1%} of the convolutions' weights dropped"
