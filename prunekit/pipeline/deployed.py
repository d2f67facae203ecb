"""What is deployed: a file of `prunekit.save`, and the task that says what its outputs mean.

Such a file holds a graph or layers, not what builds the model. A compacted detector of prunekit's own says what it is;
for all others the checkpoint that the file was made from says it, or a name of a model whose outputs have such shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from prunekit import documents
from prunekit.compaction.files import COMPACTED_FORMAT
from prunekit.compaction.graph_file import ProgramModel
from prunekit.detection.compacted import load
from prunekit.detection.yolov3 import MODELS, Detector
from prunekit.dry_run import without_memory
from prunekit.engine.artifact import CPU_FORMAT, GPU_FORMAT, SAVED_MODEL
from prunekit.engine.model import AcceleratedModel
from prunekit.errors import InputError
from prunekit.file_kinds import is_safetensors
from prunekit.pipeline.store import sha256
from prunekit.structure import tensors_of
from prunekit.task import ModelSpec, Task, takes_argument, task_of

Shapes = list[tuple[int, ...]]


@dataclass(frozen=True)
class DeployedModel:
    """A model of a file that `prunekit.save` wrote.

    Attributes:
        model: In eval mode, on the CPU; it has no gradients where it is accelerated.
        task: What it is made for.
        sha256: Of the file.
        image_size: Side of the images that it was looked at with, in pixels.
        is_accelerated: Whether the engine runs it already.
    """

    model: nn.Module
    task: Task
    sha256: str
    image_size: int
    is_accelerated: bool


def is_deployed(path: Path) -> bool:
    """Return whether a file is one of `prunekit.save`; one of another kind, or none, is not."""
    if not (path.is_file() and is_safetensors(path)):
        return False
    return documents.read_document(path, SAVED_MODEL).get("format") in (CPU_FORMAT, GPU_FORMAT, COMPACTED_FORMAT)


def open_deployed(path: Path, task: Task | None = None, image_size: int | None = None) -> DeployedModel:
    """Read a model that `prunekit.save` wrote, and make sure that it is one of the task.

    Args:
        path: The file.
        task: What it was made for, as its checkpoint or a name says, the number of classes or not; None asks the file.
        image_size: Side of the images that it is to look at; None: that of the example it was saved with, else the
            task's.

    Raises:
        InputError: When there is no such file, nothing says what it is for, or it is for something else.
    """
    if documents.read_document(path, SAVED_MODEL).get("format") == GPU_FORMAT:
        raise InputError(f"Expected a model that was accelerated for the CPU in {path}, got one for a GPU.")
    model = load(path)
    task = _own_task(model) if task is None else task
    if task is None:
        raise InputError(
            f"--checkpoint: {path} does not say which model it holds: add --checkpoint with the one that it was made "
            "from, or --model."
        )
    size = image_size or _example_size(model) or task.image_size
    with torch.inference_mode():
        found = _shapes(model(torch.zeros(1, 3, size, size)))
    fitted = _with_classes(task, found, size)
    expected = _outlined_shapes(fitted, size)
    if expected is not None and expected != found:
        raise InputError(
            f"Expected a {_described(fitted)} with outputs of {_listed(expected)} for {size}×{size} pixels in {path}, "
            f"got {_listed(found)}."
        )
    return DeployedModel(model, fitted, sha256(path), size, isinstance(model, AcceleratedModel))


def _own_task(model: nn.Module) -> Task | None:
    """Return the task of a compacted detector of prunekit's own; its width is in its layers, not in its heads."""
    if not isinstance(model, Detector) or model.name not in MODELS:
        return None
    return task_of(ModelSpec(model.name, {"num_classes": model.num_classes, "anchors": _as_json(model)}))


def _as_json(model: Detector) -> list[list[list[float]]]:
    return [[[*pair] for pair in head] for head in model.anchors]


def _example_size(model: nn.Module) -> int | None:
    """Return the side of the images that a model was saved with; None where the file does not say it."""
    shapes = model.example if isinstance(model, AcceleratedModel) else getattr(model, "shapes", [])
    is_known = isinstance(model, (AcceleratedModel, ProgramModel)) and len(shapes) == 1 and len(shapes[0]) == 4
    return int(shapes[0][-1]) if is_known else None


def _with_classes(task: Task, found: Shapes, size: int) -> Task:
    """Return the task with the number of classes that outputs of these shapes have, where it does not say one."""
    if "num_classes" in task.spec.arguments or not takes_argument(task.spec.name, "num_classes"):
        return task
    two, three = (_outlined_shapes(_of_classes(task, number), size) for number in (2, 3))
    pairs = [] if two is None or three is None or len(two) != len(found) else [*zip(two, three, found, strict=True)]
    for least, more, actual in pairs:
        if least != more and len(actual) == len(least):
            (grows, *_) = (index for index in range(len(least)) if least[index] != more[index])
            steps, rest = divmod(actual[grows] - least[grows], more[grows] - least[grows])
            if rest == 0 and steps + 2 >= 1:
                return _of_classes(task, steps + 2)
            break
    raise InputError(
        f"--model: expected outputs of a {task.spec.name} of any number of classes, got {_listed(found)} for "
        f"{size}×{size} pixels: add --checkpoint with the one that the file was made from."
    )


def _of_classes(task: Task, number: int) -> Task:
    return task_of(task.spec.updated(num_classes=number))


def _outlined_shapes(task: Task, size: int) -> Shapes | None:
    """Return the shapes of the outputs for an image; None where they follow from values."""
    shapes: Shapes | None = None
    with torch.random.fork_rng([]), without_memory(), torch.no_grad():
        shapes = _shapes(task.spec.build().eval()(torch.zeros(1, 3, size, size)))
    return shapes


def _shapes(outputs: object) -> Shapes:
    return [tuple(tensor.shape) for tensor in tensors_of(outputs)]


def _described(task: Task) -> str:
    classes = task.spec.arguments.get("num_classes")
    return task.spec.name if classes is None else f"{task.spec.name} of {classes} classes"


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(str([*shape]) for shape in shapes)
