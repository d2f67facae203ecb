"""What each stage's command is asked to do; the bases in `config` declare what it shares with a whole run, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field, field_validator, model_validator

from prunekit.attacks import PRESETS
from prunekit.evaluation.corruptions.config import CorruptionConfig
from prunekit.evaluation.evaluate import EvaluationConfig
from prunekit.evaluation.patch import PATCH, PatchOptions
from prunekit.evaluation.sensitivity import SensitivityConfig
from prunekit.evaluation.smoothing import CertificationConfig
from prunekit.pipeline.budget_config import BUDGET, BudgetChoices
from prunekit.pipeline.choices import (
    DATA,
    STRUCTURE_NAMES,
    WEIGHTS,
    PruningChoices,
    SharedChoices,
    TrainingChoices,
    architectures,
    check_order_is_of_blocks,
)
from prunekit.pipeline.deployed_config import DeployedChoices
from prunekit.pipeline.scoring import ScoreConfig
from prunekit.prune import ALLOCATIONS, SCORES
from prunekit.training.config import TrainConfig


class DetectorChoices(SharedChoices):
    """Which detector a stage works on; weights in .safetensors say their architecture themselves."""

    model: str | None = Field(None, description=f"{architectures()} (default: from .safetensors weights)")
    width: float | None = Field(
        None,
        gt=0,
        le=4,
        description="width multiplier: channels relative to the published network's (default: from .safetensors "
        "weights, else 1)",
    )


_OF_WEIGHTS = TrainConfig(epochs=20, learning_rate=1e-2, augmentation=None)


class TrainStage(DetectorChoices, TrainingChoices):
    """Train every parameter, from given weights or from scratch."""

    weights: Path | None = Field(None, description=f"initial weights: {WEIGHTS} (default: train from scratch)")
    data: Path = Field(description=f"training data: {DATA}")
    fit_anchors: bool = Field(False, description="a detector's anchors by k-means of the data's boxes")
    pretrain: TrainConfig = Field(_OF_WEIGHTS, description="training of all weights")


class FinetuneStage(DetectorChoices, TrainingChoices):
    """Train a pruned detector with its masks held."""

    weights: Path = Field(description="pruned model: model.safetensors of prunekit prune or finetune")
    data: Path = Field(description=f"training data: {DATA}")
    finetune: TrainConfig = Field(_OF_WEIGHTS, description="training of the weights that were kept")


class ScoreStage(DetectorChoices, ScoreConfig):
    """Score every weight."""

    weights: Path = Field(description=WEIGHTS)
    data: Path | None = Field(
        None, description=f"images for taylor and deeplift scores, and the classes of a .weights file: {DATA}"
    )
    scores: str = Field("scaled", description=f"scores that rank the weights: {', '.join(SCORES)}")
    train_attack: str = Field("paper", description="attack for DeepLIFT with --reference clean: a PGD preset")


class PruneStage(DetectorChoices, PruningChoices):
    """Drop what scores lowest, by the scores as they are or by optimized ones."""

    weights: Path = Field(description=WEIGHTS)
    ratio: float | None = Field(None, description="pruning ratio in percent, 0 <= ratio < 100")
    budget: str | None = Field(None, description=BUDGET)
    allocation: str = Field(
        "uniform", description=f"what shares a ratio or budget among layers: {', '.join(ALLOCATIONS)}"
    )
    structure: str = Field("unstructured", description=f"what to prune: {STRUCTURE_NAMES}")
    scores: str | None = Field(
        None,
        description=f"scores that rank the weights: {', '.join(SCORES)} (default: scaled without --scores-file)",
    )
    scores_file: Path | None = Field(
        None, description="scores.safetensors written by prunekit score, instead of --scores"
    )
    optimize_scores: bool = Field(False, description="optimize the scores on --data before pruning")
    data: Path | None = Field(None, description=f"training data for scores, and the classes of a .weights file: {DATA}")

    @field_validator("ratio")
    @classmethod
    def _percentage(cls, ratio: float | None) -> float | None:
        if ratio is not None and not 0 <= ratio < 100:
            raise ValueError(f"must be at least 0 and below 100 percent, got {ratio:g}")
        return ratio

    @model_validator(mode="after")
    def _one_source_of_scores(self) -> PruneStage:
        if self.scores is not None and self.scores_file is not None:
            raise ValueError("--scores makes scores and --scores-file reads them: give one of the two")
        if self.optimize_scores and self.data is None:
            raise ValueError("--optimize-scores needs images to learn from: add --data")
        return self

    @model_validator(mode="after")
    def _order_is_of_blocks(self) -> PruneStage:
        check_order_is_of_blocks(self.permute_channels_at, (self.structure,))
        if self.permute_channels_at is not None and self.scores_file is not None:
            raise ValueError("--scores-file holds scores of channels in their given order: leave --permute-channels-at")
        return self

    @model_validator(mode="after")
    def _one_goal(self) -> PruneStage:
        if (self.ratio is None) == (self.budget is None):
            raise ValueError("--ratio and --budget say how much goes: give one of the two")
        if self.scope == "global" and self.shared:
            raise ValueError("--scope global is --allocation global where budgets are shared: give that one alone")
        if self.allocation == "mrs" and self.data is None and self.sensitivities is None:
            raise ValueError("--allocation mrs needs images to measure sensitivities on: add --data or --sensitivities")
        return self

    @property
    def shared(self) -> str:
        """The budget that is shared among layers; "" where every layer has the ratio."""
        return self.budget or (f"{self.ratio!r}%" if self.allocation != "uniform" and self.ratio else "")


class SensitivityStage(DetectorChoices, SensitivityConfig):
    """Measure the robustness sensitivity of each module."""

    weights: Path = Field(description=WEIGHTS)
    data: Path = Field(description=f"training images: {DATA}")


class MrpfStage(DetectorChoices, TrainingChoices, ScoreConfig, BudgetChoices):
    """Prune in rounds, each with fine-tuning, as sensitivities say."""

    weights: Path | None = Field(None, description=f"robust model: {WEIGHTS} (default: train from scratch)")
    data: Path = Field(description=f"training data: {DATA}")
    budget: str = Field(description=BUDGET)
    rounds: int = Field(4, ge=1, description="rounds of measuring, pruning and fine-tuning")
    allocation: str = Field("mrs", description=f"what shares the budget among layers: {', '.join(ALLOCATIONS)}")
    structure: str = Field("filter", description=f"what to prune: {STRUCTURE_NAMES}")
    scores: str = Field("scaled", description=f"scores that rank the weights: {', '.join(SCORES)}")
    pretrain: TrainConfig = Field(_OF_WEIGHTS, description="training of all weights, where there are none")
    finetune: TrainConfig = Field(_OF_WEIGHTS.updated(epochs=5), description="fine-tuning in each round")


class EvaluateStage(
    DetectorChoices, CertificationConfig, CorruptionConfig, PatchOptions, DeployedChoices, EvaluationConfig
):
    """Evaluate a detector clean and under attacks."""

    also_known: ClassVar[Mapping[str, tuple[str, ...]]] = {"attack": (PATCH,)}

    weights: Path = Field(description=WEIGHTS)
    data: Path = Field(description=DATA)
    attack: tuple[str, ...] = Field(
        ("paper",),
        description=f"attacks, one or more of: {', '.join([*PRESETS, PATCH])}, or none; clean is always evaluated",
    )
    transfer_from: Path | None = Field(
        None,
        description="weights of another model, such as the unpruned one, on which transferred attacks are generated",
    )
    check: bool = Field(False, description="run sanity checks on the evaluation under attack")
    latency: bool = Field(False, description="accelerate the model and time it against the dense one")

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks on each image by itself."""
        return tuple(name for name in self.attack if name != PATCH)
