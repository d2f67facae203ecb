"""Many runs: plans of them, where they are done, and what their numbers say together."""

from prunekit.extras import check_extra

check_extra("study", "prunekit.experiments")

from prunekit.experiments.comparisons import Comparison, Point, compare
from prunekit.experiments.values import Values, read_values

__all__ = ["Comparison", "Point", "Values", "compare", "read_values"]
