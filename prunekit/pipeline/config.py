"""What a run is asked to do: every choice, its default and its meaning, checked before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from prunekit.attacks import PRESETS
from prunekit.detection import MODELS
from prunekit.errors import InputError
from prunekit.pipeline.choices import (
    PRUNINGS,
    EvaluatingChoices,
    ScoringChoices,
    TrainingChoices,
    checked,
    split_names,
)
from prunekit.prune import SCOPES, SCORES, STRUCTURES

# Results do not depend on where files lie (their content is compared), nor on which process reads them; each variant
# at each ratio is a unit of its own.
_NO_PART_OF_THE_IDENTITY = {
    "weights", "data", "train_data", "out", "ratios", "structure", "scores", "pruning", "workers", "device",
    "checkpoint_every",
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to prune; a run follows each of them through all ratios.

    Attributes:
        structure: What is dropped, a key of `STRUCTURES`; "none" for the unpruned model that all variants share.
        scores: What ranks it, a key of `SCORES`.
        pruning: "one-shot", or "optimised" scores.
    """

    structure: str
    scores: str
    pruning: str

    @property
    def name(self) -> str:
        """For people and files: unstructured, scaled, one-shot."""
        return f"{self.structure}, {self.scores}, {self.pruning}"


#: The weights as they were given, evaluated beside what robust pre-training made of them.
AS_GIVEN = Variant("none", "none", "as given")


@dataclass(frozen=True)
class Unit:
    """One variant at one ratio: what is finished or not."""

    variant: Variant
    ratio: float

    @property
    def stem(self) -> str:
        """The stem of the unit's files; the unpruned model is every variant's ratio 0."""
        if self.variant == AS_GIVEN:
            return "as_given"
        if self.ratio == 0:
            return "ratio_0"
        parts = (self.variant.structure, self.variant.scores, self.variant.pruning)
        return f"{'-'.join(parts)}-ratio_{self.ratio:g}"

    @property
    def label(self) -> str:
        """What messages call it."""
        if self.variant == AS_GIVEN:
            return "weights as given"
        return "unpruned" if self.ratio == 0 else f"{self.variant.name}, {self.ratio:g} %"


class RunConfig(TrainingChoices, ScoringChoices, EvaluatingChoices):
    """The main job: prune `model` at each ratio, evaluate it clean and attacked, time what is deployed."""

    model: str = Field(description=f"detector architecture: {', '.join(MODELS)}")
    weights: Path = Field(description="darknet .weights file, or .safetensors file written by prunekit")
    data: Path = Field(description="evaluation data: folder in COCO layout, or annotation JSON file")
    out: Path = Field(description="run folder; an interrupted run in it is resumed")
    width: float = Field(1.0, gt=0, le=4, description="width multiplier: channels relative to darknet's")
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
    optimise_epochs: int = Field(20, ge=1, description="epochs of score optimization")
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
    optimise_learning_rate: float | None = Field(
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
            learns += ["optimised pruning"] if "optimised" in self.pruning else []
            learns += ["pre-training"] if self.pretrain_epochs else []
            if learns:
                raise ValueError(f"{learns[0]} needs images to learn from: add --train-data")
        return self

    @model_validator(mode="after")
    def _shared_scores_are_optimised(self) -> RunConfig:
        if self.share_scores_at is not None and "optimised" not in self.pruning:
            raise ValueError("--share-scores-at is about optimised scores: add --pruning optimised")
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


def digest(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of JSON-able values, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True).encode()).hexdigest()
