"""What a run is asked to do: every choice, its default and its meaning, checked before any work.

Choices that several commands share are described once, in the classes that `RunConfig` is made of. Trainings are
configurations of their own inside of it; options such as --finetune-epochs and --train-batch-size set their settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_serializer, field_validator, model_validator

from prunekit.attacks import PRESETS, PgdConfig
from prunekit.config import Config
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.evaluation.smoothing import CertificationConfig
from prunekit.pipeline.budget_config import BUDGET, BudgetChoices
from prunekit.pipeline.condition_config import ConditionChoices
from prunekit.pipeline.int8 import DeploymentChoices
from prunekit.pipeline.known_names import KNOWN_NAMES, PRUNINGS
from prunekit.pipeline.own_models import model_arguments, name_own_model
from prunekit.pipeline.recipes import RECIPES
from prunekit.pipeline.scoring import ScoreConfig
from prunekit.pipeline.store import flat
from prunekit.pipeline.training_options import (
    SAID_ONCE,
    OptionalTraining,
    option_of,
    training_options,
    with_trainings,
)
from prunekit.pipeline.variants import AS_GIVEN, Unit, Variant
from prunekit.prune import ALLOCATIONS, SCOPES, SCORES, STRUCTURES, parse_budget
from prunekit.prune.blocks import PERMUTABLE
from prunekit.task import LabelsImages, ModelSpec, Task, family_of, load_plugin, models, task_of
from prunekit.training.config import SCORE_OPTIMIZATION, ScoreTraining, TrainConfig
from prunekit.training.objective import NoiseConfig, ObjectiveConfig, VerifiedConfig
from prunekit.training.objectives import OBJECTIVES, VERIFIED
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

# Results do not depend on where files lie (their content is compared), nor on which process reads them; each variant
# at each ratio is a unit of its own.
_NO_PART_OF_THE_IDENTITY = {
    "weights", "data", "train_data", "out", "ratios", "ratios_of", "structure", "scores", "pruning", "workers",
    "device", "checkpoint_every", "plugin", "recipe", "task", "allocation", "budget",
}  # fmt: skip


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


class RunConfig(PruningChoices, DeploymentChoices, ConditionChoices, CertificationConfig, EvaluationConfig):
    """The main job: prune `model` at each ratio, evaluate it clean and attacked, time what is deployed."""

    model: str = Field(description=architectures())
    weights: Path | None = Field(None, description=f"{WEIGHTS} (default: with --pretrain-epochs, train from scratch)")
    data: Path = Field(description=f"evaluation data: {DATA}")
    out: Path = Field(description="run folder; an interrupted run in it is resumed")
    width: float = Field(1.0, gt=0, le=4, description="width multiplier: channels relative to the published network's")
    ratios: tuple[float, ...] = Field(
        (0, 25, 50, 75, 90, 95), min_length=1, description="pruning ratios in percent, 0 <= ratio < 100"
    )
    ratios_of: tuple[str, ...] = Field(
        (),
        description="ratios of one structure in place of those of --ratios other than 0, such as block1x4=75,90 "
        "(repeatable)",
    )
    scores: tuple[str, ...] = Field(
        ("scaled",), description=f"scores that rank the weights, one or more of: {', '.join(SCORES)}"
    )
    structure: tuple[str, ...] = Field(
        ("unstructured",), description=f"what to prune, one or more of: {STRUCTURE_NAMES}"
    )
    pruning: tuple[str, ...] = Field(
        ("one-shot",),
        description=f"use the scores as they are, or optimize them first; one or more of: {', '.join(PRUNINGS)}",
    )
    allocation: tuple[str, ...] = Field(
        ("uniform",),
        description=f"what shares a ratio or budget among layers, one or more of: {', '.join(ALLOCATIONS)}",
    )
    budget: tuple[str, ...] = Field((), description=f"{BUDGET} (repeatable)")
    train_data: Path | None = Field(
        None, description="training data, same format as --data; without it, masks are one-shot and nothing is trained"
    )
    train_limit: int | None = Field(
        None, ge=1, description="learn from the first N training images only (default: --limit's)"
    )
    pretrain: OptionalTraining = Field(
        OptionalTraining(epochs=0, learning_rate=1e-2, augmentation=None),
        description="robust pre-training",
    )
    finetune: OptionalTraining = Field(
        OptionalTraining(epochs=20, learning_rate=1e-2, augmentation=None),
        description="fine-tuning after pruning",
    )
    share_scores_at: float | None = Field(
        None,
        ge=0,
        lt=100,
        description="optimize scores once, at this ratio, and use them for all ratios (default: once per ratio)",
    )
    attack: str = Field("paper", description=f"white-box attack: {', '.join(PRESETS)}, or none")
    transfer: bool = Field(False, description="also evaluate under the attack generated on the unpruned model")

    @field_validator("ratios", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return parse_ratios(value) if isinstance(value, str) else value

    @field_validator("ratios")
    @classmethod
    def _sorted_percentages(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            if not 0 <= ratio < 100:
                raise ValueError(f"each ratio must be at least 0 and below 100 percent, got {ratio:g}")
        return tuple(sorted(set(ratios)))

    @field_validator("ratios_of")
    @classmethod
    def _of_structures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            name, equals, ratios = text.partition("=")
            if name not in STRUCTURES or not equals:
                raise ValueError(f"expected a structure and its ratios, such as block1x4=75,90, got {text!r}")
            cls._sorted_percentages(parse_ratios(ratios, "--ratios-of"))
        return value

    @model_validator(mode="after")
    def _ratios_have_their_structure(self) -> RunConfig:
        if self.ratios_of and self.budget:
            raise ValueError("--ratios-of has no meaning beside --budget: leave one of them out")
        if unused := [name for name in self._own_ratios if name not in self.structure]:
            raise ValueError(f"--ratios-of is about {unused[0]}, which is not pruned: add it to --structure")
        return self

    @model_validator(mode="after")
    def _training_has_data(self) -> RunConfig:
        if self.train_data is None:
            learns = [f"--scores {name}" for name in self.scores if SCORES[name].needs_batches]
            learns += ["--pruning optimized"] if "optimized" in self.pruning else []
            learns += ["--pretrain-epochs"] if self.pretrain.epochs else []
            learns += ["--precision int8"] if self.deploys_int8 else []
            learns += ["--allocation mrs"] if "mrs" in self.allocation and self.sensitivities is None else []
            if learns:
                raise ValueError(f"{learns[0]} needs images to learn from: add --train-data")
        return self

    @model_validator(mode="after")
    def _has_weights(self) -> RunConfig:
        if self.weights is None and not self.pretrain.epochs:
            raise ValueError("--weights: expected a file, got none: add it, or --pretrain-epochs to train from scratch")
        return self

    @model_validator(mode="after")
    def _shared_scores_are_optimized(self) -> RunConfig:
        if self.share_scores_at is not None and "optimized" not in self.pruning:
            raise ValueError("--share-scores-at is about optimized scores: add --pruning optimized")
        return self

    @model_validator(mode="after")
    def _order_is_of_blocks(self) -> RunConfig:
        check_order_is_of_blocks(self.permute_channels_at, self.structure)
        return self

    @model_validator(mode="after")
    def _scope_is_of_the_layer(self) -> RunConfig:
        if self.scope == "global" and (self.budget or self.allocation != ("uniform",)):
            raise ValueError("--scope global is --allocation global where budgets are shared: give that one alone")
        return self

    @property
    def training_limit(self) -> int | None:
        """How many images are learned from, at most."""
        return self.train_limit or self.limit

    @property
    def variants(self) -> tuple[Variant, ...]:
        """Every structure by every kind of scores by every kind of pruning by every allocation."""
        choices = product(self.structure, self.scores, self.pruning, self.allocation)
        return tuple(Variant(*choice) for choice in choices)

    @property
    def units(self) -> tuple[Unit, ...]:
        """Every variant at every ratio or budget, by variant; first the weights as given, if they are pre-trained."""
        before = (Unit(AS_GIVEN, 0),) if self.pretrain.epochs > 0 and self.weights is not None else ()
        return (*before, *(Unit(variant, *target) for variant in self.variants for target in self._targets(variant)))

    @property
    def _own_ratios(self) -> dict[str, tuple[float, ...]]:
        """Ratios of structures that have their own."""
        given = (text.partition("=") for text in self.ratios_of)
        return {name: parse_ratios(ratios) for name, _, ratios in given}

    def _targets(self, variant: Variant) -> list[tuple[float, str]]:
        """Ratio and budget of each unit: with budgets, they and the unpruned model take the place of the ratios."""
        if not self.budget:
            own = self._own_ratios.get(variant.structure)
            ratios = self.ratios if own is None else sorted({*own, *(r for r in self.ratios if r == 0)})
            return [(ratio, "") for ratio in ratios]
        ratios = [float(text.rstrip("%")) for text in self.budget if parse_budget(text).kind == "ratio"]
        return [(ratio, "") for ratio in sorted({0.0, *ratios})] + [(0.0, b) for b in self.budget if "=" in b]

    def verified_eps(self, task: Task) -> float | None:
        """Return the radius in which models of a task are verified: as was asked, else classifiers by --train-eps."""
        trains_on_bounds = self.objective in VERIFIED and isinstance(task, LabelsImages)
        return self.train_eps if self.verify is None and trains_on_bounds else self.verify

    def certifies(self, task: Task) -> bool:
        """Return whether models of a task are certified: as was asked, else classifiers that train on noise."""
        trains_on_noise = self.objective == "smoothing" and isinstance(task, LabelsImages)
        return trains_on_noise if self.certify is None else self.certify

    def identity(self) -> dict[str, Any]:
        """Return the settings that every finished ratio of a run folder must share, nested ones by dotted names."""
        settings = flat(self.model_dump(mode="json"))
        return {name: value for name, value in settings.items() if name.split(".")[-1] not in _NO_PART_OF_THE_IDENTITY}


def make_config(**choices: Any) -> RunConfig:
    """Build a RunConfig from options or from its fields; whatever is wrong becomes an InputError of one sentence."""
    return RunConfig(**choices)


def parse_ratios(text: str, option: str = "--ratios") -> tuple[float, ...]:
    """Read "0,25,50" as pruning ratios in percent; `option` is what messages call them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option}: expected numbers separated by commas, such as 0,50,90, got {text!r}.") from None
