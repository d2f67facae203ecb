"""DeepLIFT: how much each convolution weight contributes to what changes between a reference and an input."""

from prunekit.prune.deeplift.attribution import RULES, Comparison, Completeness, CompletenessError
from prunekit.prune.deeplift.scores import Contributions, data_mean, deeplift_contributions, deeplift_scores

__all__ = [
    "RULES",
    "Comparison",
    "Completeness",
    "CompletenessError",
    "Contributions",
    "data_mean",
    "deeplift_contributions",
    "deeplift_scores",
]
