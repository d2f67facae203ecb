"""Training of a detector from scratch: one loop that reads from top to bottom."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from prunekit.detection import CocoDataset, Detector, Target, detection_loss
from prunekit.pipeline.progress import Progress

# Loss of a batch, a scalar: clean training hands in `clean_loss`, robust training one that attacks first.
Objective = Callable[[Detector, Tensor, list[Target]], Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of training.

    Attributes:
        epochs: Passes over the data.
        batch_size: Images a step.
        learning_rate: The peak, after `warmup` of all steps; then a cosine down to zero.
        weight_decay: AdamW's, on the convolutions' weights.
        warmup: Share of the steps in which the rate rises linearly.
        max_grad_norm: Gradients are clipped to this length.
        ema_decay: The averaged weights, which training returns, forget at this rate a step.
        sizes: Each batch is resized to one of these sides in pixels, multiples of 32.
        seed: Of order, flips and sizes.
    """

    epochs: int
    batch_size: int = 16
    learning_rate: float = 1.2e-2
    weight_decay: float = 0.02
    warmup: float = 0.08
    max_grad_norm: float = 10.0
    ema_decay: float = 0.99
    sizes: tuple[int, ...] = (192,)
    seed: int = 0


def clean_loss(model: Detector, x: Tensor, targets: list[Target]) -> Tensor:
    """Return the mean detection loss of images x, [N, 3, H, W]."""
    loss = detection_loss(model(x), targets, model.anchors, model.strides, model.num_classes)
    return loss.total.mean()


def train(
    model: Detector,
    dataset: CocoDataset,
    config: TrainConfig,
    progress: Progress,
    objective: Objective = clean_loss,
) -> Detector:
    """Train `model` in place; return a copy with the moving average of its weights, in eval mode.

    Args:
        model: The detector to train.
        dataset: Training images; they are kept in memory as bytes, S · S · 3 each.
        config: The knobs.
        progress: Shown epoch by epoch, with the loss.
        objective: The loss to minimise.
    """
    images, targets = _load(dataset, progress)
    generator = torch.Generator().manual_seed(config.seed)
    num_steps = config.epochs * math.ceil(len(images) / config.batch_size)
    optimizer = torch.optim.AdamW(_parameter_groups(model, config.weight_decay), lr=config.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, num_steps, config.warmup)
    )
    # 1.4 times faster than NCHW on narrow layers.
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval()
    model.train()
    for _ in progress.track(range(config.epochs), "training", config.epochs):
        for x, batch_targets in _batches(images, targets, config, generator):
            loss = objective(model, x, batch_targets)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            _update_average(average, model, config.ema_decay)
    return average


def _load(dataset: CocoDataset, progress: Progress) -> tuple[Tensor, list[Target]]:
    """Read all images once, uint8 [n, 3, S, S], with their objects."""
    size = dataset.image_size
    images = torch.empty((len(dataset), 3, size, size), dtype=torch.uint8)
    targets = []
    for index in progress.track(range(len(dataset)), "reading training images", len(dataset)):
        sample = dataset[index]
        images[index] = (sample.image * 255).round()
        targets.append(Target(sample.boxes, sample.labels))
    return images, targets


def _batches(
    images: Tensor, targets: list[Target], config: TrainConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, list[Target]]]:
    """Yield one epoch of shuffled, augmented batches."""
    order = torch.randperm(len(images), generator=generator)
    for indices in torch.split(order, config.batch_size):
        x = (images[indices].float() / 255).contiguous(memory_format=torch.channels_last)  # [N, 3, S, S]
        chosen = [targets[index] for index in indices.tolist()]
        x, chosen = flip_some(x, chosen, generator)
        size = config.sizes[int(torch.randint(len(config.sizes), (1,), generator=generator))]
        yield resize(x, chosen, size)


def flip_some(x: Tensor, targets: list[Target], generator: torch.Generator) -> tuple[Tensor, list[Target]]:
    """Mirror about half of the images, x [N, 3, S, S], and their boxes, left to right."""
    is_flipped = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(is_flipped[:, None, None, None], x.flip(-1), x)
    width = x.shape[-1]
    mirrored = [Target(_mirror(target.boxes, width), target.labels) for target in targets]
    pairs = zip(is_flipped.tolist(), mirrored, targets, strict=True)
    return x, [flipped if chosen else target for chosen, flipped, target in pairs]


def _mirror(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(dim=1)
    return torch.stack([width - right, top, width - left, bottom], dim=1)


def resize(x: Tensor, targets: list[Target], size: int) -> tuple[Tensor, list[Target]]:
    """Scale square images, x [N, 3, S, S], and their boxes to [N, 3, size, size]."""
    scale = size / x.shape[-1]
    if scale == 1:
        return x, targets
    x = interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    return x, [Target(target.boxes * scale, target.labels) for target in targets]


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Decay filters only: biases and normalisation have no reason to be small."""
    filters = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": filters, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Return the rate at a step relative to the peak: a linear rise, then a cosine down to zero."""
    warmup_steps = max(1, round(num_steps * warmup))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    current = model.state_dict()
    for name, value in average.state_dict().items():
        if value.is_floating_point():
            value.lerp_(current[name], 1 - decay)
        else:
            value.copy_(current[name])
