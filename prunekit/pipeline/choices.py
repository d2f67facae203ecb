"""Choices that several commands share, each described and checked once; commands are made of these classes.

Trainings are configurations of their own inside; options such as --finetune-epochs and --train-batch-size set their
settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_serializer, field_validator, model_validator

from prunekit.attacks import PgdConfig
from prunekit.config import Config
from prunekit.errors import InputError
from prunekit.pipeline.budget_config import BudgetChoices
from prunekit.pipeline.known_names import KNOWN_NAMES
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.pipeline.recipes import RECIPES
from prunekit.pipeline.scoring import ScoreConfig
from prunekit.pipeline.training_options import (
    SAID_ONCE,
    option_of,
    training_options,
    with_trainings,
)
from prunekit.prune import SCOPES, STRUCTURES
from prunekit.prune.blocks import PERMUTABLE
from prunekit.task import ModelSpec, Task, family_of, load_plugin, models, task_of
from prunekit.training.config import SCORE_OPTIMIZATION, ScoreTraining, TrainConfig
from prunekit.training.objective import NoiseConfig, ObjectiveConfig, VerifiedConfig
from prunekit.training.objectives import OBJECTIVES
from prunekit.training.pool import is_pool, pool_names


class MachineChoices(Config):
    """Where the work is done."""

    device: str = Field("cpu", description="device for training and evaluation: cpu or cuda")
    threads: int | None = Field(None, ge=1, description="number of torch threads (default: torch's choice)")
    workers: int = Field(0, ge=0, description="worker processes that load images (0: load in the main process)")
    plugin: tuple[str, ...] = Field(
        (), description="module of yours, package.module, that registers models, tasks, attacks or scores (repeatable)"
    )

    @field_validator(
        "plugin",
        "scores",
        "structure",
        "pruning",
        "allocation",
        "budget",
        "attack",
        "conditions",
        "precision",
        mode="before",
        check_fields=False,
    )
    @classmethod
    def _split_names(cls, value: Any, info: Any) -> Any:
        is_several = cls.model_fields[info.field_name].annotation == tuple[str, ...]
        return split_names(value) if is_several else value


class SharedChoices(MachineChoices):
    """What every command is told: which model, where the results go, and how images enter."""

    model_args: tuple[str, ...] = Field(
        (),
        description="keyword argument of the model's factory, name=value, the value as JSON or else text (repeatable)",
    )
    task: str | None = Field(
        None,
        description="task of a model of yours: detection, classification or a plugin's (default: the factory's "
        "attribute task, else what it builds)",
    )

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

    #: Further names that a command takes for an option.
    also_known: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Import plugins before the names that they add are checked; build the trainings from what was given."""
        plugins = split_names(given.get("plugin", ()))
        for module in plugins if isinstance(plugins, (list, tuple)) else ():
            load_plugin(module)
        if "model" in cls.model_fields and isinstance(given.get("model"), str | None):
            name_own_model(given.get("model"), given.get("task"), given.get("model_args", ()))
        return with_trainings(cls, given)

    @classmethod
    def name_of(cls, where: Sequence[int | str], given: Mapping[str, Any]) -> str:
        """Return what messages call a setting: the option that set it, or its path in a file."""
        options = training_options(cls)
        for name in options.keys() & given.keys():
            if where[:2] in options[name].paths:
                return option_of(name)
        is_own = len(where) == 1 or isinstance((*where, "", "")[1], int)
        return option_of(str(where[0])) if is_own else super().name_of(where, given)

    @field_validator("model", check_fields=False)
    @classmethod
    def _known_model(cls, name: str | None) -> str | None:
        if name is not None:
            _require_known_model(name)
        return name

    @field_validator(*KNOWN_NAMES, check_fields=False)
    @classmethod
    def _known_names(cls, value: Any, info: Any) -> Any:
        if info.field_name == "train_attack" and issubclass(cls, TrainingChoices) and is_pool(value):
            pool_names(value)
            return value
        known = [*KNOWN_NAMES[info.field_name](), *cls.also_known.get(info.field_name, ())]
        for name in value if isinstance(value, tuple) else (value,):
            if name is not None and name not in known:
                raise ValueError(f"must be one of {', '.join(known)}, got {name!r}")
        return value

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The model's keyword arguments that were given."""
        return model_arguments(self.model_args)

    @property
    def training_limit(self) -> int | None:
        """How many images are learned from, at most."""
        return self.limit

    @model_validator(mode="after")
    def _fits_the_model(self) -> SharedChoices:
        name = getattr(self, "model", None)
        if name is not None and (wrong := wrong_image_size(self.image_size, task_of(ModelSpec(name)))):
            raise ValueError(wrong)
        return self


def architectures() -> str:
    """Return what --model can be, for its description."""
    return f"architecture: {', '.join(models())}, or package.module:factory of yours"


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


class TrainingChoices(SharedChoices, VerifiedConfig, NoiseConfig):
    """What the stages that train have in common; each of them is a field that holds a `TrainConfig`."""

    recipe: str | None = Field(
        None,
        description=f"start from the settings of a published method, which other options change: {', '.join(RECIPES)}",
    )
    objective: str = Field("pgd-at", description=f"training objective: {', '.join(OBJECTIVES)}")
    train_attack: str = Field(
        "paper",
        description="attack used by the objective: a PGD preset, or for pgd-at pool:fgsm,strong, of which each batch "
        "meets one",
    )

    @model_validator(mode="after")
    def _pool_is_understood(self) -> TrainingChoices:
        if is_pool(self.train_attack) and self.objective != "pgd-at":
            raise ValueError(f"--train-attack: a pool is for the objective pgd-at, got {self.objective}")
        if is_pool(self.train_attack) and getattr(self, "reference", "") == "clean":
            raise ValueError("--train-attack: --reference clean takes one attack, got a pool")
        return self

    @property
    def selects(self) -> bool:
        """Whether a training keeps what does best on held-out images."""
        trainings = (getattr(self, section, None) for section in ("pretrain", "optimize", "finetune"))
        return any(training.selection == "holdout" for training in trainings if training)

    def knobs(self, attack: PgdConfig) -> ObjectiveConfig:
        """Return what objectives take."""
        verified = VerifiedConfig(**{name: getattr(self, name) for name in VerifiedConfig.model_fields})
        return ObjectiveConfig(attack=attack, sigma=self.sigma, verified=verified)

    @field_serializer("pretrain", "optimize", "finetune", check_fields=False)
    def _without_what_all_share(self, training: TrainConfig, info: Any) -> dict[str, Any]:
        return training.model_dump(mode=info.mode, exclude=SAID_ONCE)


def split_names(value: Any) -> Any:
    """Turn "a, b" into ("a", "b"), each name once; leave what is no text as it is."""
    return tuple(dict.fromkeys(name.strip() for name in value.split(","))) if isinstance(value, str) else value


#: What an option for structures takes.
STRUCTURE_NAMES = f"{', '.join(STRUCTURES)} (block4x1: four filters by one input channel at one tap)"

#: What options on files take.
WEIGHTS = (
    ".safetensors file written by prunekit, darknet .weights file of a detector, or a classifier's state dict "
    "(.pt, .pth, .safetensors)"
)
DATA = (
    "for detectors a folder in COCO, YOLO or Pascal VOC layout, an annotation JSON file or a data.yaml; for "
    "classifiers a folder with one for each class, CIFAR's binary version, SVHN, MNIST or Tiny-ImageNet"
)


def check_order_is_of_blocks(permute_channels_at: float | None, structures: Sequence[str]) -> None:
    """Raise ValueError where channels are to be permuted, but nothing is pruned in blocks."""
    if permute_channels_at is not None and not set(structures) & set(PERMUTABLE):
        raise ValueError(f"--permute-channels-at is about blocks: add --structure {' or '.join(PERMUTABLE)}")


class PruningChoices(TrainingChoices, ScoreConfig, BudgetChoices):
    """What a run and a single pruning are told about the way from scores to masks."""

    scope: str = Field("layer", description=f"compare scores within each layer or across all: {', '.join(SCOPES)}")
    optimize: ScoreTraining = Field(
        SCORE_OPTIMIZATION.updated(augmentation=None), description="optimization of the scores"
    )
    permute_channels_at: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="before pruning in blocks, bring the channels into an order in which blocks keep more at this "
        "ratio in percent; the model answers the same (default: the order as it is)",
    )
