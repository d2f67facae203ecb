"""What a run is asked to do: every choice, its default and its meaning, checked before any work."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from prunekit.attacks import PRESETS
from prunekit.errors import InputError
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.evaluation.smoothing import CertificationConfig
from prunekit.pipeline.budget_config import BUDGET
from prunekit.pipeline.choices import (
    DATA,
    STRUCTURE_NAMES,
    WEIGHTS,
    PruningChoices,
    architectures,
    check_order_is_of_blocks,
)
from prunekit.pipeline.condition_config import ConditionChoices
from prunekit.pipeline.int8 import DeploymentChoices
from prunekit.pipeline.known_names import PRUNINGS
from prunekit.pipeline.store import flat
from prunekit.pipeline.training_options import OptionalTraining
from prunekit.pipeline.variants import AS_GIVEN, Unit, Variant
from prunekit.prune import ALLOCATIONS, SCORES, STRUCTURES, parse_budget
from prunekit.task import LabelsImages, Task
from prunekit.training.objectives import VERIFIED

# Results do not depend on where files lie (their content is compared), nor on which process reads them; each variant
# at each ratio is a unit of its own.
_NO_PART_OF_THE_IDENTITY = {
    "weights", "data", "train_data", "out", "ratios", "ratios_of", "structure", "scores", "pruning", "workers",
    "device", "checkpoint_every", "plugin", "recipe", "task", "allocation", "budget",
}  # fmt: skip


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
