"""A detector between stages: in one file with what rebuilds its architecture, and in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from prunekit.detection import MODELS, Detector, load_darknet_weights
from prunekit.documents import read_described, read_description, save_described
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file
from prunekit.pipeline.store import Store
from prunekit.progress import Progress
from prunekit.prune import prunable_layers
from prunekit.prune.tensor_files import load_tensors
from prunekit.training.data import TrainingData
from prunekit.training.objectives import ObjectiveConfig

FORMAT = "prunekit detector 1"
MODEL = "model.safetensors"  # what a stage's folder calls its detector
_MASK = "mask:"
_WHAT = "a detector that prunekit saved"


@dataclass(frozen=True)
class PrunedDetector:
    """A detector in eval mode, and where it is pruned its masks.

    Attributes:
        model: The detector.
        masks: Layer name → bool mask, True = kept.
        drops_filters: Whether the masks drop whole filters, whose normalisation is silenced with them.
    """

    model: Detector
    masks: dict[str, Tensor] | None = None
    drops_filters: bool = False


@dataclass(frozen=True)
class Architecture:
    """What a detector is built from: a key of `MODELS`, its classes, its channels relative to darknet's."""

    model: str
    num_classes: int
    width: float


def save_detector(
    path: str | Path,
    model: Detector,
    width: float,
    masks: Mapping[str, Tensor] | None = None,
    drops_filters: bool = False,
) -> None:
    """Write a detector, and its masks if it is pruned, atomically.

    Args:
        path: The safetensors file.
        model: The detector.
        width: The channels relative to darknet's that it was built with.
        masks: Layer name → bool mask, True = kept.
        drops_filters: Whether the masks drop whole filters.
    """
    description: dict[str, object] = {"model": model.name, "num_classes": model.num_classes, "width": width}
    description |= {"drops_filters": drops_filters} if masks else {}
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {_MASK + name: mask.cpu().contiguous() for name, mask in (masks or {}).items()}
    save_described(path, tensors, FORMAT, description)


def open_detector(path: Path, name: str, num_classes: int, width: float) -> PrunedDetector:
    """Read a detector from a darknet .weights file, or from a .safetensors file that a stage wrote.

    Args:
        path: The file.
        name: The architecture, a key of `MODELS`.
        num_classes: The data's number of classes.
        width: Channels relative to darknet's.

    Raises:
        InputError: When the file is missing, damaged, of another architecture, or holds weights that are not finite;
            the sentence says which.
    """
    require_weights(path)
    if not _is_described(path):
        model = MODELS[name](num_classes=num_classes, width=width).eval()
        load_darknet_weights(model, path)
        return PrunedDetector(model)
    description, tensors = read_described(path, FORMAT, _WHAT)
    wanted = {"model": name, "num_classes": num_classes, "width": width}
    for fact, value in wanted.items():
        if description.get(fact) != value:
            raise InputError(f"Expected {path} to hold a detector of {fact} {value}, got {description.get(fact)}.")
    model = MODELS[name](num_classes=num_classes, width=width).eval()
    if wrong := [key for key, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise InputError(f"Expected finite weights in {path}, but {wrong[0]} has some that are not.")
    masks = {key.removeprefix(_MASK): mask for key, mask in tensors.items() if key.startswith(_MASK)}
    try:
        model.load_state_dict({key: value for key, value in tensors.items() if not key.startswith(_MASK)})
    except RuntimeError as error:
        raise InputError(f"Expected {path} to hold the state of {name}: {str(error).splitlines()[0]}.") from None
    if masks and {k: m.shape for k, m in masks.items()} != {
        k: c.weight.shape for k, c in prunable_layers(model).items()
    }:
        raise InputError(f"Expected the masks in {path} to fit the convolutions of {name}, but they do not.")
    return PrunedDetector(model, masks or None, bool(description.get("drops_filters")))


def architecture_of(path: Path) -> Architecture | None:
    """Return what a safetensors file says about its detector; None for a darknet file, which says nothing.

    Raises:
        InputError: When there is no file, one of another kind, or a .safetensors file that prunekit did not write.
    """
    require_weights(path)
    if not _is_described(path):
        return None
    described = read_description(path, FORMAT, _WHAT)
    try:
        found = Architecture(
            str(described["model"]), int(str(described["num_classes"])), float(str(described["width"]))
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"Expected {path} to say which detector it holds, but it does not: {error}.") from None
    if found.model not in MODELS:
        raise InputError(f"Expected {path} to hold one of {', '.join(MODELS)}, but it says {found.model!r}.")
    return found


def require_weights(path: Path) -> None:
    """Raise InputError unless there is a file, and one that may hold weights: not a trainer's checkpoint, say."""
    if not path.is_file():
        raise InputError(f"--weights: expected a darknet .weights file or a .safetensors one, but {path} is none.")
    kind = kind_of_file(path)
    if kind is not None and not is_safetensors(path):
        raise InputError(
            f"--weights: expected a darknet .weights file or a .safetensors one that prunekit saved, "
            f"but {path} is {kind}."
        )


def _is_described(path: Path) -> bool:
    """Return whether a file is to be read as a stage's: what it holds decides, and its name where that is damaged."""
    return path.suffix == ".safetensors" or is_safetensors(path)


@dataclass(frozen=True)
class Artefact:
    """A detector between stages.

    Attributes:
        model: In eval mode; stages copy it before they change it.
        width: Channels relative to darknet's.
        sha256: Of the file that it came from.
        masks: Layer name → mask where it is pruned.
        drops_filters: Whether the masks drop whole filters.
    """

    model: Detector
    width: float
    sha256: str
    masks: dict[str, Tensor] | None = None
    drops_filters: bool = False


@dataclass(frozen=True)
class Training:
    """What a training stage learns from.

    Attributes:
        data: The images.
        sha256: Of the data set.
        objective: A key of `OBJECTIVES`.
        objective_config: Its knobs.
    """

    data: TrainingData
    sha256: str
    objective: str
    objective_config: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass(frozen=True)
class Bench:
    """Where stages work and who follows them."""

    store: Store
    progress: Progress


def find_detector(
    source: Path, unit: str | None = None, model: str | None = None, num_classes: int = 80, width: float | None = None
) -> PrunedDetector:
    """Open the pruned detector of a run's unit, of a stage's folder, or of a file.

    Args:
        source: A run folder, a folder that a stage's command wrote, a .safetensors file or a darknet .weights file.
        unit: The stem of the unit's files, where a run has several that lost filters.
        model: The architecture, for a darknet file.
        num_classes: Likewise.
        width: Channels relative to darknet's, likewise.

    Raises:
        InputError: There is no such detector, or several.
    """
    if (source / "units").is_dir():
        source = _unit_model(source, unit)
    elif unit is not None:
        raise InputError(f"--unit: expected with a run folder, but {source} is none.")
    elif source.is_dir():
        if not (source / MODEL).is_file():
            raise InputError(
                f"Expected {source} to be a run folder or a stage's, but it has neither units/ nor {MODEL}."
            )
        source = source / MODEL
    require_weights(source)
    found = architecture_of(source)
    if found is None:
        if model is None:
            raise InputError(f"--model: {source} does not say which detector it holds: add --model.")
        return open_detector(source, model, num_classes, width or 1.0)
    if model is not None and model != found.model:
        raise InputError(f"--model: {source} holds a {found.model}, not a {model}.")
    return open_detector(source, found.model, found.num_classes, found.width)


def example_image(image_size: int) -> Tensor:
    """Return a random image to trace, compare and time on, [1, 3, image_size, image_size] in [0, 1]."""
    return torch.rand(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


def _unit_model(run: Path, unit: str | None) -> Path:
    """Return the last stage's model of a unit: the one with the unit's masks, fine-tuned where that was done."""
    stems = sorted(path.stem for path in (run / "units").glob("*.json"))
    able = [stem for stem in stems if stem.partition("-")[0] in ("filter", "hybrid")]
    if unit is None and len(able) != 1:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run}, got none.")
    stem = unit or able[0]
    if stem not in stems:
        raise InputError(f"--unit: expected one of {_listed(able)} of the run {run}, got {stem!r}.")
    masks = load_tensors(run / "masks" / f"{stem}.safetensors", "masks")
    folders = [*(run / "stages").glob("finetune-*"), *(run / "stages").glob("prune-*")]
    for folder in folders:
        if (folder / MODEL).is_file() and _has_masks(folder / MODEL, masks):
            return folder / MODEL
    raise InputError(f"Expected {run} to hold the model of {stem}, but none of its {len(folders)} stages has it.")


def _has_masks(path: Path, masks: dict[str, Tensor]) -> bool:
    architecture = architecture_of(path)
    assert architecture is not None
    found = open_detector(path, architecture.model, architecture.num_classes, architecture.width).masks
    return found is not None and all(torch.equal(found[name], mask) for name, mask in masks.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "the units that lost filters (there is none)"
