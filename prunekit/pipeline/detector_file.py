"""A detector in one file between stages: safetensors, with what rebuilds the architecture as JSON in its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prunekit.detection import MODELS, Detector, load_darknet_weights
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors, kind_of_file
from prunekit.pipeline.described_tensors import read_described, read_description, save_described
from prunekit.prune import prunable_layers

FORMAT = "prunekit detector 1"
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
    for field, value in wanted.items():
        if description.get(field) != value:
            raise InputError(f"Expected {path} to hold a detector of {field} {value}, got {description.get(field)}.")
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
