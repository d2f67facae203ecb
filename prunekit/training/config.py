"""The settings of training, and those that stages start from."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from prunekit.config import Config
from prunekit.errors import InputError
from prunekit.training.augment import FLIPS, AugmentConfig

OptimizerName = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
BatchNormMode = Literal["live", "frozen-statistics", "frozen"]
Selection = Literal["last", "holdout"]
Precision = Literal["float32", "bfloat16", "int8"]

# These change how training is carried out, not what comes out of it.
_NO_PART_OF_THE_IDENTITY = {"checkpoint_every", "workers", "device"}


class TrainConfig(Config):
    """The settings of training, the same for every stage.

    An objective that replays batches makes as many steps in its epochs, on fewer batches. `momentum` is SGD's, or
    AdamW's first beta. Weight decay acts on parameters of two dimensions and more, such as filters and scores; biases
    and normalization have no reason to be small. AdamW's is decoupled, SGD's part of the gradient. `batch_norm` "live"
    normalizes by the batch and updates the running statistics; "frozen-statistics" normalizes by the running ones,
    which stay, while scale and shift train if the stage trains them; "frozen" keeps these as well. Losses and weights
    are float32 whatever the `precision` of the networks' passes.
    """

    epochs: int = Field(ge=1, description="number of epochs")
    max_steps: int | None = Field(None, ge=1, description="stop each training after N steps")
    batch_size: int = Field(16, ge=1, description="training batch size")
    optimizer: OptimizerName = Field("adamw", description="sgd or adamw")
    learning_rate: float = Field(1.2e-2, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of sgd, first beta of adamw")
    weight_decay: float = Field(0.02, ge=0, description="weight decay of filters and scores")
    schedule: Schedule = Field("cosine", description="cosine takes the rate down to zero, constant keeps it")
    warmup: float = Field(0.08, ge=0, le=1, description="share of the steps in which the rate rises linearly")
    max_grad_norm: float | None = Field(10.0, gt=0, description="gradients are clipped to this length")
    ema_decay: float | None = Field(
        0.99, ge=0, lt=1, description="decay of the weights' average a step, less in the beginning; null keeps none"
    )
    batch_norm: BatchNormMode = Field(
        "live", description="batch normalization during training: live, frozen-statistics or frozen"
    )
    freeze: Literal["backbone"] | None = Field(
        None, description="what does not train in the first epochs: backbone (default: everything trains)"
    )
    freeze_epochs: int = Field(1, ge=1, description="number of epochs in which --freeze holds")
    selection: Selection = Field(
        "last",
        description="weights that a training keeps: last, or holdout: those of the epoch with the lowest attacked loss "
        "on images held out of the training data",
    )
    precision: Precision = Field(
        "float32",
        description="precision of forward and backward passes in training: float32, bfloat16, or int8 (float32 that "
        "sees what int8 does to convolutions)",
    )
    augmentation: AugmentConfig | None = Field(
        FLIPS, description="how training images vary; null takes what the model's task says"
    )
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="resize each batch to one of these sides in pixels, for YOLO multiples of 32 (none: the data's)"
    )
    seed: int = Field(0, description="random seed")
    checkpoint_every: int = Field(200, ge=1, description="save the training state every N steps, to resume from")
    workers: int = Field(0, ge=0, description="worker processes that load images (0: load in the main process)")
    device: str = Field("cpu", description="device for training: cpu, cuda or cuda:1")

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, what the result depends on."""
        return self.model_dump(mode="json", exclude=_NO_PART_OF_THE_IDENTITY)

    def ema_decay_at(self, step: int) -> float:
        """Return the share of the average that the update after `step` steps, counted from 1, leaves.

        At a constant rate of 0.99, 22 % of what 150 steps started from would still be in their average: of a pruned net
        whose running statistics no longer fit, say.
        """
        return min(self.ema_decay or 0.0, (1 + step) / (10 + step))

    def learning_rate_at(self, step: int, num_steps: int) -> float:
        """Return the rate of one step."""
        if self.schedule == "constant":
            return self.learning_rate * min(1.0, (step + 1) / max(1, round(num_steps * self.warmup)))
        return self.learning_rate * learning_rate_factor(step, num_steps, self.warmup)


class ScoreTraining(TrainConfig):
    """The settings of optimizing scores."""

    score_perturbation: float = Field(
        0.0,
        ge=0,
        description="take the gradient where the scores of each layer, moved by at most this share of their length, do "
        "worst (S2AP); 0 takes it where they are",
    )

    def identity(self) -> dict[str, Any]:
        """Return what the result depends on; a perturbation only where there is one."""
        found = super().identity()
        return found if self.score_perturbation else {k: v for k, v in found.items() if k != "score_perturbation"}


# HYDRA's settings (Sehwag et al. 2020 and its published code): SGD with momentum, cosine, no warm-up, no clipping.
_HYDRA: dict[str, Any] = {
    "optimizer": "sgd",
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "warmup": 0.0,
    "max_grad_norm": None,
    "ema_decay": None,
}
PRE_TRAINING = TrainConfig(epochs=100, learning_rate=0.1, **_HYDRA)
SCORE_OPTIMIZATION = ScoreTraining(epochs=20, learning_rate=0.1, **_HYDRA)
FINE_TUNING = TrainConfig(epochs=100, learning_rate=0.01, **_HYDRA)

# How scores can be optimized. On the demo's detector their gradients differ between layers by a factor of 180, the
# scores by 17: 75 steps of SGD took those of the widest layer 2 % of the way to the threshold, and 2 % of the masks
# changed. Adam's steps are of one size everywhere: a score's way is at most rate times steps, with the cosine half.
SCORE_OPTIMIZATIONS = {
    "sgd": SCORE_OPTIMIZATION,
    "adamw": SCORE_OPTIMIZATION.updated(optimizer="adamw", learning_rate=3e-3, weight_decay=0.0),
}


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Return the rate at a step relative to the peak: a linear rise, then a cosine down to zero."""
    warmup_steps = round(num_steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def require_sizes(config: TrainConfig, multiple: int) -> None:
    """Raise InputError unless batches are resized to sides that a task takes, multiples of its `input_multiple`."""
    if wrong := [size for size in config.sizes if size % multiple]:
        raise InputError(f"sizes: expected sides in multiples of {multiple}, got {wrong[0]}.")


def require_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        InputError: When torch does not know it or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"Expected the device to be cpu, cuda or cuda:<number>, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"Expected the device to be cpu, cuda or cuda:<number>, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no such GPU here"
        raise InputError(f"Expected a GPU for the device {name!r}, but {why}; use the device cpu")
    return device
