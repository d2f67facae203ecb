"""Settings of published methods, by name: what --recipe sets where neither an option nor a file says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.registry import register
from prunekit.training.augment import AugmentConfig
from prunekit.training.config import FINE_TUNING, PRE_TRAINING, SCORE_OPTIMIZATION


@dataclass(frozen=True)
class Recipe:
    """A method's settings.

    Attributes:
        description: What it is, for the documentation.
        settings: As in a configuration's file; each command takes those that it has.
    """

    description: str
    settings: Mapping[str, Any]


# RandomCrop(32, padding=4) and a flip.
_CROPS = {"batch_size": 128, "augmentation": AugmentConfig(crop=4, fill=0.0)}

RECIPES: dict[str, Recipe] = {
    "hydra": Recipe(
        "HYDRA (Sehwag et al. 2020) with iterative adversarial training, as in its published code",
        {
            "structure": "unstructured",
            "scores": "scaled",
            "pruning": "optimized",
            "optimize_scores": True,
            "scope": "layer",
            "keep_stem_and_heads": False,
            "share_scores_at": None,
            "objective": "trades",
            "train_attack": "hydra",
            "attack": "hydra",
            "pretrain": PRE_TRAINING.updated(**_CROPS),
            "optimize": SCORE_OPTIMIZATION.updated(**_CROPS),
            "finetune": FINE_TUNING.updated(**_CROPS),
        },
    )
}


def register_recipe(name: str, recipe: Recipe) -> None:
    """Add a recipe of one's own; InputError when the name is taken."""
    register(RECIPES, "recipe", name, recipe)
