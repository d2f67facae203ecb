"""Classification as the study's door asks for it: one task for every network from images to logits [N, classes]."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from prunekit.attacks import AttackLosses, classification_losses, softmax_divergence
from prunekit.classification.blocks import SMALL_IMAGE
from prunekit.classification.data import USUAL_SIZE, Batch, ClassificationData
from prunekit.classification.mobilevit import PATCH
from prunekit.classification.models import MODELS
from prunekit.classification.pictures import captioned
from prunekit.classification.state_dicts import load_state_dict, own_names
from prunekit.documents import read_document
from prunekit.errors import InputError, first_line
from prunekit.file_kinds import is_safetensors
from prunekit.files import csv_text, write_text
from prunekit.state_dicts import Transfer, num_classes_in, read_state_dict
from prunekit.task import Figure, Figures, ModelSpec, Options, register_model, register_task, takes_argument

_SMALL_SIZE = 32  # pixels, of CIFAR's images
_COLUMNS = ("image_id", "class", "predicted")


class Prediction(NamedTuple):
    """The most probable class, and the probabilities of all, float32 [classes]."""

    label: int
    probabilities: Tensor


Found = Mapping[int, Prediction]


@dataclass(frozen=True)
class ClassificationTask:
    """A `prunekit.task.Task`: labeled images, cross-entropy, accuracy.

    A family of classifiers is built from `num_classes` and whatever else its factory takes; one with a parameter
    `small_images` is told whether to start at full resolution, by the size of the data's images.

    Attributes:
        spec: What builds the classifier.
        figures: Accuracy, the share of images whose most probable class is theirs.
    """

    spec: ModelSpec
    figures: tuple[Figure, ...] = (Figure("accuracy", "accuracy"),)

    def __post_init__(self) -> None:
        self.spec.require_usual(least_classes=2)

    @property
    def input_multiple(self) -> int:
        """1, but for MobileViT, whose last grid is cut into patches."""
        if self.spec.name != "mobilevit-s":
            return 1
        return PATCH * (8 if self.spec.arguments.get("small_images", True) else 32)

    @property
    def image_size(self) -> int:
        """The side of usual images in pixels."""
        return _SMALL_SIZE if self.spec.arguments.get("small_images") else USUAL_SIZE

    @property
    def augmentation(self) -> dict[str, Any]:
        """Flips, and shifts by up to four pixels into a black border."""
        return {"flip": 0.5, "crop": 4, "fill": 0.0}

    def open_data(self, path: Path, image_size: int | None, grayscale: bool, limit: int | None) -> ClassificationData:
        """Open a data set; `prunekit.classification.formats` lists what can be read."""
        return ClassificationData.open(path, image_size, grayscale, limit)

    def for_data(self, data: ClassificationData) -> ClassificationTask:
        """Return the task with the data's number of classes, and the form for images of their size if none is said."""
        takes_classes = takes_argument(self.spec.name, "num_classes")
        arguments: dict[str, Any] = {"num_classes": len(data.classes)} if takes_classes else {}
        if takes_argument(self.spec.name, "small_images") and "small_images" not in self.spec.arguments:
            arguments["small_images"] = data.image_size <= SMALL_IMAGE
        task = ClassificationTask(self.spec.updated(**arguments))
        if data.image_size % task.input_multiple:
            wanted = f"a multiple of {task.input_multiple} for {self.spec.name}"
            raise InputError(f"--image-size: expected {wanted}, got {data.image_size}.")
        if ":" in self.spec.name:
            _require_logits(task.spec, data)
        return task

    def loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropies [N]."""
        return classification_losses(targets).total(model(x))

    def attack_losses(self, targets: Tensor) -> AttackLosses:
        """Return cross-entropies and margins."""
        return classification_losses(targets)

    def labels(self, targets: Tensor) -> Tensor:
        """Return the targets: they are classes."""
        return targets

    def divergence(self, attacked: Tensor, clean: Tensor) -> Tensor:
        """Return Kullback and Leibler's from the clean to the attacked probabilities, [N]."""
        return softmax_divergence(attacked, clean)

    def attribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the true class's logit, [N]."""
        return outputs.gather(1, targets[:, None])[:, 0]

    @torch.inference_mode()
    def predict(self, model: nn.Module, x: Tensor, batch: Batch, options: Options) -> dict[int, Prediction]:
        """Return each image's most probable class, the first of equals, and all probabilities."""
        probabilities = model(x).float().softmax(dim=1).cpu()
        labels = probabilities.argmax(dim=1).tolist()
        return {key: Prediction(*pair) for key, *pair in zip(batch.image_ids, labels, probabilities, strict=True)}

    def postprocessing(self, outputs: Tensor, options: Options) -> dict[str, Callable[[], object]]:
        """Return the step from logits to a class."""
        return {"argmax": lambda: outputs.argmax(dim=1)}

    def metrics(self, predictions: Found, data: ClassificationData) -> Figures:
        """Return the share of images that are classified correctly."""
        truth = data.labels
        return {"accuracy": sum(found.label == truth[key] for key, found in predictions.items()) / len(predictions)}

    def success(self, clean: Found, attacked: Found, data: ClassificationData) -> Figures:
        """Return the share of correctly classified images that no longer are; None where none was."""
        truth = data.labels
        right = [key for key, found in clean.items() if found.label == truth[key]]
        lost = sum(attacked[key].label != truth[key] for key in right)
        return {"attack_success": lost / len(right) if right else None}

    def columns(
        self, clean: Figures, attacked: Figures | None, transferred: Figures | None, success: Figures | None
    ) -> Figures:
        """Return accuracies, and the attack's success."""
        return {
            "accuracy": clean["accuracy"],
            "attacked_accuracy": (attacked or {}).get("accuracy"),
            "transfer_accuracy": (transferred or {}).get("accuracy"),
            "attack_success_rate": (success or {}).get("attack_success"),
        }

    def save_predictions(self, stem: Path, predictions: Found, data: ClassificationData) -> list[Path]:
        """Write a row an image: its id, its class, the most probable one, and every class's probability."""
        names, truth = data.classes, data.labels
        rows = [
            [key, names[truth[key]], names[found.label], *(f"{p:.6g}" for p in found.probabilities.tolist())]
            for key, found in predictions.items()
        ]
        write_text(_csv(stem), csv_text((*_COLUMNS, *names), rows))
        return [_csv(stem)]

    def load_predictions(self, stem: Path, data: ClassificationData) -> dict[int, Prediction]:
        """Read the table back."""
        labels = {name: label for label, name in enumerate(data.classes)}
        with _csv(stem).open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        return {
            int(key): Prediction(labels[predicted], torch.tensor([float(value) for value in numbers]))
            for key, _, predicted, *numbers in rows
        }

    def shown(self, stem: Path) -> dict[int, dict[str, Any]]:
        """Read the most probable class and its probability, by image id."""
        with _csv(stem).open(newline="") as file:
            header, *rows = csv.reader(file)
        names = header[len(_COLUMNS) :]
        return {
            int(key): {"class": predicted, "probability": float(numbers[names.index(predicted)])}
            for key, _, predicted, *numbers in rows
        }

    def picture(self, image: Image.Image, example: Mapping[str, Any], found: Mapping[str, Any] | None) -> Image.Image:
        """Write the class below the image, with its probability and a mark of whether it is the right one."""
        if found is None:
            return captioned(image, example["class"])
        is_right = found["class"] == example["class"]
        return captioned(image, f"{found['class']} {found['probability']:.2f}", is_right)

    def flipped(self, example: Mapping[str, Any], clean: Mapping[str, Any], attacked: Mapping[str, Any]) -> bool:
        """Return whether the attack made a right answer wrong."""
        return bool(clean["class"] == example["class"] != attacked["class"])

    def describe(self, config: Mapping[str, Any]) -> str:
        """Say what accuracy is."""
        return "share of images whose most probable class is their own (top 1)"

    def reads(self, path: Path) -> bool:
        """Return whether a file is not one that prunekit wrote."""
        return not is_safetensors(path) or not read_document(path, "a state dict")

    def fitted(self, data: Any, seed: int) -> ClassificationTask:
        """There is nothing: a classifier has no anchors."""
        raise InputError(f"--fit-anchors: expected a detector that takes anchors, got {self.spec.name}.")

    def load_weights(self, model: nn.Module, path: Path, partly: bool = False) -> Transfer | None:
        """Read a state dict from a .pt, .pth or .safetensors file."""
        return load_state_dict(model, path, partly)

    def for_weights(self, path: Path) -> ClassificationTask:
        """Return the task with the number of classes, and the kind of stem, that the file's shapes say."""
        if not takes_argument(self.spec.name, "num_classes"):
            return self
        state = read_state_dict(path)
        for spec in self._stems():
            named = own_names(spec.outlined(num_classes=2), state)  # names do not depend on the number
            if (number := num_classes_in(named, spec.outlined)) is not None:
                return ClassificationTask(spec.updated(num_classes=number))
        raise InputError(
            f"--weights: expected the weights of a {self.spec.name} of any number of classes in {path}, "
            f"got a checkpoint of other tensors: {', '.join([*state][:2])}."
        )

    def _stems(self) -> list[ModelSpec]:
        """Return the specs that weights may be of."""
        if "small_images" in self.spec.arguments or not takes_argument(self.spec.name, "small_images"):
            return [self.spec]
        return [self.spec.updated(small_images=small) for small in (True, False)]

    def export(self, model: nn.Module, folder: Path, images_seen: int) -> list[str]:
        """Nothing: the tensors of model.safetensors are the state dict."""
        return []


def returns_logits(model: nn.Module) -> bool:
    """Return whether a model makes a float tensor [N, classes] of images of any usual size."""
    for size in (_SMALL_SIZE, 64, USUAL_SIZE):
        try:
            return _is_logits(_outputs(model, size))
        except Exception:  # whatever a model of another size stumbles over
            continue
    return False


def _require_logits(spec: ModelSpec, data: ClassificationData) -> None:
    """Raise InputError unless a user's own model makes a logit for each class of images of the data's size."""
    with torch.random.fork_rng([]):
        model = spec.build().eval()
    try:
        outputs = _outputs(model, data.image_size)
    except Exception as error:  # the user's own code
        wanted = f"Expected {spec.name} to take images [N, 3, {data.image_size}, {data.image_size}]"
        raise InputError(f"{wanted}, got {type(error).__name__}: {first_line(error)}.") from error
    if not _is_logits(outputs) or outputs.shape[1] != len(data.classes):
        found = f"a tensor {list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        wanted = f"logits [N, {len(data.classes)}], one for each class of the data"
        raise InputError(f"Expected {spec.name} to return {wanted}, got {found} for two images.")


@torch.no_grad()
def _outputs(model: nn.Module, size: int) -> Any:
    return model(torch.zeros(2, 3, size, size))


def _is_logits(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and outputs.is_floating_point() and outputs.ndim == 2 and len(outputs) == 2


def _csv(stem: Path) -> Path:
    return stem.with_name(f"{stem.name}.csv")


register_task("classification", ClassificationTask, returns_logits)
for _name, _build in MODELS.items():
    register_model(_name, _build, "classification")
