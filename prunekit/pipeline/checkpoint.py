"""A model between stages: in one file with what builds it again, and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import documents
from prunekit.documents import read_described, read_description
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file
from prunekit.pipeline.store import WorkStore, read_json, sha256
from prunekit.progress import Progress
from prunekit.prune import prunable_layers
from prunekit.prune.mask_rule import STRUCTURES_OF_FILTERS
from prunekit.state_dicts import Transfer, fill, transfer
from prunekit.task import Data, ModelSpec, Task, takes_argument, task_of
from prunekit.training.data import TrainingData
from prunekit.training.objectives import ObjectiveConfig
from prunekit.training.state import tensors_digest

FORMAT = "prunekit detector 1"  # of every task's models: another name could not read what there is
MODEL = "model.safetensors"  # what a stage's folder calls its model
_MASK = "mask:"
_WHAT = "a model that prunekit saved"
_OF_HEADS = ("num_classes", "anchors")
_OWN = ("format", "model", "drops_filters")  # of the description; all else in it are the model's arguments


@dataclass(frozen=True)
class Checkpoint:
    """A model between stages.

    Attributes:
        model: In eval mode; stages copy it before they change it.
        task: What it is made for; its spec builds the model again.
        sha256: Of the file that it came from.
        masks: Layer name → bool mask, True = kept, where it is pruned.
        drops_filters: Whether the masks drop whole filters, whose normalization is silenced with them.
        path: The file that it came from; None for a model that is in none.
        transfer: What was taken of the file, where it is of other classes or of a part of the model.
    """

    model: nn.Module
    task: Task
    sha256: str
    masks: dict[str, Tensor] | None = None
    drops_filters: bool = False
    path: Path | None = None
    transfer: Transfer | None = None


def save_model(
    path: str | Path,
    model: nn.Module,
    spec: ModelSpec,
    masks: Mapping[str, Tensor] | None = None,
    drops_filters: bool = False,
) -> None:
    """Write a model, and its masks if it is pruned, atomically.

    Args:
        path: The safetensors file.
        model: The model.
        spec: What builds it again.
        masks: Layer name → bool mask, True = kept.
        drops_filters: Whether the masks drop whole filters.
    """
    description: dict[str, object] = {"model": spec.name, **dict(sorted(spec.arguments.items()))}
    description |= {"drops_filters": drops_filters} if masks else {}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {_MASK + name: mask.cpu().contiguous() for name, mask in (masks or {}).items()}
    documents.write(path, tensors, {"format": FORMAT, **description})


def untrained(task: Task, seed: int) -> Checkpoint:
    """Return a model that nothing has trained, the same one for the same seed."""
    model = _build(task, seed)
    return Checkpoint(model, task, tensors_digest(model.state_dict()))


def open_checkpoint(path: str | Path, task: Task, heads_seed: int | None = None) -> Checkpoint:
    """Read a model from a .safetensors file that a stage wrote, or from another one that the task can read.

    Args:
        path: The file.
        task: What the model is made for; its spec says which one.
        heads_seed: What heads are drawn from where the weights are of other classes, or of a backbone alone; None
            refuses such files.

    Raises:
        InputError: When the file is missing, damaged, of another model, or holds weights that are not finite; the
            sentence says which.
    """
    path = Path(path)
    reads = path.is_file() and task.reads(path)
    require_weights(path, reads)
    if reads or not _is_described(path):
        model = _build(task, heads_seed)
        found = task.load_weights(model, path, partly=heads_seed is not None)
        return _transferred(model, task, found) if found else Checkpoint(model, task, sha256(path), path=path)
    description, tensors = read_described(path, FORMAT, _WHAT)
    has_other_classes = description.get("num_classes") != task.spec.arguments.get("num_classes")
    for fact, value in {"model": task.spec.name, **task.spec.arguments}.items():
        if description.get(fact) != value and not (fact in _OF_HEADS and heads_seed is not None):
            raise InputError(f"Expected the model in {path} to be of {fact} {value}, got {description.get(fact)}.")
    if wrong := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise InputError(f"Expected finite weights in {path}, but {wrong[0]} has some that are not.")
    model, state = _build(task, heads_seed), {key: v for key, v in tensors.items() if not key.startswith(_MASK)}
    if has_other_classes and len(state) == len(tensors):
        return _transferred(model, task, transfer(model, state, path, task.spec.name))
    fill(model, state, path, task.spec.name)
    masks = {key.removeprefix(_MASK): mask for key, mask in tensors.items() if key.startswith(_MASK)}
    if masks and {k: m.shape for k, m in masks.items()} != {
        k: c.weight.shape for k, c in prunable_layers(model).items()
    }:
        raise InputError(f"Expected the masks in {path} to fit the convolutions of {task.spec.name}, but they do not.")
    return Checkpoint(model, task, sha256(path), masks or None, bool(description.get("drops_filters")), path)


def starting_model(weights: Path | None, task: Task, seed: int, progress: Progress) -> Checkpoint:
    """Return what training starts from: weights, as far as they fit, or none; say what was not taken.

    Args:
        weights: The file; None starts from scratch.
        task: What the model is made for, with the data's number of classes.
        seed: What is drawn where there are no weights.
        progress: Told what was made anew.
    """
    if weights is None:
        return untrained(task, seed)
    start = open_checkpoint(weights, task, seed)
    if start.transfer is not None:
        progress.message(f"{weights.name}: {start.transfer.summary}")
    return start


def _build(task: Task, seed: int | None) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed or 0)
        return task.spec.build().eval()


def _transferred(model: nn.Module, task: Task, found: Transfer) -> Checkpoint:
    """Return a model whose heads are in no file."""
    return Checkpoint(model, task, tensors_digest(model.state_dict()), transfer=found)


def spec_of(path: Path, name: str | None = None) -> ModelSpec | None:
    """Return what a safetensors file says about its model; None for another weights file, which says nothing.

    Args:
        path: The file.
        name: The family that it is wanted for, whose task may read further kinds of files.

    Raises:
        InputError: When there is no file, one of another kind, or a .safetensors file that prunekit did not write.
    """
    reads = name is not None and path.is_file() and task_of(ModelSpec(name)).reads(path)
    require_weights(path, reads)
    if reads or not _is_described(path):
        return None
    described = read_description(path, FORMAT, _WHAT)
    found = ModelSpec(
        str(described.get("model")), {name: value for name, value in described.items() if name not in _OWN}
    )
    try:
        task_of(found)
    except InputError as error:
        if ":" in found.name:
            raise InputError(f"--weights: {str(error)[0].lower()}{str(error)[1:]}") from None
        raise InputError(f"Expected {path} to say which model it holds, but it does not: {error}") from None
    return found


def requested_spec(
    name: str, width: float | None, found: ModelSpec | None = None, arguments: Mapping[str, Any] | None = None
) -> ModelSpec:
    """Return the spec of the model that options ask for.

    Args:
        name: The family.
        width: The option, for families that take it; None leaves what the file says, or 1.
        found: What the weights' file says of itself.
        arguments: Further ones of the factory's; where the file says others, opening it is an error.

    Raises:
        InputError: When the family is unknown or has no width.
    """
    spec = ModelSpec(name, {**(found.arguments if found else {}), **(arguments or {})})
    if takes_argument(name, "width"):
        return spec.updated(width=spec.arguments.get("width", 1.0) if width is None else width)
    if width not in (None, 1.0):
        raise InputError(f"--width: expected none for {name}, which does not take one, got {width}.")
    return spec


def require_same_spec(task: Task, data: Data) -> None:
    """Raise InputError unless further data are for the very model of a task."""
    wanted = task.for_data(data).spec.arguments
    for argument, value in task.spec.arguments.items():
        if wanted.get(argument) != value:
            raise InputError(
                f"Expected data for a model of {argument} {value}, as the other data are, got {wanted.get(argument)}."
            )


def require_weights(path: Path, reads: bool = False) -> None:
    """Raise InputError unless there is a file that may hold weights: a trainer's checkpoint only if a task reads it.

    Args:
        path: The file.
        reads: Whether a task reads the file, whatever it is.
    """
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise InputError(f"Expected a darknet .weights file or a .safetensors one, but {found}.")
    kind = kind_of_file(path)
    if kind is not None and not is_safetensors(path) and not reads:
        raise InputError(
            f"Expected a darknet .weights file or a .safetensors one that prunekit saved, but {path} is {kind}."
        )


def _is_described(path: Path) -> bool:
    """Return whether a file is to be read as a stage's: what it holds decides, and its name where that is damaged."""
    return path.suffix == ".safetensors" or is_safetensors(path)


@dataclass(frozen=True)
class Training:
    """What a training stage learns from.

    Attributes:
        data: The images.
        sha256: Of the data set.
        objective: A key of `OBJECTIVES`.
        objective_config: Its knobs.
        holdout: The data set's own images to select weights by, if it has some and a training asks for them.
    """

    data: TrainingData
    sha256: str
    objective: str
    objective_config: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    holdout: TrainingData | None = None


@dataclass(frozen=True)
class Workspace:
    """Where work is kept and who follows it; a run and an evaluation add what all of their parts share.

    Attributes:
        store: Finds finished work, and holds what is not finished.
        progress: Told how far the work is.
    """

    store: WorkStore
    progress: Progress


def find_checkpoint(source: Path, unit: str | None = None, spec: ModelSpec | None = None) -> Checkpoint:
    """Open the pruned model of a run's unit, of a stage's folder, or of a file.

    Args:
        source: A run folder, a folder that a stage's command wrote, or a file of weights.
        unit: The stem of the unit's files, where a run has several that lost filters.
        spec: What is in a file that does not say it.

    Raises:
        InputError: There is no such model, or several.
    """
    if (source / "units").is_dir():
        source, spec = _unit_model(source, unit)
    elif unit is not None:
        raise InputError(f"--unit: expected with a run folder, but {source} is none.")
    elif source.is_dir():
        if not (source / MODEL).is_file():
            raise InputError(
                f"Expected {source} to be a run folder or a stage's, but it has neither units/ nor {MODEL}."
            )
        source = source / MODEL
    found = spec_of(source, spec.name if spec is not None else None)
    if found is None and spec is None:
        raise InputError(f"--model: {source} does not say which model it holds: add --model.")
    if found is not None and spec is not None and spec.name != found.name:
        raise InputError(f"--model: {source} holds a {found.name}, not a {spec.name}.")
    if found is not None:
        return open_checkpoint(source, task_of(found))
    assert spec is not None
    return open_checkpoint(source, task_of(spec).for_weights(source))


def example_image(image_size: int) -> Tensor:
    """Return a random image to trace, compare and time on, [1, 3, image_size, image_size] in [0, 1]."""
    return torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


def _unit_model(run: Path, unit: str | None) -> tuple[Path, ModelSpec]:
    """Return the file of a unit's model, which the unit's own file names, and what builds the model again."""
    stems = sorted(path.stem for path in (run / "units").glob("*.json"))
    able = [stem for stem in stems if stem.partition("-")[0] in STRUCTURES_OF_FILTERS]
    if unit is None and len(able) != 1:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run}, got none.")
    stem = unit or able[0]
    if stem not in stems:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run}, got {stem!r}.")
    try:
        model = read_json(run / "units" / f"{stem}.json")["model"]
        path, expected, spec = run / model["path"], str(model["sha256"]), ModelSpec(**model["spec"])
    except (KeyError, TypeError) as error:
        raise InputError(f"Expected units/{stem}.json of {run} to name its model, got none ({error}).") from None
    if not path.is_file() or sha256(path) != expected:
        raise InputError(f"Expected the model of {stem} at {path}, got {'another file' if path.is_file() else 'none'}.")
    return path, spec


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "the units that lost filters (there is none)"
