"""The knobs of training and the settings that stages start from."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch

from prunekit.errors import InputError
from prunekit.training.augment import FLIPS, AugmentConfig

OptimizerName = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "constant"]
BatchNormMode = Literal["live", "frozen-statistics", "frozen"]
Precision = Literal["float32", "bfloat16"]

# These change how training is carried out, not what comes out of it.
_NO_PART_OF_THE_IDENTITY = {"checkpoint_every", "workers", "device"}


def _require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(name, repr(value), value in choices, f"one of {', '.join(choices)}")


def _require(name: str, value: object, is_good: bool, wanted: str) -> None:
    if not is_good:
        raise InputError(f"expected {name} to be {wanted}, but got {value}")


@dataclass(frozen=True)
class TrainConfig:
    """The knobs of training, the same for every stage.

    Attributes:
        epochs: Passes over the data. An objective that replays batches makes as many steps, on fewer batches.
        max_steps: Ends training, schedule included, after so many steps instead.
        batch_size: Images a step.
        optimizer: "adamw" or "sgd".
        learning_rate: The peak.
        momentum: SGD's, or AdamW's first beta.
        weight_decay: On parameters of two dimensions and more, such as filters and scores; biases and normalization
            have no reason to be small. AdamW's is decoupled, SGD's part of the gradient.
        schedule: "cosine" takes the rate down to zero, "constant" keeps it.
        warmup: Share of the steps in which the rate rises linearly.
        max_grad_norm: Gradients are clipped to this length; None leaves them as they are.
        ema_decay: Averaged weights forget at this rate a step, and faster in the beginning (`ema_decay_at`); None keeps
            no average.
        batch_norm: "live" normalizes by the batch and updates the running statistics; "frozen-statistics" normalizes
            by the running ones, which stay, while scale and shift train if the stage trains them; "frozen" keeps
            these as well.
        precision: Of the networks' passes; "bfloat16" through torch.autocast. Losses and weights are float32.
        augmentation: How images vary.
        sizes: Each batch is resized to one of these sides in pixels, multiples of 32; empty leaves the data's size.
        seed: Of everything random.
        checkpoint_every: Steps between saved states.
        workers: Processes that read and letterbox images beside the training step.
        device: "cpu", "cuda" or "cuda:1".
    """

    epochs: int
    max_steps: int | None = None
    batch_size: int = 16
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 1.2e-2
    momentum: float = 0.9
    weight_decay: float = 0.02
    schedule: Schedule = "cosine"
    warmup: float = 0.08
    max_grad_norm: float | None = 10.0
    ema_decay: float | None = 0.99
    batch_norm: BatchNormMode = "live"
    precision: Precision = "float32"
    augmentation: AugmentConfig = FLIPS
    sizes: tuple[int, ...] = ()
    seed: int = 0
    checkpoint_every: int = 200
    workers: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        _require_choice("optimizer", self.optimizer, get_args(OptimizerName))
        _require_choice("schedule", self.schedule, get_args(Schedule))
        _require_choice("batch_norm", self.batch_norm, get_args(BatchNormMode))
        _require_choice("precision", self.precision, get_args(Precision))
        for name in (
            "epochs",
            "batch_size",
            "checkpoint_every",
            *(["max_steps"] if self.max_steps is not None else []),
        ):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "weight_decay", "workers"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("momentum", *(["ema_decay"] if self.ema_decay is not None else [])):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < 1, "from 0 to below 1")
        _require("warmup", self.warmup, 0 <= self.warmup <= 1, "from 0 to 1")
        _require("max_grad_norm", self.max_grad_norm, self.max_grad_norm is None or self.max_grad_norm > 0, "above 0")
        _require("sizes", self.sizes, all(size >= 32 and size % 32 == 0 for size in self.sizes), "in multiples of 32")

    def identity(self) -> dict[str, Any]:
        """Return, ready for JSON, what the result depends on."""
        return {name: value for name, value in asdict(self).items() if name not in _NO_PART_OF_THE_IDENTITY}

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
SCORE_OPTIMIZATION = TrainConfig(epochs=20, learning_rate=0.1, **_HYDRA)
FINE_TUNING = TrainConfig(epochs=100, learning_rate=0.01, **_HYDRA)

# How scores can be optimized. On the demo's detector their gradients differ between layers by a factor of 180, the
# scores by 17: 75 steps of SGD took those of the widest layer 2 % of the way to the threshold, and 2 % of the masks
# changed. Adam's steps are of one size everywhere: a score's way is at most rate times steps, with the cosine half.
SCORE_OPTIMIZATIONS = {
    "sgd": SCORE_OPTIMIZATION,
    "adamw": replace(SCORE_OPTIMIZATION, optimizer="adamw", learning_rate=3e-3, weight_decay=0.0),
}


def learning_rate_factor(step: int, num_steps: int, warmup: float) -> float:
    """Return the rate at a step relative to the peak: a linear rise, then a cosine down to zero."""
    warmup_steps = round(num_steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, num_steps - warmup_steps)))


def require_device(name: str) -> torch.device:
    """Return the device of that name.

    Raises:
        InputError: When torch does not know it or this machine does not have it.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"expected the device to be cpu, cuda or cuda:<number>, but got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"expected the device to be cpu, cuda or cuda:<number>, but got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no such GPU here"
        raise InputError(f"expected a GPU for the device {name!r}, but {why}; use the device cpu")
    return device
