"""Pruning: a score for every weight, and the masks that keep the highest ones."""

from prunekit.prune.budgets import Budget, parse_budget
from prunekit.prune.channel_groups import ChannelGroups, channel_groups
from prunekit.prune.costs import LayerCost, ModelCost, count_costs
from prunekit.prune.deeplift import Comparison, CompletenessError, data_mean, deeplift_scores
from prunekit.prune.frozen_masks import FrozenMasks
from prunekit.prune.layers import conv_groups, prunable_layers
from prunekit.prune.mask_rule import SCOPES, STRUCTURES, MaskRule, masks_from_scores
from prunekit.prune.masks import apply_masks, load_masks, save_masks, sparsity
from prunekit.prune.scores import (
    SCORES,
    Score,
    initial_scores,
    load_scores,
    magnitude_scores,
    random_scores,
    register_score,
    save_scores,
    scaled_scores,
    score_model,
    score_named,
)
from prunekit.prune.sensitivity import Sensitivity, robustness_sensitivities
from prunekit.prune.sharing import ALLOCATIONS, allocate, allocated
from prunekit.prune.straight_through import Churn, StraightThrough, churn_between
from prunekit.prune.taylor import taylor_scores

__all__ = [
    "ALLOCATIONS",
    "SCOPES",
    "SCORES",
    "STRUCTURES",
    "Budget",
    "ChannelGroups",
    "Churn",
    "Comparison",
    "CompletenessError",
    "FrozenMasks",
    "LayerCost",
    "MaskRule",
    "ModelCost",
    "Score",
    "Sensitivity",
    "StraightThrough",
    "allocate",
    "allocated",
    "apply_masks",
    "channel_groups",
    "churn_between",
    "conv_groups",
    "count_costs",
    "data_mean",
    "deeplift_scores",
    "initial_scores",
    "load_masks",
    "load_scores",
    "magnitude_scores",
    "masks_from_scores",
    "parse_budget",
    "prunable_layers",
    "random_scores",
    "register_score",
    "robustness_sensitivities",
    "save_masks",
    "save_scores",
    "scaled_scores",
    "score_model",
    "score_named",
    "sparsity",
    "taylor_scores",
]
