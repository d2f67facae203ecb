"""A task of one's own: classifiers of images that lie in a folder a class. This file is all that it takes.

An attack and a score come with it, as one would add them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from prunekit.attacks import (
    AttackLosses,
    classification_losses,
    register_attack,
    softmax_divergence,
    uniform_noise,
)
from prunekit.errors import InputError
from prunekit.prune import Score, prunable_layers, register_score
from prunekit.task import Figure, Figures, ModelSpec, Options, Predictions, register_model, register_task


def toy_classifier(num_classes: int, channels: int = 8) -> nn.Module:
    """Build two convolutions and a linear layer on the mean over the image."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )


@dataclass(frozen=True)
class ToySample:
    """One image and its label."""

    image: Tensor
    target: int
    image_id: int


@dataclass(frozen=True)
class ToyBatch:
    """N images with their labels."""

    images: Tensor
    targets: Tensor
    image_ids: list[int]

    def to(self, device: Any) -> ToyBatch:
        """Return the batch on a device."""
        return ToyBatch(self.images.to(device), self.targets.to(device), self.image_ids)


@dataclass(frozen=True)
class ToyData:
    """PNG files, each in the folder of its class."""

    files: Sequence[Path]
    classes: Sequence[str]
    image_size: int

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> ToySample:
        with Image.open(self.files[index]) as image:
            pixels = np.asarray(image.convert("RGB").resize((self.image_size, self.image_size)))
        label = self.classes.index(self.files[index].parent.name)
        return ToySample(torch.tensor(pixels).permute(2, 0, 1) / 255, label, index)

    def collate(self, samples: list[ToySample]) -> ToyBatch:
        """Join samples to a batch."""
        images = torch.stack([sample.image for sample in samples])
        labels = torch.tensor([sample.target for sample in samples])
        return ToyBatch(images, labels, [sample.image_id for sample in samples])

    def notes(self) -> list[str]:
        """Nothing is left out."""
        return []

    def identity(self) -> Any:
        """Return the classes and the size."""
        return [list(self.classes), self.image_size]

    def fingerprint(self, index: int) -> bytes:
        """Return the file and its class."""
        return self.files[index].parent.name.encode() + self.files[index].read_bytes()

    def part(self, count: int) -> ToyData:
        """Return the first images."""
        return ToyData(self.files[:count], self.classes, self.image_size)

    def resolution(self) -> float:
        """Return the share that one image is."""
        return 1 / len(self)

    def examples(self, count: int) -> list[int]:
        """Return the first images."""
        return list(range(min(count, len(self))))

    def example(self, index: int) -> dict[str, Any]:
        """Describe an image."""
        return {"id": index, "file_name": self.files[index].name, "class": self.files[index].parent.name}

    def visible(self, index: int, image: Tensor) -> Tensor:
        """Return the whole image: there is no border."""
        return image


@dataclass(frozen=True)
class ToyTask:
    """Accuracy of the likeliest class."""

    spec: ModelSpec
    input_multiple: int = 1
    image_size: int = 32
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    figures: tuple[Figure, ...] = (Figure("accuracy", "accuracy"),)

    def open_data(self, path: Path, image_size: int | None, grayscale: bool, limit: int | None) -> ToyData:
        """Open a folder of folders."""
        files = sorted(path.glob("*/*.png"))[:limit]
        if not files:
            raise InputError(f"Expected images in a folder for each class in {path}, got none.")
        return ToyData(
            files, sorted({file.parent.name for file in path.glob("*/*.png")}), image_size or self.image_size
        )

    def for_data(self, data: ToyData) -> ToyTask:
        """Return the task with the number of classes."""
        return ToyTask(self.spec.updated(num_classes=len(data.classes)))

    def loss(self, model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
        """Return cross-entropies [N]."""
        return classification_losses(targets).total(model(x))

    def attack_losses(self, targets: Tensor) -> AttackLosses:
        """Return what attacks on classifiers raise."""
        return classification_losses(targets)

    def divergence(self, attacked: Tensor, clean: Tensor) -> Tensor:
        """Return Kullback and Leibler's, [N]."""
        return softmax_divergence(attacked, clean)

    def attribution(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the true class's logit, [N]."""
        return outputs.gather(1, targets[:, None])[:, 0]

    @torch.inference_mode()
    def predict(self, model: nn.Module, x: Tensor, batch: ToyBatch, options: Options) -> Predictions:
        """Return the likeliest class and the true one."""
        found, true = model(x).argmax(dim=1).tolist(), batch.targets.tolist()
        return {key: pair for key, *pair in zip(batch.image_ids, found, true, strict=True)}

    def postprocessing(self, outputs: Tensor, options: Options) -> Mapping[str, Callable[[], object]]:
        """Return the step from logits to a class."""
        return {"argmax": lambda: outputs.argmax(dim=1)}

    def metrics(self, predictions: Predictions, data: ToyData) -> Figures:
        """Return the share of images that are classified rightly."""
        return {"accuracy": sum(found == true for found, true in predictions.values()) / len(predictions)}

    def success(self, clean: Predictions, attacked: Predictions, data: ToyData) -> Figures:
        """Return the share of rightly classified images that no longer are."""
        right = [key for key, (found, true) in clean.items() if found == true]
        lost = sum(attacked[key][0] != attacked[key][1] for key in right)
        return {"attack_success": lost / len(right) if right else None}

    def columns(
        self, clean: Figures, attacked: Figures | None, transferred: Figures | None, success: Figures | None
    ) -> Figures:
        """Return accuracies."""
        return {
            "accuracy": clean["accuracy"],
            "attacked_accuracy": attacked["accuracy"] if attacked else None,
            "transfer_accuracy": transferred["accuracy"] if transferred else None,
            "attack_success_rate": success["attack_success"] if success else None,
        }

    def save_predictions(self, stem: Path, predictions: Predictions, data: ToyData) -> list[Path]:
        """Write JSON."""
        file = stem.with_name(f"{stem.name}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({str(key): pair for key, pair in predictions.items()}))
        return [file]

    def load_predictions(self, stem: Path, data: ToyData) -> Predictions:
        """Read JSON."""
        return self.shown(stem)

    def shown(self, stem: Path) -> Mapping[int, Any]:
        """Read JSON."""
        return {int(key): pair for key, pair in json.loads(stem.with_name(f"{stem.name}.json").read_text()).items()}

    def picture(self, image: Image.Image, example: Mapping[str, Any], found: Any) -> Image.Image:
        """Write the class below the image."""
        canvas = Image.new("RGB", (image.width + 40, image.height + 14), "white")
        canvas.paste(image)
        text = example["class"] if found is None else str(found[0])
        ImageDraw.Draw(canvas).text((0, image.height), text, fill="black")
        return canvas

    def describe(self, config: Mapping[str, Any]) -> str:
        """Say what accuracy is."""
        return "share of images whose likeliest class is the right one"

    def reads(self, path: Path) -> bool:
        """There is no other format."""
        return False

    def load_weights(self, model: nn.Module, path: Path, partly: bool = False) -> None:
        """There is no other format."""
        raise InputError(f"--weights: expected a .safetensors file, got {path}.")

    def fitted(self, data: ToyData, seed: int) -> ToyTask:
        """There is nothing."""
        raise InputError("--fit-anchors: expected a detector that takes anchors, got a toy.")

    def for_weights(self, path: Path) -> ToyTask:
        """There is no other format."""
        raise InputError(f"--weights: expected a .safetensors file, got {path}.")

    def export(self, model: nn.Module, folder: Path, images_seen: int) -> list[str]:
        """There is no other format."""
        return []


def gradient_scores(model: nn.Module, batches: Iterable[tuple[Tensor, Callable[[Any], Tensor]]]) -> dict[str, Tensor]:
    """Score weights by the length of their gradients."""
    layers = prunable_layers(model)
    scores = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}
    for x, loss in batches:
        weights = [layer.weight for layer in layers.values()]
        for name, grad in zip(layers, torch.autograd.grad(loss(model(x)).sum(), weights), strict=True):
            scores[name] += grad.abs()
    return scores


register_task("toy-classification", ToyTask)
register_model("toy-classifier", toy_classifier, "toy-classification")
register_attack("toy-noise", uniform_noise(0.2))
register_score("toy-gradient", Score("the length of the loss's gradient", of_images=gradient_scores))
