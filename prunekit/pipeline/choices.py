"""The choices that several commands share, each described once, checked before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.detection import MODELS
from prunekit.errors import InputError
from prunekit.pipeline.objectives import OBJECTIVES
from prunekit.pipeline.scoring import REFERENCES
from prunekit.pipeline.train_config import SCORE_OPTIMISATIONS
from prunekit.prune import SCOPES, SCORES, STRUCTURES
from prunekit.prune.deeplift import RULES

PRUNINGS = ("one-shot", "optimised")

KNOWN_NAMES: dict[str, list[str]] = {
    "model": [*MODELS],
    "scores": [*SCORES],
    "structure": [*STRUCTURES],
    "pruning": [*PRUNINGS],
    "attack": [*PRESETS, "none"],
    "scope": [*SCOPES],
    "objective": [*OBJECTIVES],
    "score_optimizer": [*SCORE_OPTIMISATIONS],
    "train_attack": [name for name, attack in PRESETS.items() if isinstance(attack, PgdConfig)],
    "reference": [*REFERENCES],
    "rule": [*RULES],
}


class MachineChoices(BaseModel):
    """Where the work is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("cpu", description="device for training and evaluation: cpu or cuda")
    threads: int | None = Field(None, ge=1, description="number of torch threads (default: torch's choice)")
    workers: int = Field(0, ge=0, description="worker processes that load images (0: load in the main process)")


class SharedChoices(MachineChoices):
    """What every command is told: where the results go, and how images enter."""

    out: Path = Field(description="output folder")
    image_size: int = Field(
        416, ge=32, le=4096, multiple_of=32, description="side of the square input in pixels, a multiple of 32"
    )
    greyscale: bool = Field(False, description="convert images to grayscale (Rec. 601)")
    limit: int | None = Field(None, ge=1, description="use only the first N images (default: all)")
    seed: int = Field(0, ge=0, description="random seed")

    @field_validator(*KNOWN_NAMES, check_fields=False)
    @classmethod
    def _known_names(cls, value: Any, info: Any) -> Any:
        known = KNOWN_NAMES[info.field_name]
        for name in value if isinstance(value, tuple) else (value,):
            if name is not None and name not in known:
                raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
        return value


class TrainingChoices(SharedChoices):
    """How the stages that train do it."""

    objective: str = Field("pgd-at", description=f"training objective: {', '.join(OBJECTIVES)}")
    train_attack: str = Field("paper", description="attack used by the objective: a PGD preset")
    max_steps: int | None = Field(None, ge=1, description="stop each training after N steps")
    train_batch_size: int = Field(16, ge=1, description="training batch size")
    batch_norm: Literal["live", "frozen-statistics", "frozen"] = Field(
        "live", description="batch normalization during training: live, frozen-statistics or frozen"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="precision of forward and backward passes in training: float32 or bfloat16"
    )
    augment: bool = Field(True, description="augment training images: random flips, scaling, shifts and colors")
    checkpoint_every: int = Field(200, ge=1, description="save the training state every N steps, to resume from")


class BatchChoices(SharedChoices):
    """How many images are looked at together where nothing trains."""

    batch_size: int = Field(8, ge=1, description="batch size for scoring, evaluation and attacks")


class ScoringChoices(BatchChoices):
    """How scores that look at images do it."""

    score_images: int = Field(256, ge=1, description="number of training images for taylor and deeplift scores")
    reference: str = Field("zeros", description=f"reference input for DeepLIFT: {', '.join(REFERENCES)}")
    rule: str = Field("rescale", description=f"DeepLIFT rule for activations: {', '.join(RULES)}")


class EvaluatingChoices(BatchChoices):
    """How detections are made and timed."""

    score_threshold: float = Field(0.001, ge=0, lt=1, description="keep detections with a score above this")
    iou_threshold: float = Field(0.45, gt=0, le=1, description="IoU threshold of non-maximum suppression")
    max_detections: int = Field(100, ge=1, description="maximum detections per image; COCO's AP counts at most 100")
    latency_runs: int = Field(30, ge=3, description="timed runs of each model")


def split_names(value: Any) -> Any:
    """Turn "a, b" into ("a", "b"), each name once; leave what is no text as it is."""
    return tuple(dict.fromkeys(name.strip() for name in value.split(","))) if isinstance(value, str) else value


Choices = TypeVar("Choices", bound=SharedChoices)


def checked(kind: type[Choices], **choices: Any) -> Choices:
    """Build a configuration; whatever is wrong becomes an InputError of one sentence."""
    try:
        return kind(**choices)
    except ValidationError as error:
        raise InputError(_first_problem(error)) from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    field = "--" + str(problem["loc"][0]).replace("_", "-") if problem["loc"] else "these options do not go together"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{found}."
