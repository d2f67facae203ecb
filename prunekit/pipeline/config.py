"""What a run is asked to do: every choice, its default and its meaning, checked before any work.

Choices that several commands share are described once, in the classes that `RunConfig` is made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.errors import InputError
from prunekit.pipeline.scoring import REFERENCES
from prunekit.pipeline.variants import AS_GIVEN, Unit, Variant
from prunekit.prune import SCOPES, SCORES, STRUCTURES
from prunekit.prune.deeplift import RULES
from prunekit.task import ModelSpec, Task, family_of, load_plugin, models, task_of
from prunekit.training.config import SCORE_OPTIMIZATIONS
from prunekit.training.objectives import OBJECTIVES

PRUNINGS = ("one-shot", "optimized")


def _adversarial_training() -> list[str]:
    return [name for name, attack in PRESETS.items() if isinstance(attack, PgdConfig)]


#: Option → what lists its names when a value is checked: plugins may have added some.
KNOWN_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "scores": lambda: SCORES,
    "structure": lambda: STRUCTURES,
    "pruning": lambda: PRUNINGS,
    "attack": lambda: [*PRESETS, "none"],
    "scope": lambda: SCOPES,
    "objective": lambda: OBJECTIVES,
    "score_optimizer": lambda: SCORE_OPTIMIZATIONS,
    "train_attack": _adversarial_training,
    "reference": lambda: REFERENCES,
    "rule": lambda: RULES,
}


class MachineChoices(BaseModel):
    """Where the work is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("cpu", description="device for training and evaluation: cpu or cuda")
    threads: int | None = Field(None, ge=1, description="number of torch threads (default: torch's choice)")
    workers: int = Field(0, ge=0, description="worker processes that load images (0: load in the main process)")
    plugin: tuple[str, ...] = Field(
        (), description="module of yours, package.module, that registers models, tasks, attacks or scores (repeatable)"
    )

    @model_validator(mode="before")
    @classmethod
    def _import_plugins(cls, choices: Any) -> Any:
        """Import plugins before the names that they add are checked."""
        for module in split_names(choices.get("plugin", ())):
            load_plugin(module)
        return choices

    @field_validator("plugin", mode="before")
    @classmethod
    def _split_plugins(cls, value: Any) -> Any:
        return split_names(value)


class SharedChoices(MachineChoices):
    """What every command is told: where the results go, and how images enter."""

    out: Path = Field(description="output folder")
    image_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="side of the input in pixels; for YOLO a multiple of 32 (default: 416 for YOLO; for classifiers "
        "the size that all images share, else 224)",
    )
    grayscale: bool = Field(False, description="convert images to grayscale (Rec. 601)")
    limit: int | None = Field(None, ge=1, description="use only the first N images (default: all)")
    seed: int = Field(0, ge=0, description="random seed")

    @field_validator("model", check_fields=False)
    @classmethod
    def _known_model(cls, name: str | None) -> str | None:
        if name is not None:
            _require_known_model(name)
        return name

    @field_validator(*KNOWN_NAMES, check_fields=False)
    @classmethod
    def _known_names(cls, value: Any, info: Any) -> Any:
        known = list(KNOWN_NAMES[info.field_name]())
        for name in value if isinstance(value, tuple) else (value,):
            if name is not None and name not in known:
                raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
        return value

    @model_validator(mode="after")
    def _fits_the_model(self) -> SharedChoices:
        name = getattr(self, "model", None)
        if name is not None and (wrong := wrong_image_size(self.image_size, task_of(ModelSpec(name)))):
            raise ValueError(wrong)
        return self


def wrong_image_size(size: int | None, task: Task) -> str:
    """Return what is wrong with a size for a task, or ""; None leaves it to the task."""
    multiple = task.input_multiple
    return f"--image-size: expected a multiple of {multiple}, got {size}" if (size or 0) % multiple else ""


def _require_known_model(name: str) -> None:
    try:
        family_of(name)
    except InputError as error:
        known = f"must be one of {', '.join(models())}, got {name!r}"
        raise ValueError(str(error).rstrip(".") if ":" in name else known) from None


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
    augment: bool = Field(
        True, description="augment training images: random flips and shifts, for detectors scaling and colors too"
    )
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


#: What options on files take.
WEIGHTS = (
    ".safetensors file written by prunekit, darknet .weights file of a detector, or a classifier's state dict "
    "(.pt, .pth, .safetensors)"
)
DATA = (
    "for detectors a folder in COCO layout or an annotation JSON file; for classifiers a folder with one for each "
    "class, CIFAR's binary version, SVHN, MNIST or Tiny-ImageNet"
)

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
    if not problem["loc"] and message.startswith("--"):  # it names the option itself
        return f"{message.rstrip('.')}."
    found = "" if problem["type"] == "value_error" else f", got {problem['input']!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{found}."


# Results do not depend on where files lie (their content is compared), nor on which process reads them; each variant
# at each ratio is a unit of its own.
_NO_PART_OF_THE_IDENTITY = {
    "weights", "data", "train_data", "out", "ratios", "structure", "scores", "pruning", "workers", "device",
    "checkpoint_every", "plugin",
}  # fmt: skip


class RunConfig(TrainingChoices, ScoringChoices, EvaluatingChoices):
    """The main job: prune `model` at each ratio, evaluate it clean and attacked, time what is deployed."""

    model: str = Field(description=f"architecture: {', '.join(models())}")
    weights: Path = Field(description=WEIGHTS)
    data: Path = Field(description=f"evaluation data: {DATA}")
    out: Path = Field(description="run folder; an interrupted run in it is resumed")
    width: float = Field(1.0, gt=0, le=4, description="width multiplier: channels relative to the published network's")
    ratios: tuple[float, ...] = Field(
        (0, 25, 50, 75, 90, 95), min_length=1, description="pruning ratios in percent, 0 <= ratio < 100"
    )
    scores: tuple[str, ...] = Field(
        ("scaled",), description=f"scores that rank the weights, one or more of: {', '.join(SCORES)}"
    )
    structure: tuple[str, ...] = Field(
        ("unstructured",), description=f"what to prune, one or more of: {', '.join(STRUCTURES)}"
    )
    pruning: tuple[str, ...] = Field(
        ("one-shot",),
        description=f"use the scores as they are, or optimize them first; one or more of: {', '.join(PRUNINGS)}",
    )
    scope: str = Field("layer", description=f"compare scores within each layer or across all: {', '.join(SCOPES)}")
    keep_stem_and_heads: bool = Field(False, description="do not prune the first convolution and the heads")
    train_data: Path | None = Field(
        None, description="training data, same format as --data; without it, masks are one-shot and nothing is trained"
    )
    pretrain_epochs: int = Field(
        0, ge=0, description="epochs of robust pre-training (0: the weights are already trained)"
    )
    optimize_epochs: int = Field(20, ge=1, description="epochs of score optimization")
    finetune_epochs: int = Field(20, ge=0, description="epochs of fine-tuning after pruning")
    pretrain_learning_rate: float = Field(1e-2, gt=0, description="peak learning rate of pre-training")
    score_optimizer: str = Field(
        "sgd", description="optimizer of the scores: sgd as in HYDRA, for thousands of steps; adamw for fewer"
    )
    share_scores_at: float | None = Field(
        None,
        ge=0,
        lt=100,
        description="optimize scores once, at this ratio, and use them for all ratios (default: once per ratio)",
    )
    optimize_learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of score optimization (default: 0.1 for sgd, 0.003 for adamw)"
    )
    finetune_learning_rate: float = Field(1e-2, gt=0, description="peak learning rate of fine-tuning")
    attack: str = Field("paper", description=f"white-box attack: {', '.join(PRESETS)}, or none")
    transfer: bool = Field(False, description="also evaluate under the attack generated on the unpruned model")

    @field_validator("ratios")
    @classmethod
    def _sorted_percentages(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 <= ratio < 100:
                raise ValueError(f"each ratio must be at least 0 and below 100 percent, got {ratio:g}")
        return tuple(sorted(set(ratios)))

    @field_validator("scores", "structure", "pruning", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        return split_names(value)

    @model_validator(mode="after")
    def _training_has_data(self) -> RunConfig:
        if self.train_data is None:
            learns = [f"scores {name}" for name in self.scores if SCORES[name].needs_batches]
            learns += ["optimized pruning"] if "optimized" in self.pruning else []
            learns += ["pre-training"] if self.pretrain_epochs else []
            if learns:
                raise ValueError(f"{learns[0]} needs images to learn from: add --train-data")
        return self

    @model_validator(mode="after")
    def _shared_scores_are_optimized(self) -> RunConfig:
        if self.share_scores_at is not None and "optimized" not in self.pruning:
            raise ValueError("--share-scores-at is about optimized scores: add --pruning optimized")
        return self

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every structure by every kind of scores by every kind of pruning."""
        return tuple(Variant(a, b, c) for a in self.structure for b in self.scores for c in self.pruning)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every variant at every ratio, variant by variant; first the weights as given, if they are pre-trained."""
        before = (Unit(AS_GIVEN, 0),) if self.pretrain_epochs > 0 else ()
        return (*before, *(Unit(variant, ratio) for variant in self.variants for ratio in self.ratios))

    def identity(self) -> dict[str, Any]:
        """Return the fields that every finished ratio of a run folder must share."""
        return self.model_dump(mode="json", exclude=_NO_PART_OF_THE_IDENTITY)


def make_config(**choices: Any) -> RunConfig:
    """Build a RunConfig; whatever is wrong becomes an InputError of one sentence."""
    return checked(RunConfig, **choices)


def parse_ratios(text: str) -> tuple[float, ...]:
    """Read "0,25,50" as pruning ratios in percent."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--ratios: expected numbers separated by commas, such as 0,50,90, got {text!r}.") from None
