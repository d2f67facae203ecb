"""Pruning: a score for every weight, and the masks that keep the highest ones."""

from prunekit.prune.masks import (
    apply_masks,
    load_masks,
    masks_from_scores,
    prunable_layers,
    save_masks,
    sparsity,
)
from prunekit.prune.scores import SCORES, magnitude_scores, scaled_scores, score_model

__all__ = [
    "SCORES",
    "apply_masks",
    "load_masks",
    "magnitude_scores",
    "masks_from_scores",
    "prunable_layers",
    "save_masks",
    "scaled_scores",
    "score_model",
    "sparsity",
]
